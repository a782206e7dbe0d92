// The activation plot of the game: a stem a firing feature, at its number; the feature under the pointer says its number alone.

import { drawAxes, keepDrawn, theme, ticks, tickText } from "./axes.js";

export function drawActivations(canvas, { features, values, d_sae: size, clues }) {
  const most = Math.max(...values) * 1.06, marked = new Set(clues), asTicks = (list) => list.map((at) => ({ at, text: tickText(at) }));
  let pointed = -1, place;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Activations of the ${features.length} features that fire on the image, by the feature's number`);
  const redraw = keepDrawn(canvas, (context, width, height) => {
    const colours = theme(), box = { left: 50, top: 16, right: width - 10, bottom: height - 36 };
    place = drawAxes(context, box, {
      range: { x: [0, size], y: [0, most] }, xTicks: asTicks(ticks(0, size, Math.max(3, Math.min(8, width / 80)))),
      yTicks: asTicks(ticks(0, most, 4)), xLabel: "feature", yLabel: "activation",
    });
    features.forEach((feature, i) => {
      const x = place.x(feature), y = place.y(values[i]);
      context.strokeStyle = context.fillStyle = i === pointed ? colours.warn : marked.has(feature) ? colours.mark : colours.soft;
      context.lineWidth = 1.5;
      context.beginPath();
      context.moveTo(x, box.bottom);
      context.lineTo(x, y);
      context.stroke();
      context.beginPath();
      context.arc(x, y, marked.has(feature) ? 3.5 : 2, 0, 2 * Math.PI);
      context.fill();
    });
    if (pointed < 0) return;
    const x = place.x(features[pointed]), isLeft = x > width / 2;
    context.fillStyle = colours.ink;
    context.textAlign = isLeft ? "right" : "left";
    context.textBaseline = "bottom";
    context.fillText(`feature ${features[pointed]}`, x + (isLeft ? -6 : 6), Math.max(14, place.y(values[pointed])));
  }, 224);
  canvas.addEventListener("pointermove", (event) => {
    const corner = canvas.getBoundingClientRect(), x = event.clientX - corner.left, y = event.clientY - corner.top;
    let least = 12;  // pixels
    pointed = -1;
    features.forEach((feature, i) => {
      const away = Math.abs(place.x(feature) - x) + 0.05 * Math.abs(place.y(values[i]) - y);
      if (away < least) { least = away; pointed = i; }
    });
    canvas.dataset.pointed = pointed < 0 ? "" : features[pointed];
    redraw();
  });
  canvas.addEventListener("pointerleave", () => { pointed = -1; canvas.dataset.pointed = ""; redraw(); });
}
