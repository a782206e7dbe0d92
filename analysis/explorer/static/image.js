// The page of an image: its picture at full size, more features, similar images, zero-shot on demand.

import { grid, inlined, load } from "./api.js";
import { chances, firing } from "./firings.js";

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

const picture = byId("picture"), more = byId("more"), similar = byId("similar"), zeroShot = byId("zero-shot"), tokens = byId("tokens");
if (picture?.dataset.full) showFullSize(picture);
if (more) showMore(more, inlined("more-features"));
if (similar) showSimilar(similar);
if (zeroShot) offerZeroShot(zeroShot);
if (tokens && Number(tokens.dataset.columns) > 1) {
  tokens.classList.add("square");
  tokens.style.gridTemplateColumns = `repeat(${tokens.dataset.columns}, 1fr)`;
}
