"use strict";
// The page is whole without this script, which only orders, hides and shows what is there. Text from the records reaches
// the page through textContent only.
function key(row, column) {
  const cell = row.cells[column];
  return cell.dataset.sort === undefined ? cell.textContent : Number(cell.dataset.sort);
}

// Cells without a number stand after those with one, whichever way a column is sorted.
function compare(a, b, sign) {
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return sign * a.localeCompare(b, "en", { numeric: true });
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows], sign = down ? -1 : 1;
    rows.sort((a, b) => compare(key(a, column), key(b, column), sign));
    body.append(...rows);
  }));
}

function option(select, text, value) {
  const made = document.createElement("option");
  made.textContent = text;
  made.value = value;
  select.append(made);
}

function control(place, text, field) {
  const label = document.createElement("label");
  label.textContent = text;
  label.append(field);
  place.append(label);
}

function filterable(table) {
  const heads = [...table.tHead.rows[0].cells], rows = [...table.tBodies[0].rows], chosen = new Map();
  const columns = heads.map((head, column) => column).filter((column) => heads[column].hasAttribute("data-filter"));
  if (rows.length < 2 || !columns.length) return;
  const place = document.createElement("div");
  place.className = "controls";
  const apply = () => rows.forEach((row) => {
    row.hidden = [...chosen].some(([column, wanted]) => wanted !== null && row.cells[column].textContent !== wanted);
  });
  for (const column of columns) {
    const values = [...new Set(rows.map((row) => row.cells[column].textContent))];
    const select = document.createElement("select");
    option(select, "all", "");
    values.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    values.forEach((value, number) => option(select, value, String(number)));
    select.addEventListener("change", () => {
      chosen.set(column, select.value === "" ? null : values[Number(select.value)]);
      apply();
    });
    control(place, heads[column].textContent, select);
  }
  table.parentElement.before(place);
}

function switchable() {
  const figures = [...document.querySelectorAll("#figures figure")];
  if (figures.length < 2) return;
  const select = document.createElement("select"), place = document.createElement("div");
  select.id = "metric";
  place.className = "controls";
  figures.forEach((figure, number) => option(select, figure.dataset.title, String(number)));
  const show = () => figures.forEach((figure, number) => { figure.hidden = String(number) !== select.value; });
  const first = figures.findIndex((figure) => figure.dataset.title.startsWith("matching score"));
  select.value = String(Math.max(0, first));
  select.addEventListener("change", show);
  control(place, "Figure", select);
  figures[0].before(place);
  show();
}

for (const table of document.querySelectorAll("table.sortable")) {
  filterable(table);
  sortable(table);
}
switchable();
