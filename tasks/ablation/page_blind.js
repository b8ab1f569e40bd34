// Which of A and B: two systems whose names are hidden, choices that are kept as JSON, and a sign test.

const KIND = "voxzoo blind comparison";
let round = null; // of two systems: { one, two, how, trials: [{ row, first, choice }] }

function shuffled(list) {
  const out = [...list];
  for (let at = out.length - 1; at > 0; at--) {
    const other = Math.floor(Math.random() * (at + 1));
    [out[at], out[other]] = [out[other], out[at]];
  }
  return out;
}

// Two-sided, of those that chose one of both: how often chance alone would give as uneven a result.
function signTest(one, two) {
  const n = one + two;
  if (!n) return null;
  let [term, sum] = [-n * Math.LN2, 0];
  for (let k = 0; k <= Math.min(one, two); k++) {
    sum += Math.exp(term);
    term += Math.log((n - k) / (k + 1));
  }
  return Math.min(1, 2 * sum);
}

function sounds(row, number) {
  const clip = clips.get(row);
  return clip ? clip.systems[number] : null;
}

// Utterances of which the two systems made different things.
function rowsFor(one, two, how) {
  if (how === "sound") return [...clips.keys()].filter((row) => sounds(row, one) && sounds(row, two) && sounds(row, one).sound !== sounds(row, two).sound);
  const [ours, theirs] = [data.texts[one], data.texts[two]];
  return [...data.ids.keys()].filter((row) => ours[row] !== null && theirs[row] !== null && ours[row] !== theirs[row]);
}

function setUp() {
  return { one: Number(byId("blind-one").value), two: Number(byId("blind-two").value), how: byId("blind-how").value };
}

const storeAt = ({ one, two, how }) => [KIND, data.title, data.systems[one].name, data.systems[two].name, how].join("\n");

// Files that are opened from a disk may have no storage: then the file that is saved is what is kept.
function stored(key, value) {
  try {
    if (value === undefined) return localStorage.getItem(key);
    localStorage.setItem(key, value);
  } catch { /* nothing is kept */ }
  return null;
}

function asJSON() {
  return {
    kind: KIND, page: data.title, by: round.how,
    systems: [data.systems[round.one].name, data.systems[round.two].name],
    choices: round.trials.filter((trial) => trial.choice).map((trial) => {
      const [a, b] = trial.first === round.one ? [round.one, round.two] : [round.two, round.one];
      return { id: data.ids[trial.row], a: data.systems[a].name, b: data.systems[b].name, choice: trial.choice };
    }),
  };
}

function begin(setting, kept) {
  const rows = rowsFor(setting.one, setting.two, setting.how);
  const places = new Map(rows.map((row) => [data.ids[row], row]));
  const done = (kept ? kept.choices : []).filter((each) => places.has(each.id) && ["a", "b", "same"].includes(each.choice));
  const before = new Set(done.map((each) => each.id));
  round = {
    ...setting,
    trials: [
      ...done.map((each) => ({ row: places.get(each.id), first: each.a === data.systems[setting.one].name ? setting.one : setting.two, choice: each.choice })),
      ...shuffled(rows.filter((row) => !before.has(data.ids[row]))).map((row) => ({ row, first: Math.random() < 0.5 ? setting.one : setting.two, choice: null })),
    ],
  };
  byId("blind-stop").hidden = false;
  ask();
}

function start() {
  const setting = setUp();
  if (setting.one === setting.two) return void (byId("blind-status").textContent = "Choose two different systems.");
  const kept = stored(storeAt(setting));
  let found = null;
  try { found = kept ? readChoices(kept) : null; } catch { found = null; }
  begin(setting, found);
}

