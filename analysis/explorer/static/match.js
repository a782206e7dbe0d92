// On a feature's page, where several runs are explored: the nearest features of the others, once they have been matched.

import { inlined, isExport, load, make, number } from "./api.js";

const { top: toTop, suffix } = document.documentElement.dataset;

// One line below the badges, such as "Best match in run-x16: 812, cosine 0.93, correlation 0.88".
async function showMatches() {
  const found = await load(`match/${inlined("feature-id")}.json`);
  for (const { run, root, feature, cosine, correlation, is_shown } of found) {
    // an export holds the other runs' features that are alive and outside the ultra-low-density cluster
    const href = isExport && !is_shown ? null : `${toTop}${root}/f/${feature}${suffix}`;
    const link = make("a", { href }, String(feature));
    const alike = correlation === null ? "" : `, correlation ${number(correlation)}`;
    document.querySelector(".under")?.after(make("p", { class: "soft match" }, `Best match in ${run}: `, link, `, cosine ${number(cosine)}${alike}`));
  }
}

showMatches().catch(() => { /* the page is whole without this line */ });
