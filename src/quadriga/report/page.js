"use strict";

for (const chart of document.querySelectorAll(".chart[data-points]")) {
  const points = JSON.parse(chart.dataset.points);
  const plot = chart.querySelector(".plot");
  const [cursor, dot, tip] = [".cursor", ".dot", ".tip"].map((name) => plot.querySelector(name));
  const unit = chart.dataset.unit ? " " + chart.dataset.unit : "";

  const show = (event) => {
    const box = plot.getBoundingClientRect();
    const across = (event.clientX - box.left) / box.width;
    let nearest = points[0];
    for (const point of points) {
      if (Math.abs(point[0] - across) < Math.abs(nearest[0] - across)) nearest = point;
    }
    const [x, y, step, value, raw] = nearest;
    cursor.style.left = dot.style.left = 100 * x + "%";
    dot.style.bottom = 100 * y + "%";
    tip.textContent = "step " + step + ": " + value + unit + (raw ? " (raw " + raw + ")" : "");
    for (const part of [cursor, dot, tip]) part.hidden = false;
    const room = box.width - tip.offsetWidth;
    tip.style.left = Math.min(Math.max(0, room), Math.max(0, x * box.width - tip.offsetWidth / 2)) + "px";
  };
  const hide = () => {
    for (const part of [cursor, dot, tip]) part.hidden = true;
  };
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerdown", show);
  plot.addEventListener("pointerleave", hide);
}

const filter = document.querySelector(".config input");
if (filter) {
  const rows = [...document.querySelectorAll(".config tbody tr")];
  filter.addEventListener("input", () => {
    const wanted = filter.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}

const copy = document.querySelector(".copy");
if (copy) {
  copy.addEventListener("click", async () => {
    const text = copy.parentElement.querySelector("pre").textContent;
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = "copied";
    } catch {
      copy.textContent = "select it";
    }
  });
}