function ask() {
  const at = round.trials.findIndex((trial) => !trial.choice);
  const done = round.trials.filter((trial) => trial.choice).length;
  byId("blind-save").disabled = done === 0;
  byId("blind-status").textContent = `${done} of ${round.trials.length} chosen`;
  if (at < 0) return reveal();
  const { row, first } = round.trials[at];
  const second = first === round.one ? round.two : round.one;
  const clip = clips.get(row);
  const source = data.source.length ? data.source[row] : "";
  const isHeard = round.how === "sound";
  const given = node("div", { class: "sides" },
    source || (clip && clip.source) ? side("source", "", "", source ? plainText(source) : null, player(clip && clip.source, "the source")) : null,
    side("reference", "", "", ...references(row).map((one) => plainText(one)), isHeard && clip ? player(clip.target, "the target recording") : null));
  const sides = [["A", first], ["B", second]].map(([name, number]) =>
    side(name, "", "", isHeard ? player(sounds(row, number), name) : plainText(data.texts[number][row])));
  const buttons = [["a", "A is better"], ["same", "no difference"], ["b", "B is better"]].map(([choice, label]) =>
    node("button", { type: "button", "data-choice": choice, on: { click: () => choose(choice) } }, label));
  byId("blind-place").replaceChildren(node("article", { class: "card", tabindex: "-1" }, node("h3", {}, data.ids[row]), given,
    node("div", { class: "sides" }, ...sides), node("div", { class: "choice" }, ...buttons)));
  byId("blind-place").firstChild.focus({ preventScroll: true });
}

function choose(choice) {
  const trial = round.trials.find((one) => !one.choice);
  if (!trial) return;
  trial.choice = choice;
  stored(storeAt(round), JSON.stringify(asJSON()));
  ask();
}

function undo() {
  const done = round.trials.filter((trial) => trial.choice);
  if (!done.length) return;
  done[done.length - 1].choice = null;
  stored(storeAt(round), JSON.stringify(asJSON()));
  ask();
}

function reveal() {
  const wins = new Map([[round.one, 0], [round.two, 0]]);
  let same = 0;
  for (const { first, choice } of round.trials) {
    if (choice === "same") same++;
    else if (choice) {
      const number = choice === "a" ? first : first === round.one ? round.two : round.one;
      wins.set(number, wins.get(number) + 1);
    }
  }
  const p = signTest(wins.get(round.one), wins.get(round.two));
  const rows = [[data.systems[round.one].name, wins.get(round.one)], [data.systems[round.two].name, wins.get(round.two)], ["no difference", same]];
  byId("blind-place").replaceChildren(node("div", { class: "scroll" }, node("table", { id: "blind-result" },
    node("thead", {}, node("tr", {}, node("th", { scope: "col" }, "preferred"), node("th", { scope: "col" }, "utterances"))),
    node("tbody", {}, ...rows.map(([name, count]) => node("tr", {}, node("th", { scope: "row" }, name), node("td", {}, String(count))))))));
  byId("blind-status").textContent = p === null ? "Nothing was preferred: there is no test." : `Sign test, two-sided, without those of no difference: p = ${p < 0.001 ? "< 0.001" : p.toFixed(3)}.`;
}

function readChoices(content) {
  const found = JSON.parse(content);
  if (found === null || found.kind !== KIND || !Array.isArray(found.choices) || !Array.isArray(found.systems)) throw new Error("no choices of this page");
  return found;
}

async function load() {
  const file = byId("blind-load").files[0];
  if (!file) return;
  try {
    const found = readChoices(await file.text());
    const [one, two] = found.systems.map((name) => data.systems.findIndex((system) => system.name === name));
    const how = found.by === "sound" ? "sound" : "text";
    if (one < 0 || two < 0 || one === two) throw new Error("its systems are not on this page");
    [byId("blind-one").value, byId("blind-two").value, byId("blind-how").value] = [one, two, how];
    begin({ one, two, how }, found);
  } catch (error) {
    byId("blind-status").textContent = `${file.name} cannot be used: ${error.message}`;
  }
}

function save() {
  const address = URL.createObjectURL(new Blob([`${JSON.stringify(asJSON(), null, 1)}\n`], { type: "application/json" }));
  node("a", { href: address, download: "choices.json" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

if (data.systems.length > 1 && (isSpoken || data.texts.length)) {
  show("blind");
  const known = data.systems.map((system, number) => [number, system.name]);
  options(byId("blind-one"), known);
  options(byId("blind-two"), known);
  byId("blind-two").value = 1;
  options(byId("blind-how"), [...(isSpoken ? [["sound", "listening"]] : []), ...(data.texts.length ? [["text", "reading"]] : [])]);
  byId("blind-start").addEventListener("click", start);
  byId("blind-stop").addEventListener("click", reveal);
  byId("blind-save").addEventListener("click", save);
  byId("blind-load").addEventListener("change", load);
  byId("blind").addEventListener("keydown", (event) => {
    if (!round || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
    const choice = { a: "a", b: "b", 0: "same" }[event.key];
    if (choice) choose(choice);
    else if (event.key === "u") undo();
    else return;
    event.preventDefault();
  });
}
