// Tags, note and sensitive mark of the feature that is shown: kept as they are typed, a moment after the last key.

import { inlined, post } from "./api.js";

const DELAY_MS = 600;

function keepNotes() {
  const form = document.querySelector("#notes form");
  const kept = inlined("notes-data");
  if (form === null || kept === null) return;
  const { tags, note, sensitive } = form.elements;
  const state = form.querySelector(".state");
  const listOf = (text) => text.split(",").map((tag) => tag.trim()).filter(Boolean);
  const said = () => ({ tags: listOf(tags.value), note: note.value, sensitive: sensitive.checked });
  let timer = null;
  let saving = Promise.resolve();

  // Only what was changed here is sent, so that what another tab changed stays.
  function changes() {
    const now = said();
    const found = {};
    if (now.tags.join() !== kept.tags.join()) found.tags = now.tags;
    if (now.note !== kept.note) Object.assign(found, { note: now.note, note_before: kept.note });
    if (now.sensitive !== kept.sensitive) found.sensitive = now.sensitive;
    return Object.keys(found).length === 0 ? null : found;
  }

  async function save(isLeaving = false) {
    const changed = changes();
    if (changed === null) return;
    const sent = said();
    state.textContent = "Saving …";
    try {
      const answer = await post(`annotations/${kept.feature}`, changed, { keepalive: isLeaving });
      Object.assign(kept, sent, { tags: answer.tags, sensitive: answer.sensitive });
      if ("note" in changed) kept.note = sent.note;
      if ("tags" in changed && document.activeElement !== tags) tags.value = answer.tags.join(", ");
      state.textContent = "Saved.";
      state.classList.remove("warning");
    } catch (error) {
      state.textContent = `Not saved: ${error.message}`;
      state.classList.add("warning");
    }
  }

  const saveSoon = (wait) => {
    clearTimeout(timer);
    timer = setTimeout(() => { saving = saving.then(() => save()); }, wait);
  };
  form.addEventListener("input", () => saveSoon(DELAY_MS));
  form.addEventListener("change", () => saveSoon(0));
  form.addEventListener("submit", (event) => { event.preventDefault(); saveSoon(0); });
  sensitive.addEventListener("change", () => {
    for (const grid of document.querySelectorAll("[data-own-grid], main .grid:not(.small)")) grid.classList.toggle("sensitive", sensitive.checked);
  });
  // Left before the moment has passed: what was typed is sent on the way out.
  window.addEventListener("pagehide", () => { if (changes() !== null) save(true); });
}

keepNotes();
