// The live demo: the four clients of the course side by side, each in a lane that draws what it does.
//
//   client(signal, lane) ─▶ spans and deliveries ─▶ canvas      what this page sees
//   GET state, twice a second ─▶ numbers, controls              what the server counted, and what was set by anybody
//
// A browser opens six connections to one server (HTTP/1.1, WebSockets apart). This page holds two, the long poll and
// the event stream, and needs two more for moments. A third page beside it may have to wait: then it says so.

import { endpoint, median, sleep } from "./client.js";
import { client as shortPolling } from "./short-polling.js";
import { client as longPolling } from "./long-polling.js";
import { client as webSocket } from "./websocket.js";
import { client as serverSentEvents } from "./sse.js";

const SPAN = 20_000; // ms on the time axis
const DELAYS = 200; // deliveries whose median is shown
const LOOK = 500; // ms between two looks at the server's counts
const SLOW = 3000; // ms after which a look is late
const TRACKS = 5; // deliveries of one moment are drawn below each other

const MODELS = {
  "short-polling": { name: "Short polling", glyph: "●", dash: [2, 4], client: shortPolling },
  "long-polling": { name: "Long polling", glyph: "■", dash: [9, 3, 2, 3], client: longPolling },
  websocket: { name: "WebSocket", glyph: "◆", dash: [8, 3], client: webSocket },
  sse: { name: "SSE", glyph: "▲", dash: [], client: serverSentEvents },
};

const element = (id) => document.getElementById(id);
const viewer = Math.random().toString(36).slice(2); // names this page to the server, which lets go of it when it leaves
const published = new Map(); // seq ─▶ ms, of the updates that some lane knows
const looks = []; // the last answers about the server's clock: { offset, error }, ms
const still = matchMedia("(prefers-reduced-motion: reduce)");

let state = null; // the server's last answer

/** Now, by the server's clock (ms). Two clocks that agree as far as anybody can tell are taken for one. */
function now() {
  const best = looks.reduce((a, b) => (b.error < a.error ? b : a), { offset: 0, error: Infinity });
  const offset = Math.abs(best.offset) <= best.error ? 0 : best.offset;
  return performance.timeOrigin + performance.now() + offset;
}

/** One model: its section on the page, and the page that its client sees. */
class Lane {
  constructor(model) {
    Object.assign(this, MODELS[model], { model });
    const section = element("lane").content.cloneNode(true).firstElementChild;
    section.dataset.model = model;
    const link = section.querySelector("a");
    link.textContent = `${this.glyph} ${this.name}`;
    link.href = `${model}/`;
    this.canvas = section.querySelector("canvas");
    this.canvas.ariaLabel = `${this.name}: requests as bars, arrivals as marks, the last 20 seconds`;
    this.outputs = Object.fromEntries([...section.querySelectorAll("dd")].map((dd) => [dd.dataset.is, dd]));
    this.state = section.querySelector(".state");
    element("lanes").append(section);

    this.spans = []; // { from, to }: a request, until it is answered
    this.deliveries = []; // { seq, sent, at }
    this.delays = [];
    this.received = this.lost = 0;
    this.latest = null; // sequence number
    this.after = null; // from now on
    for (const method of ["show", "showReset"]) this[method] = this[method].bind(this); // clients pass them on
  }

  async run(signal) {
    try {
      await this.client(signal, this);
    } catch (error) {
      this.showState(signal.aborted ? "closed" : `stopped: ${error.message}`);
      if (!signal.aborted) console.error(error);
    }
  }

  url(path, parameters) {
    return endpoint(`${this.model}/${path}`, { ...parameters, viewer });
  }

  asks() {
    this.spans.push({ from: now(), to: null });
    this.spans = this.spans.filter(({ to }) => to === null || recent(to));
  }

  answered() {
    const span = this.spans.at(-1);
    if (span) span.to ??= now();
  }

  /** Wait for the interval of the controls, which may change meanwhile. */
  async rest(seconds, signal) {
    const begin = performance.now();
    const left = () => begin + 1000 * (state?.interval ?? seconds) - performance.now();
    while (left() > 0) await sleep(Math.min(left(), 200), signal);
  }

  count() {} // the server does

  showState(text) {
    this.state.textContent = text;
  }

