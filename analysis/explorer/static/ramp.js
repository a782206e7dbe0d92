// Colours of label entropy: a ramp that is even in lightness and safe for colour-blind readers, with the most contrast
// against the page at its low end, where features are most specific; grey where it is undefined.
//
//   ramp(isDark, n)          n colours [red, green, blue], low to high
//   undefinedColour(isDark)  the grey
//   isDark()                 whether the page is, now
//   css([r, g, b])           as CSS

const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis, matplotlib's

function colourAt(t) {
  const place = Math.min(t * (STOPS.length - 1), STOPS.length - 1 - 1e-9), i = Math.floor(place);
  return STOPS[i].map((low, channel) => Math.round(low + (STOPS[i + 1][channel] - low) * (place - i)));
}

export function ramp(isDark, n) {
  const [low, high] = isDark ? [1, 0.28] : [0, 0.86];
  return Array.from({ length: n }, (_, i) => colourAt(low + ((high - low) * i) / Math.max(1, n - 1)));
}

export const undefinedColour = (isDark) => (isDark ? [96, 102, 110] : [178, 183, 190]);

export const css = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;

export const isDark = () => getComputedStyle(document.documentElement).colorScheme.startsWith("dark");
