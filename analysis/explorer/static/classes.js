// The list of classes, narrowed as one types; where it has several pages, the server searches them.

import { number } from "./api.js";

const list = document.getElementById("classes");
const form = document.getElementById("classes-form");

function narrow(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  let n = 0;
  for (const item of list.children) {
    const link = item.querySelector("a");
    const label = /(\d+)(\.html)?$/.exec(link.getAttribute("href"))?.[1];
    item.hidden = !words.every((word) => link.textContent.toLowerCase().includes(word) || word === label);
    n += !item.hidden;
  }
  document.getElementById("count").textContent = `${number(n)} classes`;
}

if (form !== null && list.dataset.whole === "True") {
  form.addEventListener("input", (event) => {
    const text = event.target.value;
    history.replaceState(null, "", `${location.pathname}${text.trim() === "" ? "" : `?q=${encodeURIComponent(text.trim())}`}`);
    narrow(text);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  const asked = new URLSearchParams(location.search).get("q");
  if (asked) {
    form.elements.q.value = asked;
    narrow(asked);
  }
}