  show({ seq, published: sent }) {
    const at = now();
    if (seq <= this.latest) console.error(`${this.name}: ${seq} came after ${this.latest}`);
    if (this.latest !== null) this.lost += Math.max(0, seq - this.latest - 1);
    this.latest = seq;
    this.received += 1;
    this.deliveries.push({ seq, sent: 1000 * sent, at });
    this.deliveries = this.deliveries.filter((delivery) => recent(delivery.at));
    published.set(seq, 1000 * sent);
    for (const [other, time] of published) if (!recent(time)) published.delete(other);
    this.delays.push(at - 1000 * sent);
    if (this.delays.length > DELAYS) this.delays.shift();
    this.put({ median: duration(median(this.delays)), last: duration(this.delays.at(-1)) });
    this.put({ received: this.received, lost: this.lost });
  }

  showReset({ reason }) {
    if (reason === "epoch") this.latest = null; // another log: its numbers say nothing about this one's
    say(`${this.name}: reset (${reason}), some updates are gone for this page.`);
  }

  put(values) {
    for (const [name, value] of Object.entries(values)) {
      this.outputs[name].textContent = typeof value === "number" ? value.toLocaleString("en") : value;
    }
  }

  draw(time) {
    const ratio = devicePixelRatio;
    const { canvas } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = width * ratio;
      canvas.height = height * ratio;
    }
    const look = getComputedStyle(canvas);
    const size = height / 9;
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const x = (moment) => width - size - ((time - moment) / SPAN) * width;
    const line = (from, to, y, end = y) => {
      pen.beginPath();
      pen.moveTo(from, y);
      pen.lineTo(to, end);
      pen.stroke();
    };

    pen.strokeStyle = look.borderTopColor;
    pen.lineWidth = 1.5;
    pen.globalAlpha = 0.6;
    for (const moment of published.values()) line(x(moment), x(moment), 0, height);

    pen.fillStyle = pen.strokeStyle = look.color;
    for (const { from, to } of this.spans) {
      const [left, right] = [x(from), x(to ?? time)];
      pen.globalAlpha = 0.25;
      pen.fillRect(left, 0.14 * height, Math.max(right - left, 1), 0.72 * height);
      pen.globalAlpha = 1;
      pen.fillRect(left - 1.5, 0.06 * height, 3, 0.88 * height);
    }

    pen.lineWidth = Math.max(2, size / 3.5);
    for (const { seq, sent, at } of this.deliveries) {
      const y = height * (0.5 + 0.15 * ((seq % TRACKS) - (TRACKS - 1) / 2));
      pen.setLineDash(this.dash);
      line(x(sent), x(at), y);
      pen.setLineDash([]);
      mark(pen, this.glyph, x(at), y, size);
    }

    // Of a long poll there may be no gap: a browser repeats a GET by itself when a used connection ends without a byte.
    if (state?.cut.lanes[this.model]) {
      pen.strokeStyle = pen.fillStyle = look.outlineColor;
      pen.lineWidth = 3;
      const [at, reach] = [x(1000 * state.cut.at), 0.3 * height];
      line(at - reach, at + reach, height / 2 - reach, height / 2 + reach);
      line(at - reach, at + reach, height / 2 + reach, height / 2 - reach);
    }
  }
}

const recent = (moment) => now() - moment < SPAN + 1000;

/** A delay in ms for people. */
function duration(ms) {
  return ms < 999.5 ? `${Math.max(0, Math.round(ms))} ms` : `${(ms / 1000).toFixed(2)} s`;
}

function mark(pen, glyph, x, y, size) {
  pen.beginPath();
  if (glyph === "●") pen.arc(x, y, size, 0, 2 * Math.PI);
  if (glyph === "■") pen.rect(x - 0.85 * size, y - 0.85 * size, 1.7 * size, 1.7 * size);
  const corners = { "◆": [[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]], "▲": [[0, -1.2], [1.2, 1], [-1.2, 1]] };
  for (const [dx, dy] of corners[glyph] ?? []) pen.lineTo(x + dx * size, y + dy * size);
  pen.fill();
}

function say(text) {
  element("said").textContent = text;
}

const lanes = Object.keys(MODELS).map((model) => new Lane(model));

// The server's counts and controls

