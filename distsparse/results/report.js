"use strict";
window.addEventListener("error", (event) => {
  document.getElementById("errors").textContent += `${event.message} `;
});

// A trial's rows are found by its key: links, points and this search all lead to the table of trials.
function choose(key) {
  document.querySelectorAll("tr.chosen").forEach((row) => row.classList.remove("chosen"));
  const row = document.getElementById(`trial-${key}`);
  if (!row) return;
  row.classList.add("chosen");
  row.scrollIntoView({ block: "center", behavior: "smooth" });
}

function draw(figure) {
  const data = JSON.parse(document.getElementById(`${figure.id}-data`).textContent);
  figure.textContent = "";
  // Named one by one, so that none of the buttons is one that would send the data somewhere.
  const buttons = data.layout.scene ? ["toImage", "orbitRotation", "resetCameraDefault3d"]
    : ["toImage", "zoom2d", "pan2d", "resetScale2d"];
  Plotly.newPlot(figure, data.data, data.layout, { responsive: true, displaylogo: false, modeBarButtons: [buttons] }).then(() => {
    figure.dataset.drawn = "yes";
    figure.on("plotly_click", (event) => {
      const key = event.points[0].customdata;
      if (key) choose(key);
    });
  }).catch((error) => { document.getElementById("errors").textContent += `${error} `; });
}

function cellValue(row, place) {
  const cell = row.cells[place];
  return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
}

function sortBy(header) {
  const body = header.closest("table").tBodies[0];
  const place = header.cellIndex;
  const down = header.dataset.order === "up";
  header.dataset.order = down ? "down" : "up";
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [cellValue(a, place), cellValue(b, place)];
    if (typeof x === "number" && typeof y === "number") return Number.isNaN(x) - Number.isNaN(y) || x - y;
    return String(x).localeCompare(String(y));
  });
  if (down) rows.reverse();
  body.append(...rows);
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("th").forEach((header) => header.addEventListener("click", () => sortBy(header)));
  document.querySelectorAll("a.trial").forEach((link) =>
    link.addEventListener("click", (event) => { event.preventDefault(); choose(link.dataset.key); }));
  document.querySelectorAll("input[type=search]").forEach((input) =>
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      for (const row of document.getElementById(input.dataset.table).tBodies[0].rows)
        row.hidden = !row.textContent.toLowerCase().includes(wanted);
    }));
  document.querySelectorAll(".figure").forEach(draw);
});
