// Examples side by side: what is found, in which order, and cards that are made when they come into view.

const AT_ONCE = 20;
const LONGEST = 1e6; // cells of a comparison by words

const clips = new Map(data.clips.map((clip) => [clip.row, clip]));
const isSpoken = data.clips.some((clip) => clip.systems.some(Boolean));

// What of two lists of words is in one alone: [kind, word] with kind "same", "ins" (not in the reference) or "del".
function byWords(words, reference, key) {
  const [n, m] = [words.length, reference.length];
  if (n * m > LONGEST) return words.map((word) => ["same", word]);
  const [ours, theirs] = [words.map(key), reference.map(key)];
  const longest = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1));
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      longest[i][j] = ours[i] === theirs[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
    }
  }
  const found = [];
  let [i, j] = [0, 0];
  while (i < n || j < m) {
    if (i < n && j < m && ours[i] === theirs[j]) { found.push(["same", words[i++]]); j++; }
    else if (j < m && (i === n || longest[i][j + 1] >= longest[i + 1][j])) found.push(["del", reference[j++]]);
    else found.push(["ins", words[i++]]);
  }
  return found;
}

const bare = (word) => word.toLowerCase().replace(/[\p{P}\p{S}]/gu, "") || word;

// A text with its differences from a reference marked, word by word, or letter by letter where words have no spaces.
function marked(words, reference, letters) {
  const parts = (all) => (letters ? [...all.replace(/\s+/gu, "")] : all.split(/\s+/u).filter(Boolean));
  const out = node("p", { class: "text", dir: "auto" });
  let [kind, run] = ["", []];
  const close = () => {
    if (!run.length) return;
    const said = run.join(letters ? "" : " ");
    out.append(kind === "same" ? said : node(kind, {}, said), letters ? "" : " ");
    run = [];
  };
  for (const [next, word] of byWords(parts(words), parts(reference), bare)) {
    if (next !== kind) { close(); kind = next; }
    run.push(word);
  }
  close();
  return out;
}

function player(clip, label) {
  if (!clip) return null;
  const audio = node("audio", { controls: true, preload: "metadata", "aria-label": label, src: `data:audio/ogg;base64,${clip.sound}` });
  const head = node("div", { class: "head", hidden: true });
  const seconds = () => (Number.isFinite(audio.duration) ? audio.duration : clip.seconds);
  const picture = node("div", { class: "picture" }, node("img", { alt: `Spectrogram of ${label}, 0 to 8 kHz, ${clip.seconds} s`, src: `data:image/webp;base64,${clip.picture}` }), head);
  audio.addEventListener("timeupdate", () => {
    head.hidden = false;
    head.style.left = `${(100 * audio.currentTime) / seconds()}%`;
  });
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
  });
  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect();
    audio.currentTime = ((event.clientX - box.left) / box.width) * seconds();
    audio.play();
  });
  return node("div", { class: "sound" }, picture, audio, clip.cut ? node("span", { class: "tag" }, `the first ${clip.seconds} s`) : null);
}

const references = (row) => [data.references[row]].flat();
const first = (row) => references(row)[0] || "";
const inLetters = (row) => Boolean(data.letters.length && data.letters[row]);

function side(title, colours, value, ...children) {
  return node("div", { class: "side" }, node("h4", {}, colours ? node("span", { class: `mark ${colours}` }) : null, title, value ? node("span", { class: "value" }, value) : null), ...children);
}

function plainText(words, kind = "") {
  return node("p", { class: `text ${kind}`, dir: "auto" }, words);
}

function card(row) {
  const clip = clips.get(row);
  const tags = data.fields.filter((field) => field.name !== "reference length").map((field) => node("span", { class: "tag" }, `${field.name}: ${field.labels[field.of[row]]}`));
  const out = node("article", { class: "card", tabindex: "-1", "data-row": row, "aria-label": data.ids[row] }, node("header", {}, node("h3", {}, data.ids[row]), ...tags));
  const given = node("div", { class: "sides" });
  const source = data.source.length ? data.source[row] : "";
  if (source || (clip && clip.source)) given.append(side("source", "", "", source ? plainText(source) : null, player(clip && clip.source, "the source")));
  given.append(side(references(row).length > 1 ? "references" : "reference", "", "", ...references(row).map((one) => plainText(one)), player(clip && clip.target, "the target recording")));
  const made = node("div", { class: "sides" });
  const score = data.scores[byId("sentence-score").value];
  data.systems.forEach((system, number) => {
    if (!shownSystems.has(number)) return;
    const words = data.texts.length ? data.texts[number][row] : null;
    const heard = data.heard.length ? data.heard[number][row] : null;
    const found = score ? score.of[number][row] : null;
    made.append(side(system.run ? `${system.name} (${system.run})` : system.name, colour(system.name), found === null ? "" : `${score.label} ${plain(found)}`,
      words === null && heard === null ? plainText("nothing of this utterance", "quiet") : null,
      words === null ? null : marked(words, first(row), inLetters(row)),
      heard === null ? null : node("div", {}, node("span", { class: "tag" }, "heard in its speech"), marked(heard, first(row), inLetters(row))),
      player(clip && clip.systems[number], system.name)));
  });
  out.append(given, made);
  return out;
}

const shownSystems = new Set(data.systems.keys());
const chosen = new Map(); // place of a field -> place of its label
let order = [];
let made = 0;

function searched(row) {
  const texts = [data.ids[row], ...references(row), data.source[row], ...data.texts.map((own) => own[row]), ...data.heard.map((own) => own[row])];
  return texts.filter(Boolean).join("\n").normalize("NFC").toLowerCase();
}

