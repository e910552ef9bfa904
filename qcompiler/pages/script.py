"""The script of pages that sort: no library, no network, no state outside of the page."""

__all__ = ["SORTING"]

SORTING = """
"use strict";
(() => {
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim();
    if (text === "exact") return Infinity;
    const found = Number.parseFloat(text);
    return Number.isNaN(found) ? text : found;
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number"
    ? a - b : typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
  const sort = (title) => {
    const body = title.closest("table").tBodies[0];
    const column = title.cellIndex;
    const order = title.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of title.parentElement.cells) other.removeAttribute("aria-sort");
    title.setAttribute("aria-sort", order === 1 ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => [value(row, column), row]);
    rows.sort((a, b) => order * compare(a[0], b[0]));
    body.append(...rows.map(([, row]) => row));
  };
  for (const title of document.querySelectorAll("th")) {
    title.tabIndex = 0;
    title.addEventListener("click", () => sort(title));
    title.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(title); });
  }
})();
"""
"""A click, or Enter, on the title of a column sorts the rows of its table: the smallest first, then the largest."""
