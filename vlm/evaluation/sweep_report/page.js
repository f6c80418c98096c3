// The page is whole without this: it sorts the table of scores, and narrows what is shown.
"use strict";
const table = document.querySelector("table.scores");
const heads = [...table.querySelectorAll(".heads th")];
const groups = [...table.querySelectorAll(".groups th")];

function sortBy(column) {
  const head = heads[column], body = table.tBodies[0];
  const down = head.getAttribute("aria-sort") !== "descending";
  const rows = [...body.rows].map((row, place) => ({ row, place: Number(row.dataset.place ??= place), value: row.cells[column].dataset.value }));
  heads.forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  rows.sort((a, b) => {
    if (column === 0) return down ? b.place - a.place : a.place - b.place;
    if (a.value === undefined || b.value === undefined) return (a.value === undefined) - (b.value === undefined) || a.place - b.place;
    return (down ? b.value - a.value : a.value - b.value) || a.place - b.place;
  });
  rows.forEach(({ row }) => body.append(row));
}

function narrow() {
  const wanted = [...document.querySelectorAll("select[data-key]")].map((one) => [one.dataset.key, one.value]);
  const fits = (item) => wanted.every(([key, value]) => !value || !item.dataset.task || (item.dataset[key] ?? value) === value);
  const shown = heads.map((head, column) => column === 0 || fits(head));
  for (const row of [...table.tBodies[0].rows, ...(table.tFoot?.rows ?? []), heads[0].parentNode])
    [...row.cells].forEach((cell, column) => { cell.hidden = !shown[column]; });
  let column = 1;
  for (const group of groups) {
    const size = Number(group.dataset.size ??= group.colSpan);
    const left = shown.slice(column, column + size).filter(Boolean).length;
    group.hidden = !left;
    group.colSpan = left || 1;
    column += size;
  }
  for (const item of document.querySelectorAll("figure[data-task], tr[data-task], details[data-task]")) item.hidden = !fits(item);
}

heads.forEach((head, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.addEventListener("click", () => sortBy(column));
  head.append(button);
});
document.querySelectorAll("select[data-key]").forEach((one) => one.addEventListener("change", narrow));
document.querySelectorAll(".controls").forEach((one) => { one.hidden = false; narrow(); });
