// What all four pages do, whatever the model: show what came, count it, and run the client.
//
//   start(client) ─▶ client(signal) asks or listens ─▶ show(update) · showReset(gap) · showState(text) · count(id)
//
// A client is an async function that runs until its AbortSignal says stop: the button, or the page going away.
// Whatever comes from the server is shown by textContent, so that a file named "<script>" is only a name.

const ROWS = 200; // updates kept on the page
const LONGEST_PAUSE = 30_000; // ms

const delays = []; // ms, of the updates on the page, oldest first

const element = (id) => document.getElementById(id);

/** The cursor to begin with: the page's own ?after=, null for "from now on". */
export const firstCursor = new URLSearchParams(location.search).get("after");

/** The URL of a path beside this page, wherever the page is served from; a null parameter is left out. */
export function endpoint(path, parameters = {}) {
  const url = new URL(path, new URL(".", location.href));
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null) url.searchParams.set(name, value);
  }
  return url;
}

/** Run the client, and again whenever the button or the return to this page asks for it. */
export function start(client) {
  const button = element("connection");
  let running = null;

  async function run() {
    const { signal } = (running = new AbortController());
    button.textContent = "Disconnect";
    try {
      await client(signal);
    } catch (error) {
      showState(signal.aborted ? "disconnected" : `stopped: ${error.message}`);
      if (!signal.aborted) console.error(error);
    }
    running = null;
    button.textContent = "Connect";
  }

  let ended = run();
  const runAgain = () => (ended = ended.then(run)); // never two clients at once
  button.addEventListener("click", () => (running ? running.abort() : runAgain()));
  addEventListener("pagehide", () => running?.abort());
  addEventListener("pageshow", ({ persisted }) => persisted && runAgain()); // back from the browser's page cache
}

/** Wait `ms` milliseconds; reject at once when the signal says stop. */
export function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal.addEventListener("abort", stop, { once: true });
  });
}

/** Wait before another try: a random time below a limit that doubles with each failure ("full jitter"). */
export async function backOff(failures, reason, signal) {
  const ms = Math.random() * Math.min(LONGEST_PAUSE, 500 * 2 ** failures);
  showState(`${reason}; trying again in ${(ms / 1000).toFixed(1)} s`);
  await sleep(ms, signal);
}

/** Add one to the counter with this id. */
export function count(id) {
  element(id).textContent = Number(element(id).textContent) + 1;
}

/** Say what the connection is doing. */
export function showState(text) {
  element("state").textContent = text;
}

/** Put an update on top of the list, with its delay by this computer's clock. */
export function show({ seq, path, change, size, published }) {
  const delay = Math.round(Date.now() - 1000 * published);
  count("updates");
  addRow([seq, visible(path), change, size ?? "–", delay]);
  delays.push(delay);
  if (delays.length > ROWS) delays.shift();
  element("delay").textContent = median(delays);
}

/** Say that the server could not go on from this client's cursor: some updates are missing. */
export function showReset({ reason, cursor }) {
  count("resets");
  const row = addRow([`Reset (${reason}): some updates are gone for this client. It goes on from ${cursor}.`]);
  row.className = "reset";
  row.cells[0].colSpan = 5;
}

function addRow(texts) {
  const list = element("list");
  const row = list.insertRow(0);
  for (const [column, text] of texts.entries()) {
    const cell = row.insertCell();
    cell.textContent = text;
    if (texts.length > 1) cell.className = ["seq", "path", "change", "size", "delay"][column];
  }
  if (list.rows.length > ROWS) list.deleteRow(-1);
  return row;
}

/** Control characters as JSON writes them: a line break in a file's name shows as \n. */
function visible(text) {
  return text.replace(/[\x01-\x1f]/g, (character) => JSON.stringify(character).slice(1, -1));
}

function median(numbers) {
  return [...numbers].sort((a, b) => a - b)[numbers.length >> 1];
}