/** Ask or tell the server; show its answer, which is the new state. Returns whether there was one. */
async function call(method, path, body) {
  const late = setTimeout(say, SLOW, "Waiting for a free connection: a browser opens six to one server. Close a page.");
  try {
    const began = performance.now();
    const answer = await fetch(endpoint(path), {
      method,
      body: body && JSON.stringify(body),
      headers: body ? { "Content-Type": "application/json" } : {},
      cache: "no-store",
    });
    const ended = performance.now();
    if (answer.status === 204) return true;
    const result = await answer.json();
    if (!answer.ok) throw new Error(result.detail);
    const error = (ended - began) / 2;
    looks.push({ offset: 1000 * result.now - performance.timeOrigin - began - error, error: error + 1 });
    if (looks.length > 20) looks.shift();
    if (state === null || result.now >= state.now) showServer(result);
    return true;
  } catch (error) {
    say(`The server: ${error.message}`);
    return false;
  } finally {
    clearTimeout(late);
  }
}

const UNITS = { rate: "", interval: " s", delay: " s" };
const touched = { rate: -Infinity, interval: -Infinity, delay: -Infinity }; // when this page last moved a control

function showServer(news) {
  state = news;
  for (const lane of lanes) {
    const { requests, held, up, down } = news.lanes[lane.model];
    lane.put({ requests, held, bytes: up + down });
  }
  for (const [name, unit] of Object.entries(UNITS)) {
    element(name).disabled = news[name] === null;
    if (news[name] !== null && performance.now() - touched[name] > 1000) {
      element(name).value = news[name];
      showControl(name, news[name], unit);
    }
  }
  element("pause").disabled = element("publish").disabled = news.rate === null;
  element("pause").textContent = news.paused ? "Resume" : "Pause";
  element("watch").textContent =
    news.viewers > 1 ? `${news.viewers} pages watch: requests, bytes and held are those of all of them.` : "";
  if (/^(The server:|Waiting)/.test(element("said").textContent)) say("");
}

function showControl(name, value, unit = UNITS[name]) {
  element(`${name}-is`).textContent = value + unit;
  element(name).ariaValueText = value + (unit && " seconds");
}

let telling = Promise.resolve();
const waiting = {}; // the newest value of each control that is yet to be told

function tell(name, value) {
  const first = Object.keys(waiting).length === 0;
  waiting[name] = value;
  if (first) {
    telling = telling.then(() => {
      const change = { ...waiting };
      for (const told of Object.keys(change)) delete waiting[told];
      return call("PATCH", "controls", change);
    });
  }
}

for (const name of Object.keys(UNITS)) {
  element(name).addEventListener("input", () => {
    touched[name] = performance.now();
    showControl(name, element(name).value);
    tell(name, Number(element(name).value));
  });
}

function pause() {
  const paused = !state?.paused;
  tell("paused", paused);
  say(paused ? "Paused: nothing changes now. Who keeps asking?" : "Going on.");
}

element("pause").addEventListener("click", pause);
element("publish").addEventListener("click", () => call("POST", "updates"));
element("cut").addEventListener("click", async () => {
  if (await call("DELETE", "connections")) say("Cut. Each client connects again, and asks for what it missed.");
});
addEventListener("keydown", (event) => {
  if (event.key !== " " || event.target.closest("button, a") || element("pause").disabled) return;
  event.preventDefault(); // it would scroll
  if (!event.repeat) pause();
});

// Run

function draw() {
  const time = now();
  for (const lane of lanes) lane.draw(time);
  if (still.matches) setTimeout(() => requestAnimationFrame(draw), 1000);
  else requestAnimationFrame(draw);
}

let running = null;

async function run() {
  const { signal } = (running = new AbortController());
  for (const lane of lanes) lane.run(signal);
  while (!signal.aborted) {
    await call("GET", `state?viewer=${viewer}`);
    await sleep(document.hidden ? 10 * LOOK : LOOK, signal).catch(() => {});
  }
}

addEventListener("pagehide", () => {
  running.abort();
  navigator.sendBeacon(endpoint("leave", { viewer })); // a proxy may not tell that a page has left its streams
});
addEventListener("pageshow", ({ persisted }) => persisted && run());
run();
draw();
