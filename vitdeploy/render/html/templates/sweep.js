"use strict";
// Hides the trials beyond the limits, and draws the front of those that are left. Without it the page shows all.
const form = document.getElementById("filters");
const rows = [...document.querySelectorAll("tr[data-name]")];
const inputs = [...form.querySelectorAll("input")];
const selects = [...form.querySelectorAll("select")];

function passes(row) {
  for (const input of inputs) {
    if (input.value === "") continue;
    const figure = row.dataset[input.dataset.figure];
    if (figure === undefined) return false;
    if (input.dataset.direction === "max" ? Number(figure) > Number(input.value) : Number(figure) < Number(input.value)) return false;
  }
  return selects.every((select) => select.value === "" || [...row.querySelectorAll("span[data-axis]")].some(
    (cell) => cell.dataset.axis === select.dataset.axis && cell.dataset.value === select.value));
}

function drawFront(path, points) {
  const able = points.filter((point) => point.dataset.group === path.dataset.group && point.dataset.valid === "yes");
  able.sort((a, b) => a.dataset.latency - b.dataset.latency || b.dataset.good - a.dataset.good);
  let best = -Infinity, line = "";
  for (const point of able) {
    const on = Number(point.dataset.good) > best;
    const badge = point.querySelector(".badge");
    badge.classList.toggle("on", on);
    badge.classList.toggle("off", !on);
    if (!on) continue;
    best = Number(point.dataset.good);
    line += line === "" ? `M${point.dataset.x} ${point.dataset.y}` : `H${point.dataset.x}V${point.dataset.y}`;
  }
  path.setAttribute("d", line);
}

function apply() {
  const shown = new Set(rows.filter(passes).map((row) => row.dataset.name));
  for (const row of rows) row.classList.toggle("hidden", !shown.has(row.dataset.name));
  for (const svg of document.querySelectorAll(".chart svg")) {
    const points = [...svg.querySelectorAll(".point")];
    for (const point of points) point.classList.toggle("hidden", !shown.has(point.dataset.name));
    const left = points.filter((point) => shown.has(point.dataset.name));
    for (const path of svg.querySelectorAll(".frontier")) drawFront(path, left);
  }
  document.getElementById("shown").textContent = `${shown.size} of ${rows.length} trials`;
}

form.hidden = false;
form.addEventListener("input", apply);
form.addEventListener("reset", () => setTimeout(apply));
form.addEventListener("submit", (event) => event.preventDefault());
apply();
