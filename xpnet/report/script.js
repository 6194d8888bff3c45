"use strict";
// Pointing at a chart shows the values there. Without this script the page is complete but for that.
for (const plot of document.querySelectorAll("[data-chart]")) {
  const chart = JSON.parse(plot.dataset.chart);
  const cross = document.createElement("div"), tip = document.createElement("div");
  cross.className = "cross"; tip.className = "tip"; cross.hidden = tip.hidden = true;
  plot.append(cross, tip);
  const show = (v) => chart.percent ? (100 * v).toFixed(2) + " %" : Number(v.toPrecision(4)).toString();
  const line = (style, name, text) => {
    const row = document.createElement("div"), value = document.createElement("b");
    row.className = style; value.textContent = text;
    row.append(name + " ", value);
    return row;
  };
  const all = chart.series.flatMap((s) => s.points.map((p) => p[0]));
  const move = (event) => {
    if (!all.length) return;
    const box = plot.getBoundingClientRect(), [left, right] = chart.x;
    const at = left + (event.clientX - box.left) / box.width * (right - left);
    const x = all.reduce((best, v) => Math.abs(v - at) < Math.abs(best - at) ? v : best);
    const share = (x - left) / (right - left);
    tip.replaceChildren(line("", chart.unit, String(x)));
    for (const s of chart.series) {
      const point = s.points.find((p) => p[0] === x);
      if (point) tip.append(line(s.style, s.name, show(point[1])));
    }
    cross.style.left = 100 * share + "%";
    tip.style.left = share < 0.5 ? `calc(${100 * share}% + 10px)` : "";
    tip.style.right = share < 0.5 ? "" : `calc(${100 * (1 - share)}% + 10px)`;
    cross.hidden = tip.hidden = false;
  };
  plot.addEventListener("pointermove", move);
  plot.addEventListener("pointerdown", move);
  plot.addEventListener("pointerleave", () => { cross.hidden = tip.hidden = true; });
}
