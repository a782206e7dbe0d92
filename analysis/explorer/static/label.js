// More pictures of the class that a feature takes: all its firings are searched for them, at a click.

import { load, make, number, url } from "./api.js";

for (const table of document.querySelectorAll(".taken")) {
  for (const line of table.tBodies[0].rows) {
    const cell = line.querySelector(".pictures");
    const thumbs = cell.querySelector(".thumbs");
    const more = make("button", { type: "button", "aria-label": `More pictures of feature ${line.dataset.feature}` }, cell.querySelector("img") ? "more" : "show");
    more.addEventListener("click", async () => {
      more.disabled = true;
      try {
        const { pictures, sensitive } = await load(`c/${table.dataset.label}/f/${line.dataset.feature}.json`);
        thumbs.classList.toggle("sensitive", sensitive);
        thumbs.replaceChildren(...pictures.map(({ row, value, name }) => make("a", { href: url.image(row), title: number(value) },
          make("img", { src: url.thumbnail(row), alt: name, loading: "lazy", width: 48, height: 48 }))));
        more.remove();
      } catch (error) {
        more.replaceWith(make("span", { class: "warning" }, error.message));
      }
    });
    cell.append(" ", more);
  }
}
