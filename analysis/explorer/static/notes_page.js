// Adds the annotations of another machine to those of this run.

import { post } from "./api.js";

const MOST_BYTES = 10 * 2 ** 20;
const form = document.getElementById("import");
const state = form.querySelector("[role=status]");

form.addEventListener("submit", (event) => event.preventDefault());
form.elements.file.addEventListener("change", async (event) => {
  const file = event.target.files[0];
  if (file === undefined) return;
  try {
    if (file.size > MOST_BYTES) throw new Error("the file has more than 10 MiB.");
    const { n_features } = await post("annotations", await file.text());
    state.textContent = `Added those of ${n_features} features.`;
    location.reload();
  } catch (error) {
    state.textContent = `Not added: ${error.message}`;
    state.className = "warning";
  }
});
