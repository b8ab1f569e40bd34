// Learning curves, and scores of groups with their intervals, as SVG of the width that is there.

const WIDE = 1000;

// Round numbers between two values, for an axis.
function ticks(low, high, count) {
  const step = 10 ** Math.floor(Math.log10((high - low) / count || 1));
  const wide = [1, 2, 5, 10].map((factor) => factor * step).find((size) => (high - low) / size <= count) || 10 * step;
  const found = [];
  for (let at = Math.ceil(low / wide) * wide; at <= high + wide / 1e6; at += wide) found.push(Number(at.toPrecision(10)));
  return found;
}

function bounds(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
  return [low - margin, high + margin];
}

function canvas(place, height, label) {
  const width = Math.min(place.clientWidth || 320, WIDE);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  svg.style.maxWidth = `${width}px`;
  place.replaceChildren(svg);
  return [svg, width];
}

function text(x, y, anchor, words) {
  return drawn("text", { x, y, "text-anchor": anchor }, words);
}

function drawCurve() {
  const curve = data.curves[byId("curve").value];
  const place = byId("curve-plot");
  const height = 280;
  const [svg, width] = canvas(place, height, `${curve.name} over steps`);
  const points = curve.lines.flatMap((line) => line.points).filter((point) => point[1] !== null);
  legend(byId("curve-legend"), [...new Set(curve.lines.map((line) => line.name))]);
  if (!points.length) return;
  const [left, right, top, bottom] = [56, width - 12, 10, height - 36];
  const [first, last] = bounds(points.map((point) => point[0]));
  const [low, high] = bounds(points.map((point) => point[1]));
  const x = (step) => left + ((step - first) / (last - first)) * (right - left);
  const y = (one) => bottom - ((one - low) / (high - low)) * (bottom - top);
  for (const at of ticks(low, high, 5)) {
    svg.append(drawn("line", { class: "axis", x1: left, x2: right, y1: y(at), y2: y(at) }), text(left - 6, y(at) + 4, "end", String(at)));
  }
  for (const at of ticks(first, last, Math.max(2, Math.floor(width / 80))).filter((step) => step >= 0)) svg.append(text(x(at), bottom + 16, "middle", String(at)));
  svg.append(text((left + right) / 2, height - 4, "middle", "step"));
  for (const line of curve.lines) {
    const sound = line.points.filter((point) => point[1] !== null);
    const label = `${line.name}${line.seed ? ` seed=${line.seed}` : ""}`;
    const group = drawn("g", { class: colour(line.name) }, drawn("title", {}, label));
    group.append(drawn("path", { d: sound.map(([step, one], at) => `${at ? "L" : "M"}${x(step)},${y(one)}`).join("") }));
    for (const [step, one] of sound) {
      group.append(drawn("circle", { cx: x(step), cy: y(one), r: 3 }, drawn("title", {}, `${label}, step ${step}: ${plain(one)}`)));
    }
    svg.append(group);
  }
}

function chosenGroup() {
  const found = data.groups[byId("group-field").value];
  const score = data.groupScores[byId("group-score").value];
  return [found, score, found.groups.filter((group) => group.scores[score.name])];
}

function drawGroups() {
  const [field, score, groups] = chosenGroup();
  const place = byId("group-plot");
  const shown = data.systems.map((system) => system.name);
  legend(byId("group-legend"), shown);
  groupTable(field, score, groups);
  const all = groups.flatMap((group) => group.scores[score.name]).filter(Boolean).flat().filter((one) => one !== null);
  if (!all.length) return void place.replaceChildren(node("p", { class: "quiet" }, "This score counts none of these utterances."));
  const label = `${score.label} by ${field.name}`;
  if (field.ordered) drawStretches(place, score, groups, all, label);
  else drawNames(place, score, groups, all, label);
}

