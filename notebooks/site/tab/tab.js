// A page on which the course's servers and clients run: its controls, guesses, timeline, numbers and sources.
//
//     controls, sources ─▶ worker.js ─▶ news ─▶ the timeline, played at a pace of its own
//                                    └▶ result ─▶ counted | law | guess

const MODELS = document.documentElement.dataset.models.split(" ");
const STILL = matchMedia("(prefers-reduced-motion: reduce)").matches;
const element = (id) => document.getElementById(id);
const stage = await (await fetch("stage.json")).json();
const controls = stage.controls.filter((control) => control.models.some((model) => MODELS.includes(model)));
const SOURCES = MODELS.flatMap((model) => [`server/${model}`, `client/${model}`]);
const usual = (where) => stage.models[where.split("/")[1]][where.split("/")[0]];
const nameOf = (model) => stage.models[model].name;

function say(text, wrong = false) {
  element("said").textContent = text;
  element("said").classList.toggle("wrong", wrong);
}

/** An element with attributes, of the document's kind or of SVG's. */
function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// --- the situation ---

const values = {};

for (const control of controls) {
  const { name, label, least, most, step, unit } = control;
  const bounds = { min: least, max: most, step };
  const number = make("input", { id: name, type: "number", inputmode: "decimal", ...bounds });
  const slider = make("input", { id: `${name}-slider`, type: "range", "aria-label": label, ...bounds });
  const text = make("label", { for: name }, unit ? `${label} (${unit})` : label);
  element("controls").append(make("div", {}, text, number, slider));
  number.addEventListener("change", () => set(name, number.valueAsNumber, true)); // what is no number is as usual
  slider.addEventListener("input", () => set(name, Number(slider.value), true));
}

function set(name, value, told = false) {
  const control = controls.find((each) => each.name === name);
  const within = Math.min(Math.max(Number.isFinite(value) ? value : control.default, control.least), control.most);
  values[name] = control.step === 1 ? Math.round(within) : within;
  element(name).value = element(`${name}-slider`).value = values[name];
  if (told) remember();
}

// --- guesses, asked before the first run ---

const first = MODELS[0];
const GUESSES = [
  { label: `Requests by ${nameOf(first)} while the schedule lasts`, of: [first, "requested"] },
  { label: `Mean delay by ${nameOf(first)}, seconds`, of: [first, "mean"] },
  MODELS.length > 1
    ? { label: "Mean delay by SSE, seconds", of: ["sse", "mean"] }
    : { label: "Bytes that one delivery costs, down", of: [first, "each"] },
];

GUESSES.forEach(({ label }, number) => {
  const input = make("input", { id: `guess-${number}`, type: "number", min: 0, step: "any", inputmode: "decimal" });
  element("guess").append(make("div", {}, make("label", { for: `guess-${number}` }, label), input));
});
const skip = make("button", { id: "skip", type: "button" }, "I do not guess");
element("guess").append(make("div", {}, skip));
let guessed = false;

const guessOf = (number) => (element(`guess-${number}`).value === "" ? null : Number(element(`guess-${number}`).value));

function openTheDoor() {
  guessed ||= GUESSES.every((_, number) => guessOf(number) !== null);
  element("run").disabled = !guessed || running;
}

element("guess").addEventListener("input", openTheDoor);
element("guess").addEventListener("submit", (event) => event.preventDefault());
element("controls").addEventListener("submit", (event) => event.preventDefault());
skip.addEventListener("click", () => {
  guessed = true;
  openTheDoor();
  say("Then run it.");
  element("run").focus();
});

// --- sources ---

for (const where of SOURCES) {
  const [kind, model] = where.split("/");
  const text = make("textarea", { id: where, spellcheck: "false", autocapitalize: "off", autocomplete: "off" });
  const summary = make("summary", { id: `${where}-is` }, `The ${kind}: ${nameOf(model)}`);
  text.setAttribute("aria-labelledby", `${where}-is`);
  text.value = usual(where);
  const mistake = make("p", { id: `${where}-mistake`, class: "mistake", hidden: "" });
  element("sources").append(make("details", {}, summary, mistake, text));
  text.addEventListener("input", () => {
    showChange(where);
    remember();
  });
}

