// A click on a header sorts the rows of TABLE by that column, a second one the other way round.
(() => {
  const table = document.getElementById("TABLE");
  const value = (row, column) => row.cells[column].textContent.trim();
  const number = (text) => parseFloat(text.replace("−", "-"));
  table.querySelectorAll("thead th").forEach((header, column) => {
    header.tabIndex = 0;
    header.style.cursor = "pointer";
    const sort = () => {
      const down = header.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].sort((one, other) => {
        const [a, b] = [value(one, column), value(other, column)];
        const both = [number(a), number(b)];
        return both.some(Number.isNaN) ? a.localeCompare(b) : both[0] - both[1];
      });
      table.tBodies[0].append(...(down ? rows.reverse() : rows));
    };
    header.addEventListener("click", sort);
    header.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
})();