// Numbers in order: groups across, scores up, a line for each system.
function drawStretches(place, score, groups, all, label) {
  const height = 300;
  const [svg, width] = canvas(place, height, label);
  const [left, right, top, bottom] = [50, width - 8, 10, height - 66];
  const [low, high] = bounds(all);
  const wide = (right - left) / groups.length;
  const y = (one) => bottom - ((one - low) / (high - low)) * (bottom - top);
  for (const at of ticks(low, high, 5)) {
    svg.append(drawn("line", { class: "axis", x1: left, x2: right, y1: y(at), y2: y(at) }), text(left - 6, y(at) + 4, "end", String(at)));
  }
  groups.forEach((group, at) => {
    const lines = [...group.label.split(" to ").map((part, place, parts) => (place < parts.length - 1 ? `${part} to` : part)), `n=${group.count}`];
    lines.forEach((line, down) => svg.append(text(left + wide * (at + 0.5), bottom + 16 * (down + 1), "middle", line)));
  });
  data.systems.forEach((system, number) => {
    const shift = (number - (data.systems.length - 1) / 2) * Math.min(8, (wide * 0.6) / data.systems.length);
    const points = groups.map((group, at) => [left + wide * (at + 0.5) + shift, group.scores[score.name][number], group]).filter((one) => one[1]);
    const line = drawn("g", { class: colour(system.name) });
    line.append(drawn("path", { d: points.map(([at, [one]], first) => `${first ? "L" : "M"}${at},${y(one)}`).join("") }));
    for (const [at, [one, least, most], group] of points) {
      if (least !== null) line.append(drawn("line", { class: "range", x1: at, x2: at, y1: y(least), y2: y(most) }));
      line.append(drawn("circle", { cx: at, cy: y(one), r: 4 }, drawn("title", {}, said(system, group, score, [one, least, most]))));
    }
    svg.append(line);
  });
}

// Names: groups down, scores across, a dot with its interval for each system.
function drawNames(place, score, groups, all, label) {
  const line = 14;
  const tall = 24 + line * data.systems.length;
  const height = 30 + tall * groups.length;
  const [svg, width] = canvas(place, height, label);
  const [left, right] = [12, width - 12];
  const [low, high] = bounds(all);
  const x = (one) => left + ((one - low) / (high - low)) * (right - left);
  for (const at of ticks(low, high, Math.max(2, Math.floor(width / 80)))) {
    svg.append(drawn("line", { class: "axis", x1: x(at), x2: x(at), y1: 6, y2: height - 22 }), text(x(at), height - 6, "middle", String(at)));
  }
  groups.forEach((group, row) => {
    const top = 4 + row * tall;
    svg.append(text(left, top + 13, "start", `${group.label} (n=${group.count})`));
    data.systems.forEach((system, number) => {
      const found = group.scores[score.name][number];
      if (!found) return;
      const y = top + 24 + line * number;
      const dot = drawn("g", { class: colour(system.name) }, drawn("title", {}, said(system, group, score, found)));
      if (found[1] !== null) dot.append(drawn("line", { class: "range", x1: x(found[1]), x2: x(found[2]), y1: y, y2: y }));
      dot.append(drawn("circle", { cx: x(found[0]), cy: y, r: 4 }));
      svg.append(dot);
    });
  });
}

function said(system, group, score, [one, least, most]) {
  return `${system.name}, ${group.label}: ${score.label} ${plain(one)}${least === null ? "" : ` (${plain(least)} to ${plain(most)})`}`;
}

function groupTable(field, score, groups) {
  const head = [field.name, "utterances", ...data.systems.flatMap((system) => [system.name, "95 %"])];
  const rows = groups.map((group) => [
    group.label, String(group.count),
    ...group.scores[score.name].flatMap((found) => (found ? [plain(found[0]), found[1] === null ? "" : `${plain(found[1])} - ${plain(found[2])}`] : ["", ""])),
  ]);
  const table = node("table", {},
    node("thead", {}, node("tr", {}, ...head.map((cell) => node("th", { scope: "col" }, cell)))),
    node("tbody", {}, ...rows.map(([first, ...cells]) => node("tr", {}, node("th", { scope: "row" }, first), ...cells.map((cell) => node("td", {}, cell))))));
  sortable(table);
  byId("group-table").replaceChildren(node("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": `${score.label} by ${field.name}` }, table));
}

const drawings = [];
if (data.curves.length) {
  show("curves");
  options(byId("curve"), data.curves.map((curve, at) => [at, curve.stage ? `${curve.stage}: ${curve.name}` : curve.name]));
  const last = data.curves.map((curve) => curve.name).lastIndexOf("valid/loss");
  byId("curve").value = Math.max(last, 0);
  byId("curve").addEventListener("change", drawCurve);
  drawings.push(drawCurve);
}
if (data.groups.length && data.groupScores.length) {
  show("groups");
  options(byId("group-field"), data.groups.map((field, at) => [at, field.name]));
  options(byId("group-score"), data.groupScores.map((score, at) => [at, score.higher ? score.label : `${score.label} (lower is better)`]));
  byId("group-field").addEventListener("change", drawGroups);
  byId("group-score").addEventListener("change", drawGroups);
  drawings.push(drawGroups);
}
let drawnAt = 0;
new ResizeObserver(() => {
  if (document.body.clientWidth === drawnAt) return;
  drawnAt = document.body.clientWidth;
  drawings.forEach((draw) => draw());
}).observe(document.body);