const showChange = (where) => element(`${where}-is`).classList.toggle("changed", element(where).value !== usual(where));

function changed() {
  return Object.fromEntries(
    SOURCES.filter((where) => element(where).value !== usual(where)).map((where) => [where, element(where).value]),
  );
}

function showMistake({ error, where, line }) {
  say(where ? `${where}${line ? `, line ${line}` : ""}: ${error}` : error, true);
  if (!SOURCES.includes(where)) return;
  const mistake = element(`${where}-mistake`);
  mistake.textContent = line ? `Line ${line}: ${error}` : error;
  mistake.hidden = false;
  const text = element(where);
  text.closest("details").open = true;
  if (!line) return;
  const lines = text.value.split("\n");
  const start = lines.slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
  text.setSelectionRange(start, start + lines[line - 1].length);
  text.scrollTop = Math.max(0, (line - 5) * parseFloat(getComputedStyle(text).lineHeight));
}

// --- a link that says it all ---

const LONGEST = 100_000; // characters of a source; the course's have some thousands

async function squeezed(text) {
  const stream = new Blob([text]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const letters = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  return letters.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** The text again. Raises for what is none, and for more than anybody reads: a short link may hold a long text. */
async function unsqueezed(letters) {
  const bytes = Uint8Array.from(atob(letters.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt());
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let text = "";
  for (const reader = stream.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return text + decoder.decode();
    text += decoder.decode(value, { stream: true });
    if (text.length > LONGEST) throw new RangeError("too long");
  }
}

async function hash() {
  const said = new URLSearchParams();
  for (const { name, default: as } of controls) if (values[name] !== as) said.set(name, values[name]);
  for (const [where, text] of Object.entries(changed())) said.set(where, await squeezed(text));
  return said.toString();
}

let remembering = 0;

/** Write what is said into the address, once for what changes quickly: browsers take only so many changes. */
function remember() {
  clearTimeout(remembering);
  const mine = (remembering = setTimeout(async () => {
    const said = await hash();
    if (mine === remembering) history.replaceState(null, "", `#${said}`);
  }, 200));
}

function forget() {
  clearTimeout(remembering);
  remembering = 0;
}

async function recall() {
  forget();
  const complaints = [];
  const brought = [];
  for (const control of controls) set(control.name, control.default);
  for (const where of SOURCES) element(where).value = usual(where);
  for (const [key, value] of new URLSearchParams(location.hash.slice(1))) {
    const control = controls.find(({ name }) => name === key);
    const number = Number(value);
    if (control && value !== "" && number >= control.least && number <= control.most) set(key, number);
    else if (SOURCES.includes(key)) {
      try {
        element(key).value = await unsqueezed(value);
        brought.push(key);
      } catch {
        complaints.push(key);
      }
    } else complaints.push(key);
  }
  SOURCES.forEach(showChange);
  if (complaints.length) say(`This link says something that is not understood here: ${complaints.join(", ")}.`, true);
  else if (brought.length) say(`This link brings its own source (${brought.join(", ")}): read it before you run it.`);
}

element("link").addEventListener("click", async () => {
  const address = new URL(`#${await hash()}`, location.href).href;
  try {
    await navigator.clipboard.writeText(address);
    say("The link is copied: whoever opens it has this situation, and these sources.");
  } catch {
    say(`The link: ${address}`); // no permission, or no secure context
  }
});

element("reset").addEventListener("click", () => {
  forget();
  history.replaceState(null, "", location.pathname + location.search);
  recall().then(() => say("As it was."));
});
addEventListener("hashchange", recall);

// --- the worker ---

let worker = null;
let running = false;
let ready = null;

// What the worker fetches goes through the keeper, once there is one: it has three seconds.
const kept = Promise.race([
  navigator.serviceWorker?.register("keeper.js").then(() => navigator.serviceWorker.ready).catch(() => {}),
  new Promise((over) => setTimeout(over, 3000)),
]);

function wake() {
  if (worker) return;
  worker = new Worker("worker.js", { type: "module" });
  worker.addEventListener("message", ({ data }) => hear(data));
  worker.addEventListener("error", (event) => hear({ failed: event.message || "the worker did not start" }));
  ready = false;
  tell({ load: { pyodide: stage.pyodide, course: stage.course } });
}

function tell(what) {
  const to = worker;
  kept.then(() => to.postMessage(what));
}

for (const kind of ["pointerdown", "focusin", "keydown"]) {
  document.querySelector("main").addEventListener(kind, wake, { once: true }); // whoever touches the page will run it
}

function run() {
  wake();
  running = true;
  element("stop").disabled = false;
  if (document.activeElement === element("run")) element("stop").focus(); // what is disabled has no focus to keep
  element("run").disabled = true;
  for (const where of SOURCES) element(`${where}-mistake`).hidden = true;
  say(ready ? "It runs." : "Python and the course are being fetched; then it runs.");
  const said = { models: MODELS };
  for (const { name } of controls) said[name] = values[name];
  player.begin(said);
  tell({ said, sources: changed() });
}

function ended() {
  running = false;
  openTheDoor();
  if (document.activeElement === element("stop")) element("run").focus();
  element("stop").disabled = true;
}

function hear({ ready: loaded, news, result, took, failed }) {
  if (loaded) {
    ready = true;
    if (running) say("It runs.");
  } else if (news) player.add(JSON.parse(news));
  else if (failed) {
    ended();
    worker.terminate();
    worker = null;
    say(`It could not run: ${failed}`, true);
  } else {
    ended();
    const counted = JSON.parse(result);
    document.documentElement.dataset.result = result; // for whoever looks over the page's shoulder
    if (counted.error) return showMistake(counted);
    player.finish(counted);
    showResult(counted);
    say(`${Math.round(counted.end)} virtual seconds took ${took.toFixed(1)} s.`);
  }
}

element("run").addEventListener("click", run);
element("stop").addEventListener("click", () => {
  worker.terminate();
  worker = null;
  ended();
  say("Stopped.");
});

// --- the timeline ---

const ROW = 16;
const GLYPHS = { // around where they stand
  "short-polling": "m-5,-5h10v10h-10z",
  "long-polling": "m0,-6l6,6l-6,6l-6,-6z",
  websocket: "m0,-6l6,11h-12z",
  sse: "m-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z",
};

class Lane {
  constructor(model) {
    this.model = model;
    this.counts = make("span", { class: "counts" }); // read when asked for: what changes with each picture is not called out
    this.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.svg.setAttribute("role", "img");
    const heading = make("h3", {}, nameOf(model));
    element("lanes").append(make("section", { class: "lane", "data-model": model }, heading, this.counts, this.svg));
    this.clear();
  }

  clear() {
    this.requests = new Map(); // of a client, "client/number": [client, begin, end]
    this.begins = []; // when they began, in order
    this.delivered = []; // [client, sent, at, how late all were until then], in order
  }

  add({ requests, delivered }) {
    const begins = [];
    for (const [number, client, begin, end] of requests) {
      const key = `${client}/${number}`;
      if (!this.requests.has(key)) begins.push(begin);
      this.requests.set(key, [client, begin, end]);
    }
    for (const begin of begins.sort((one, other) => one - other)) this.begins.push(begin);
    let late = this.delivered.at(-1)?.[3] ?? 0;
    for (const [client, seq, at] of delivered.sort((one, other) => one[2] - other[2])) {
      const sent = player.sent.get(seq) ?? at;
      late += at - sent;
      this.delivered.push([client, sent, at, late]);
    }
  }

  draw(now, span, rows, published, said) {
    const width = this.svg.clientWidth || 600;
    const height = rows * ROW + 8;
    const x = (at) => ((at - now) / span + 1) * (width - 10);
    const y = (client) => 4 + ROW * (client + 0.5);
    const inside = (from, to) => to >= now - span && from <= now;
    const paths = { published: "", request: "", asked: "", tail: "", mark: "", cut: "" };
    const apart = (least) => { // of what is drawn over itself, one is enough: a picture costs no more than its pixels
      const last = [];
      return (at, row = 0) => (at - (last[row] ?? -Infinity) < least ? false : ((last[row] = at), true));
    };
    const line = (at) => `M${at.toFixed(1)},0V${height}`;
    const [strokes, bars, marks] = [apart(1), apart(1), apart(2)];
    for (const [, at] of published) if (inside(at, at) && strokes(x(at))) paths.published += line(x(at));
    for (const [client, begin, end] of this.requests.values()) {
      const until = end === null || end > now ? now : end;
      if (begin > now || !inside(begin, until)) continue;
      const [left, right] = [Math.max(-3, x(begin)), x(until)];
      if (right - left < 1 && !bars(left, client)) continue;
      paths.request += `M${left.toFixed(1)},${y(client) - 6}h${Math.max(1, right - left).toFixed(1)}v12H${left.toFixed(1)}z`;
      paths.asked += `M${(left - 1).toFixed(1)},${y(client) - 7}h2v14h-2z`;
    }
    const arrived = upTo(this.delivered, now, (each) => each[2]);
    for (let number = upTo(this.delivered, now - span, (each) => each[2]); number < arrived; number += 1) {
      const [client, sent, at] = this.delivered[number];
      if (!marks(x(at), client)) continue;
      paths.tail += `M${x(sent).toFixed(1)},${y(client)}H${x(at).toFixed(1)}`;
      paths.mark += `M${x(at).toFixed(1)},${y(client)}${GLYPHS[this.model]}`;
    }
    if (said.cut && inside(said.cut, said.cut)) paths.cut = line(x(said.cut));
    const drawn = Object.entries(paths).map(([name, d]) => `<path class="${name}" d="${d}"/>`);
    if (said.dark && inside(said.dark, said.dark + said.darkness)) {
      const from = Math.max(0, x(said.dark));
      const to = Math.min(x(now), x(said.dark + said.darkness));
      drawn.unshift(`<rect class="fault" x="${from}" y="0" width="${Math.max(0, to - from)}" height="${height}"/>`);
    }
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("height", height);
    this.svg.innerHTML = drawn.join("");
    const mean = arrived ? `, ${duration(this.delivered[arrived - 1][3] / arrived)} late on average` : "";
    const asked = upTo(this.begins, now);
    this.counts.textContent = `${asked.toLocaleString("en")} requests, ${arrived.toLocaleString("en")} deliveries${mean}`;
    this.svg.setAttribute("aria-label", `${nameOf(this.model)} at ${now.toFixed(1)} s: ${this.counts.textContent}`);
  }
}

/** How many of a list, which is in order, are not later than a moment. */
function upTo(list, moment, of = (each) => each) {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (of(list[middle]) <= moment) low = middle + 1;
    else high = middle;
  }
  return low;
}

const player = {
  lanes: MODELS.map((model) => new Lane(model)),
  published: [],
  sent: new Map(), // seq to moment
  said: {},
  computed: 0, // up to where it is known what happens
  at: 0,
  took: 0, // ms, to draw it
  playing: false,
  over: false,

  begin(said) {
    for (const lane of this.lanes) lane.clear();
    [this.said, this.published, this.sent, this.computed, this.at, this.over] = [said, [], new Map(), 0, 0, false];
    element("at").max = said.seconds;
    element("at").disabled = element("play").disabled = false;
    this.play(!STILL);
    this.show();
  },

  add({ now, published, lanes }) {
    this.computed = now;
    for (const [seq, at] of published) this.sent.set(seq, at);
    for (const each of published) this.published.push(each);
    for (const lane of this.lanes) lane.add(lanes[lane.model]);
    if (now > Number(element("at").max)) element("at").max = Math.ceil(now);
  },

  finish({ end }) {
    this.over = true;
    element("at").max = Math.max(1, Math.ceil(end));
    if (STILL) this.go(end);
  },

  play(on) {
    this.playing = on;
    element("play").textContent = on ? "Pause" : "Play";
    if (on) {
      this.last = performance.now();
      requestAnimationFrame((time) => this.step(time));
    }
  },

  step(time) {
    if (!this.playing) return;
    const pace = Number(element("pace").value);
    if (time - this.last > Math.max(40, 3 * this.took)) { // drawing leaves the page two thirds of its time
      const then = this.at + (pace * (time - this.last)) / 1000;
      this.last = time;
      this.at = Math.min(then, this.computed);
      this.show();
      if (this.over && this.at >= this.computed) return this.play(false);
    }
    requestAnimationFrame((next) => this.step(next));
  },

  go(at) {
    this.play(false);
    this.at = Math.min(at, this.computed);
    this.show();
  },

  show() {
    const began = performance.now();
    element("at").value = this.at;
    element("at-is").textContent = `${this.at.toFixed(1)} s`;
    element("at").setAttribute("aria-valuetext", `${this.at.toFixed(1)} seconds`);
    for (const lane of this.lanes) {
      lane.draw(this.at, Number(element("span").value), this.said.clients ?? values.clients, this.published, this.said);
    }
    this.took = performance.now() - began;
  },
};

element("at").addEventListener("input", () => player.go(Number(element("at").value)));
element("span").addEventListener("change", () => player.show());
element("play").addEventListener("click", () => {
  if (!player.playing && player.over && player.at >= player.computed) player.at = 0;
  player.play(!player.playing);
});
new ResizeObserver(() => player.show()).observe(element("lanes"));

// --- the numbers ---

function duration(seconds) {
  if (seconds === null) return "never";
  if (seconds < 0.0995) return `${Number((1000 * seconds).toPrecision(3))} ms`;
  return seconds < 0.9995 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(2)} s`;
}

const amount = (number) => number.toLocaleString("en", { maximumFractionDigits: 1 });
const ROWS = [
  { text: "requests while the schedule lasts", key: "requested", law: "requests", as: amount },
  { text: "mean delay", key: "mean", law: "mean_delay", as: duration },
  { text: "delay that 95 % do not exceed", key: "most_of_it", as: duration },
  { text: "delivered, of how many", key: "delivered", as: (n, all) => `${amount(n)} of ${amount(all.expected)}` },
  { text: "lost", key: "missing", law: "lost", as: amount },
  { text: "twice", key: "duplicated", as: amount },
  { text: "requests in all, the first ones included", key: "asked", as: amount },
  { text: "held open at once, at most", key: "held", as: amount },
  { text: "bytes up", key: "up", as: amount },
  { text: "bytes down", key: "down", as: amount },
  { text: "bytes down for each delivery", key: "each", as: amount },
];

/** A table with a column for each model: what was counted, and below it what the law says and what was guessed. */
function showResult({ models }) {
  for (const all of Object.values(models)) all.each = all.delivered ? all.down / all.delivered : 0;
  const heads = MODELS.map((model) => make("th", { scope: "col", "data-model": model }, nameOf(model)));
  const body = make("tbody");
  for (const { text, key, law, as } of ROWS) {
    const row = make("tr", { "data-row": key }, make("th", { scope: "row" }, text));
    for (const model of MODELS) {
      const all = models[model];
      const cell = make("td", { "data-model": model }, make("span", { class: "counted" }, as(all[key], all)));
      if (law && all[law] !== null) cell.append(make("small", { class: "law" }, `law ${as(all[law], all)}`));
      const guess = GUESSES.findIndex(({ of }) => of[0] === model && of[1] === key);
      if (guess >= 0 && guessOf(guess) !== null) {
        cell.append(make("small", { class: "guess" }, `guess ${as(guessOf(guess), all)}`));
      }
      row.append(cell);
    }
    body.append(row);
  }
  const shares = MODELS.map((model) => models[model].lost_without_cursor);
  if (shares.some((share) => share !== null)) {
    const text = "lost, if clients had no cursor";
    const cells = shares.map((share) => (share === null ? "" : make("small", {}, `law ${(100 * share).toFixed(1)} %`)));
    body.append(make("tr", {}, make("th", { scope: "row" }, text), ...cells.map((cell) => make("td", {}, cell))));
  }
  const head = make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "what"), ...heads));
  element("result").replaceChildren(make("table", {}, head, body));
}

// --- begin ---

await recall();
openTheDoor();
player.show();
document.documentElement.dataset.state = "there";
