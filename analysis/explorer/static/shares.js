// Shares as people read them: never 100 % for less than all.

import { number } from "./api.js";

// As per cent, with so many significant digits; more where a share below 1 would be rounded to 100 %.
export function percent(share, digits = 2, write = number) {
  if (share === null || !Number.isFinite(share)) return "–";
  while (share < 1 && Number((100 * share).toPrecision(digits)) >= 100 && digits < 15) digits += 1;
  return `${write(100 * share, digits)} %`;
}

// A softmax's chance as per cent: it gives neither 0 nor 1.
export const chance = (share) =>
  share === null ? "–" : share < 0.0005 ? "< 0.1 %" : share >= 0.9995 ? "> 99.9 %" : `${(100 * share).toFixed(1)} %`;
