// Run in a page with an iframe for the gallery: does each of ACTIONS on a fresh page, and writes what is seen.
addEventListener("load", async () => {
  const results = {}, frame = document.querySelector("iframe");
  for (const [name, action] of Object.entries(ACTIONS)) {
    await new Promise(done => { frame.onload = done; frame.src = frame.src; });
    const page = frame.contentDocument, form = page.querySelector("form");
    const choose = (field, value) => {
      form.elements[field].value = value;
      form.dispatchEvent(new Event("input", {bubbles: true}));
    };
    const pick = value => {
      form.elements.sort.value = value;
      form.elements.sort.dispatchEvent(new Event("change", {bubbles: true}));
    };
    const click = column => page.querySelectorAll("thead th")[column].querySelector("button").click();
    eval(action);
    await new Promise(done => setTimeout(done, 50));
    const visible = row => frame.contentWindow.getComputedStyle(row).display !== "none";
    const rows = [...page.querySelector("tbody").rows].filter(visible);
    results[name] = {
      names: rows.map(row => row.querySelector("b").textContent), count: form.querySelector("output").textContent,
      none: !page.getElementById("none").hidden, form: !form.hidden,
      peaks: rows.map(row => row.dataset.peak), layers: rows.map(row => row.cells[3].dataset.sort),
      sorted: [...page.querySelectorAll("[aria-sort]")].map(cell => [cell.textContent, cell.getAttribute("aria-sort")]),
    };
  }
  document.body.dataset.results = JSON.stringify(results);
});
