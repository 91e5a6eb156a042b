// Filters and sorts the table. Without it the page shows every row, in the order in which it was written.
const table = document.querySelector("table"), body = table.tBodies[0], rows = [...body.rows];
const form = document.querySelector("form"), count = form.querySelector("output");
const buttons = [...table.querySelectorAll("thead button")];
const words = new Map(rows.map(row => [row, row.textContent.toLowerCase()]));

function value(name) {
  return form.elements[name]?.value ?? "";
}

function fits(row) {
  const gigabytes = Number(value("gpu"));
  return !gigabytes || row.dataset.gpus === "1" && Number(row.dataset.peak) <= gigabytes * 1e9 * (1 - Number(table.dataset.free));
}

function filter() {
  const wanted = value("text").toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of rows) {
    row.hidden = !(wanted.every(word => words.get(row).includes(word))
      && (!value("stage") || JSON.parse(row.dataset.stages).includes(value("stage")))
      && (!value("status") || row.dataset.status === value("status"))
      && (!value("pack") || row.dataset.pack === value("pack")) && fits(row));
  }
  const left = rows.filter(row => !row.hidden).length;
  count.value = `${left} of ${rows.length} recipes`;
  document.getElementById("none").hidden = left > 0;
}

function key(row, column) {
  return row.cells[column].dataset.sort;
}

function compare(one, other) { // cells without a value last
  if (one === "" || other === "") return (one === "") - (other === "");
  return Number.isNaN(Number(one) + Number(other)) ? one.localeCompare(other) : Number(one) - Number(other);
}

function sort(column, descending) {
  const direction = descending ? -1 : 1, empty = row => key(row, column) === "";
  const sorted = column === null ? rows : rows.toSorted((one, other) =>
    compare(key(one, column), key(other, column)) * (empty(one) || empty(other) ? 1 : direction));
  body.append(...sorted);
  for (const button of buttons) {
    const cell = button.closest("th");
    if (cell.cellIndex === column) cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  }
  form.elements.sort.value = column === null ? "" : `${column} ${descending ? 1 : 0}`;
}

form.hidden = false;
form.addEventListener("input", filter);
form.addEventListener("submit", event => event.preventDefault());
form.addEventListener("reset", () => setTimeout(() => { sort(null); filter(); }));
form.elements.sort.addEventListener("change", event => {
  const [column, descending] = event.target.value.split(" ").map(Number);
  if (event.target.value) sort(column, descending === 1);
  else sort(null);
});
for (const button of buttons) {
  button.disabled = false;
  button.addEventListener("click", () => {
    const cell = button.closest("th");
    sort(cell.cellIndex, cell.getAttribute("aria-sort") === "ascending");
  });
}
filter();
