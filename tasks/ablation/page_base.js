// What the other scripts use: the data of the page, nodes of plain text, sortable tables, the colours of systems.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

// A node with attributes, and children that are nodes or text. Text is never read as HTML.
function node(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(one, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "on") for (const [event, what] of Object.entries(value)) one.addEventListener(event, what);
    else if (value !== false && value !== null && value !== undefined) one.setAttribute(key, value === true ? "" : value);
  }
  one.append(...children.filter((child) => child !== null && child !== undefined));
  return one;
}

function options(select, pairs) {
  select.replaceChildren(...pairs.map(([value, label]) => node("option", { value }, label)));
}

const names = [...new Set([...data.systems.map((system) => system.name), ...data.curves.flatMap((curve) => curve.lines.map((line) => line.name))])];
const colour = (name) => `c${names.indexOf(name) % 8}`;

function legend(place, shown) {
  place.replaceChildren(...shown.map((name) => node("span", {}, node("span", { class: `mark ${colour(name)}` }), name)));
}

function show(section) {
  byId(section).hidden = false;
  for (const link of document.querySelectorAll(`[data-section="${section}"]`)) link.hidden = false;
}

function plain(number) {
  if (number === null || number === undefined) return "";
  const size = Math.abs(number);
  return size >= 100 ? number.toFixed(1) : size >= 1.5 ? number.toFixed(2) : number.toFixed(3);
}

// Tables whose columns sort: by number where cells begin with one, else by text; empty cells stay below.
function sortable(table) {
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const button = node("button", { type: "button", title: "sort" }, ...cell.childNodes);
    cell.replaceChildren(button);
    button.addEventListener("click", () => {
      const descending = cell.getAttribute("aria-sort") === "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", descending ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows].map((row) => [value(row.cells[column].textContent), row]);
      rows.sort(([one], [two]) => compared(one, two) * (descending || one === "" || two === "" ? 1 : -1));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}

function value(text) {
  const number = parseFloat(text.replace(/,/g, "").replace(/^(<|\+-)\s*/, ""));
  return Number.isNaN(number) || !/^[-+<\d]/.test(text.trim()) ? text.trim() : number;
}

function compared(one, two) {
  if (one === "" || two === "") return (one === "") - (two === "");
  if (typeof one === "number" && typeof two === "number") return one - two;
  return String(one).localeCompare(String(two));
}

document.querySelectorAll("table.sortable").forEach(sortable);

const THEMES = ["", "light", "dark"];
byId("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme || "") + 1) % THEMES.length];
  document.documentElement.dataset.theme = next;
  byId("theme").setAttribute("aria-label", `Colours: ${next || "as the system has them"}`);
  byId("theme").textContent = { "": "◐", light: "☀", dark: "☾" }[next];
});
