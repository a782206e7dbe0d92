// A person's own name of the feature that is shown: saved, undone, removed; the automatic one stays in names.tsv.

import { inlined, make, post } from "./api.js";

function keepName() {
  const form = document.querySelector("#naming form");
  const data = inlined("naming-data");
  if (form === null || data === null) return;
  const { own, undo, clear } = form.elements;
  const state = form.querySelector(".state");
  let kept = data.own;
  let before = null;  // what the last change replaced

  function show() {
    const name = kept || data.automatic;
    const heading = document.querySelector(".feature-head h1");
    heading.querySelector(".name")?.remove();
    if (name) heading.append(make("span", { class: "name", dir: "auto" }, name));
    document.getElementById("own-badge").hidden = kept === "";
    undo.hidden = before === null;
    clear.hidden = kept === "";
  }

  let saving = Promise.resolve();  // one after the other: Enter both submits and changes
  const save = (name, isUndo = false) => { saving = saving.then(() => send(name, isUndo)); };

  async function send(name, isUndo) {
    if (name === kept) return;
    state.textContent = "Saving …";
    try {
      const answer = await post(`annotations/${data.feature}`, { name, name_before: kept });
      before = isUndo ? null : kept;
      kept = own.value = answer.name;
      state.textContent = kept ? "Saved." : "Removed.";
      state.className = "state soft";
      show();
    } catch (error) {
      state.textContent = `Not saved: ${error.message}`;
      state.className = "state warning";
    }
  }

  form.addEventListener("submit", (event) => { event.preventDefault(); save(own.value.trim()); });
  own.addEventListener("change", () => save(own.value.trim()));
  undo.addEventListener("click", () => save(before, true));
  clear.addEventListener("click", () => save(""));
}

keepName();
