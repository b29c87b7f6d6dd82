// File updates: list, then watch. The listing says at which cursor it is true; the stream goes on from there.
//
// EventSource does the watching, as on the page of Server-Sent Events. A reset means that the stream could not go on
// from this page's cursor: then what stands there is listed again.

import { backOff } from "./client.js";
import { client as watch } from "./sse.js";

const ROWS = 500; // files shown

const files = new Map(); // path to what is known of it
let listed = null; // the cursor of the listing
let waiting = null; // while it is fetched anew: the updates that came meanwhile

export async function client(signal, page) {
  if (waiting) relist(signal, page); // it was under way when the reader left
  for (let failures = 1; listed === null; failures += 1) {
    const reason = await list(signal, page).catch((error) => error.message);
    signal.throwIfAborted();
    if (reason) await backOff(failures, reason, signal, page);
  }
  await watch(signal, {
    ...page,
    after: listed,
    show(update) {
      page.show(update);
      apply(update);
    },
    showReset(gap) {
      page.showReset(gap);
      waiting = [];
      relist(signal, page);
    },
  });
}

/** Get the listing and show it; return why not, if the server says so. */
async function list(signal, page) {
  page.asks();
  const response = await fetch(page.url("files"), { signal });
  page.answered();
  if (!response.ok) return `the listing: ${response.status}`;
  const answer = await response.json();
  files.clear();
  for (const file of answer.files) files.set(file.path, file);
  listed = answer.cursor;
  draw();
}

/** List until it succeeds, then do what came meanwhile. */
async function relist(signal, page) {
  for (let failures = 1; waiting && !signal.aborted; failures += 1) {
    const reason = await list(signal, page).catch((error) => error.message);
    if (reason) {
      await backOff(failures, reason, signal, page).catch(() => {});
      continue;
    }
    const missed = waiting;
    waiting = null;
    missed.forEach(apply);
  }
}

/** Do an update to the list, unless the list is newer: after a reset both may tell of it. */
function apply(update) {
  if (waiting) return void waiting.push(update);
  const { seq, path, change, size, sha256 } = update;
  if (seq <= Number(listed.split("-")[1])) return;
  if (change === "deleted") files.delete(path);
  else files.set(path, { path, size, sha256 });
  draw();
}

let drawing = 0;

/** Show the list as it is, once for all the changes of one moment. */
function draw() {
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    const paths = [...files.keys()].sort();
    document.getElementById("known").textContent = files.size;
    document.getElementById("more").hidden = files.size <= ROWS;
    document.getElementById("files").replaceChildren(...paths.slice(0, ROWS).map((path) => row(files.get(path))));
  });
}

function row({ path, size, sha256 }) {
  const link = document.createElement("a");
  link.href = `files/${path.split("/").map(encodeURIComponent).join("/")}`;
  link.textContent = path.replace(/[\x01-\x1f]/g, (character) => JSON.stringify(character).slice(1, -1));
  const row = document.createElement("tr");
  const [name, bytes, hash] = [row.insertCell(), row.insertCell(), row.insertCell()];
  name.className = "path";
  name.append(link);
  bytes.className = "size";
  bytes.textContent = size ?? "–";
  hash.textContent = sha256?.slice(0, 12) ?? "–";
  hash.title = sha256 ?? "";
  return row;
}
