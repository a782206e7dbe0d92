// The page of an image: its picture at full size, more features, similar images, zero-shot on demand, contributions.

import { grid, inlined, load, make, number } from "./api.js";
import { bar, chances, firing } from "./firings.js";

const AT_ONCE = 24;
const byId = (id) => document.getElementById(id);

// The thumbnail stands until the picture from the source, which may be slow, is there.
function showFullSize(picture) {
  const full = new Image();
  full.addEventListener("load", () => {
    picture.src = full.src;
    picture.classList.add("full");
    byId("size").textContent = `${full.naturalWidth} × ${full.naturalHeight} pixels`;
  });
  full.src = picture.dataset.full;
}

function showMore(button, left) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const lines = left.splice(0, AT_ONCE).map((each) => firing(each));
    byId("firings").append(...lines);
    lines[0].querySelector("a").focus();
    if (left.length === 0) {
      button.hidden = true;
      byId("rest")?.removeAttribute("hidden");
    }
  });
}

async function showSimilar(place) {
  const status = byId("similar-status");
  try {
    const { images, is_exact } = await load(place.dataset.path);
    place.append(grid(images));
    if (images.length === 0) status.textContent = "No other image shares a feature with this one.";
    if (!is_exact) status.textContent += " The densest features were left out of the search: another image may be as near.";
  } catch (error) {
    status.textContent = error.message;
  }
}

function offerZeroShot(place) {
  const button = byId("zero-shot-run"), status = byId("zero-shot-status");
  button.hidden = false;
  button.addEventListener("click", async () => {
    button.disabled = true;
    status.textContent = "The tower runs …";
    try {
      const found = await load(place.dataset.path);
      place.append(chances(found.classes, ["original", "with the SAE"], Number(place.dataset.label)));
      status.textContent = `Among ${found.n_classes} classes, ${found.captions}. ${found.no_after_because}`;
      button.hidden = true;
    } catch (error) {
      status.textContent = error.message;
      button.disabled = false;
    }
  });
}

// All features that the page holds, ordered by what each contributes to the logit of a class.
function offerContributions(form, left) {
  const status = form.querySelector("[role=status]"), list = byId("firings"), field = form.elements.class, back = form.elements.back;
  let lines = [...list.children];
  form.hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    status.textContent = "The tower's head is asked …";
    try {
      const found = await load(`${form.dataset.path}?class=${encodeURIComponent(field.value)}`);
      byId("classes").replaceChildren(...found.classes.map((name) => make("option", { value: name })));
      byId("more")?.remove();
      byId("rest")?.removeAttribute("hidden");
      list.append(...left.splice(0).map((each) => firing(each)));
      lines = list.children.length > lines.length ? [...list.children] : lines;
      const most = Math.max(...found.values.map(Math.abs), 1e-12);
      lines.forEach((line, i) => {
        line.querySelector(".gives")?.remove();
        const value = found.values[i], text = `${value < 0 ? "−" : "+"}${number(Math.abs(value))}`;
        line.querySelector(".how").after(make("span", { class: `how gives${value < 0 ? " against" : ""}`, title: `${value < 0 ? "Against" : "For"} ${found.name}, in logits` },
          bar(Math.abs(value) / most), make("span", { class: "value" }, text)));
      });
      const order = lines.map((line, i) => [found.values[i], line]).sort((a, b) => b[0] - a[0]);
      list.append(...order.map(([, line]) => line));
      list.classList.add("giving");
      back.hidden = false;
      const sum = found.values.reduce((total, value) => total + value, 0);
      status.textContent = `All ${found.values.length} features together ${number(sum)} logits for ${found.name} above the mean class, to first order`
        + `${found.is_exact ? "." : ", through the tower's head alone: the blocks after the site are passed over."}`;
    } catch (error) {
      status.textContent = error.message;
    }
  });
  back.addEventListener("click", () => {
    list.append(...lines);
    lines.forEach((line) => line.querySelector(".gives")?.remove());
    list.classList.remove("giving");
    back.hidden = true;
    status.textContent = "";
  });
}

const giving = byId("contributions"), left = inlined("more-features") ?? [];
const picture = byId("picture"), more = byId("more"), similar = byId("similar"), zeroShot = byId("zero-shot"), tokens = byId("tokens");
if (picture?.dataset.full) showFullSize(picture);
if (more) showMore(more, left);
if (giving) offerContributions(giving, left);
if (similar) showSimilar(similar);
if (zeroShot) offerZeroShot(zeroShot);
if (tokens && Number(tokens.dataset.columns) > 1) {
  tokens.classList.add("square");
  tokens.style.gridTemplateColumns = `repeat(${tokens.dataset.columns}, 1fr)`;
}