function keyOf(row) {
  const [what, number] = byId("sort").value.split(" ");
  const score = data.scores[byId("sentence-score").value];
  if (what === "order") return row;
  if (what === "length") return first(row).length;
  const values = score ? score.of.map((own) => own[row]) : [];
  if (what === "score") return values[number] ?? null;
  if (what === "difference") return values[number] === null || values[data.base] === null ? null : values[number] - values[data.base];
  const known = values.filter((one, at) => one !== null && shownSystems.has(at));
  return known.length > 1 ? Math.max(...known) - Math.min(...known) : null;
}

function find() {
  const words = byId("search").value.normalize("NFC").toLowerCase().trim();
  const descending = byId("direction").getAttribute("aria-pressed") === "true";
  const rows = [];
  for (let row = 0; row < data.ids.length; row++) {
    if (byId("with-sound").checked && !clips.has(row)) continue;
    if ([...chosen].some(([field, label]) => data.fields[field].of[row] !== label)) continue;
    if (words && !searched(row).includes(words)) continue;
    rows.push([keyOf(row), row]);
  }
  rows.sort(([one, at], [two, other]) => {
    if (one === null || two === null) return (one === null) - (two === null) || at - other;
    return (descending ? two - one : one - two) || at - other;
  });
  order = rows.map(([, row]) => row);
  const score = data.scores[byId("sentence-score").value];
  const means = score ? data.systems.map((system, number) => mean(order.map((row) => score.of[number][row]))) : [];
  const said = means.map((one, number) => (one === null ? "" : `${data.systems[number].name} ${plain(one)}`)).filter(Boolean);
  byId("found").textContent = `${order.length.toLocaleString("en")} of ${data.ids.length.toLocaleString("en")} utterances` + (said.length ? `; mean ${score.label} of an utterance: ${said.join(", ")}` : "");
  byId("cards").replaceChildren();
  made = 0;
  more();
}

function mean(values) {
  const known = values.filter((one) => one !== null);
  return known.length ? known.reduce((sum, one) => sum + one, 0) / known.length : null;
}

function more() {
  byId("cards").append(...order.slice(made, made + AT_ONCE).map(card));
  made = Math.min(made + AT_ONCE, order.length);
  byId("more").hidden = made === order.length;
}

function step(by) {
  const cards = [...byId("cards").children];
  const at = cards.indexOf(document.activeElement.closest(".card"));
  if (at + by >= cards.length && made < order.length) more();
  const next = byId("cards").children[Math.max(0, at + by)];
  if (next) { next.focus({ preventScroll: true }); next.scrollIntoView({ block: "center" }); }
}

function examples() {
  show("examples");
  byId("counts").textContent = `, ${data.ids.length.toLocaleString("en")} utterances`;
  const others = data.systems.map((system, number) => [number, system.name]).filter(([number]) => number !== data.base);
  const scored = data.scores.length > 0;
  options(byId("sort"), [
    ["order", "order of the file"],
    ...(scored && data.systems.length > 1 ? [["disagreement", "disagreement of systems"]] : []),
    ["length", "length of the reference"],
    ...(scored ? data.systems.map((system, number) => [`score ${number}`, `score of ${system.name}`]) : []),
    ...(scored ? others.map(([number, name]) => [`difference ${number}`, `${name} less ${data.systems[data.base].name}`]) : []),
  ]);
  options(byId("sentence-score"), data.scores.map((score, at) => [at, score.label]));
  byId("sentence-score").closest("label").hidden = !scored;
  byId("with-sound-label").hidden = !clips.size;
  byId("filters").hidden = !data.fields.length;
  byId("filter-fields").append(...data.fields.map((field, at) => {
    const select = node("select", { "data-field": at });
    options(select, [["", "all"], ...field.labels.map((label, place) => [place, label])]);
    select.addEventListener("change", () => {
      if (select.value === "") chosen.delete(at);
      else chosen.set(at, Number(select.value));
      find();
    });
    return node("label", {}, field.name, select);
  }));
  byId("shown-systems").append(...data.systems.map((system, number) => {
    const box = node("input", { type: "checkbox", checked: true });
    box.addEventListener("change", () => {
      if (box.checked) shownSystems.add(number);
      else shownSystems.delete(number);
      find();
    });
    return node("label", {}, box, node("span", { class: `mark ${colour(system.name)}` }), system.name);
  }));
  byId("sort").addEventListener("change", () => {
    const descending = byId("sort").value === "disagreement";
    byId("direction").setAttribute("aria-pressed", String(descending));
    byId("direction").textContent = descending ? "descending" : "ascending";
    find();
  });
  byId("direction").addEventListener("click", () => {
    const descending = byId("direction").getAttribute("aria-pressed") !== "true";
    byId("direction").setAttribute("aria-pressed", String(descending));
    byId("direction").textContent = descending ? "descending" : "ascending";
    find();
  });
  for (const id of ["sentence-score", "with-sound"]) byId(id).addEventListener("change", find);
  byId("search").addEventListener("input", find);
  byId("more").addEventListener("click", more);
  new IntersectionObserver((seen) => { if (seen.some((one) => one.isIntersecting)) more(); }, { rootMargin: "800px" }).observe(byId("more"));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, #blind")) return;
    if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
    else if (event.key === "p") toggle(document.activeElement.closest(".card"));
    else if (event.key === "/") byId("search").focus();
    else return;
    event.preventDefault();
  });
  find();
}

// The next sound of a card, or a stop.
function toggle(card) {
  const sounds = card ? [...card.querySelectorAll("audio")] : [];
  const at = sounds.findIndex((audio) => !audio.paused);
  if (at >= 0) sounds[at].pause();
  const next = sounds[at + 1];
  if (next) { next.currentTime = 0; next.play(); }
}

if (data.ids.length) examples();
