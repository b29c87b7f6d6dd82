// What all four pages do, whatever the model: show what came, count it, and run the client (client.js says how).
//
// Whatever comes from the server is shown by textContent, so that a file named "<script>" is only a name.

import { endpoint, median, sleep } from "./client.js";

const ROWS = 200; // updates kept on the page

const delays = []; // ms, of the updates on the page, oldest first

const element = (id) => document.getElementById(id);

/** This page, as its client sees it. `after` is the cursor to begin with: ?after=, null for "from now on". */
export const page = {
  after: new URLSearchParams(location.search).get("after"),
  url: endpoint,
  asks: () => count("requests"),
  answered() {},
  rest: (seconds, signal) => sleep(1000 * seconds, signal),
  count,
  show,
  showReset,
  showState,
};

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

/** Add one to the counter with this id. */
function count(id) {
  element(id).textContent = Number(element(id).textContent) + 1;
}

/** Say what the connection is doing. */
function showState(text) {
  element("state").textContent = text;
}

/** Put an update on top of the list, with its delay by this computer's clock. */
function show({ seq, path, change, size, published }) {
  const delay = Math.round(Date.now() - 1000 * published);
  count("updates");
  addRow([seq, visible(path), change, size ?? "–", delay]);
  delays.push(delay);
  if (delays.length > ROWS) delays.shift();
  element("delay").textContent = median(delays);
}

/** Say that the server could not go on from this client's cursor: some updates are missing. */
function showReset({ reason, cursor }) {
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
