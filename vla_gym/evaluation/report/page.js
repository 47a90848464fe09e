"use strict";
// Sorting, filtering and playing. Without scripts the page says the same, in its first order.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// A click on a header sorts: numbers from the largest, names from A; again turns it round, and a
// third one brings the first order back. What is missing stays last.
for (const table of all("table.sortable")) {
  const body = table.tBodies[0], first = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  heads.forEach((head, column) => {
    const kind = head.dataset.sort;
    if (!kind) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...[...head.childNodes].filter(node => node.nodeName !== "SMALL"));
    head.prepend(button);
    head.setAttribute("aria-sort", "none");
    const orders = kind === "number" ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
    button.addEventListener("click", () => {
      const order = orders[(orders.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
      heads.forEach(other => other.dataset.sort && other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", order);
      const sign = order === "descending" ? -1 : 1;
      const compare = (a, b) => {
        const x = value(a, column), y = value(b, column);
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (kind === "number" ? x - y : x.localeCompare(y, "en", { numeric: true }));
      };
      body.append(...(order === "none" ? first : [...first].sort(compare)));
    });
  });
}

// The filter hides tasks and policies wherever the page shows them one by one.
const filter = document.querySelector(".filter");
if (filter) {
  const search = filter.querySelector("input[type=search]"), state = filter.querySelector("output");
  const tasks = all("tr[data-words]");
  const policies = all("input[name=policy]", filter);
  const off = name => new Set(all(`input[name=${name}]:not(:checked)`, filter).map(box => box.value));
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const suites = off("suite"), groups = off("group"), silent = off("policy");
    const shown = new Set(tasks.filter(({ dataset }) =>
      words.every(word => dataset.words.includes(word)) &&
      !suites.has(dataset.suite) && !groups.has(dataset.group)).map(row => row.dataset.task));
    for (const part of all("[data-task], [data-policy]")) {
      const { task, policy } = part.dataset;
      part.hidden = (task !== undefined && !shown.has(task)) || (policy !== undefined && silent.has(policy));
    }
    state.textContent = `${shown.size} of ${tasks.length} tasks`;
    state.className = shown.size < tasks.length || silent.size ? "partial" : "";
    if (silent.size) state.textContent += `, ${policies.length - silent.size} of ${policies.length} policies`;
  };
  filter.addEventListener("input", apply);
  filter.addEventListener("submit", event => event.preventDefault());
  filter.reset();
  filter.hidden = false;
  apply();
}

// On paper everything is open, and closed again afterwards.
let opened = [];
addEventListener("beforeprint", () => {
  opened = all("details:not([open])");
  opened.forEach(part => part.open = true);
});
addEventListener("afterprint", () => opened.forEach(part => part.open = false));

// Play what is on the screen; nothing moves for a reader who asked for less motion.
if (!matchMedia("(prefers-reduced-motion: reduce)").matches && "IntersectionObserver" in window) {
  const watch = new IntersectionObserver(entries => entries.forEach(({ isIntersecting, target }) =>
    isIntersecting ? target.play().catch(() => {}) : target.pause()));
  all("video").forEach(video => watch.observe(video));
}
