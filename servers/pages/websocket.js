// WebSocket: one connection, messages both ways. The browser does not reconnect by itself, so this client does.

import { backOff } from "./client.js";

const POLICY_VIOLATION = 1008; // RFC 6455, section 7.4.1: the same again would not help
const RENEW = 1012; // the connection has lived its time: come back at once

let cursor = null;
let socket = null;
let failures = 0;
let filter = { type: "filter", id: 0, paths: [""] }; // every path begins with ""

export async function client(signal, page) {
  cursor ??= page.after;
  for (;;) {
    const { code, reason } = await connection(signal, page);
    page.answered();
    signal.throwIfAborted();
    if (code === POLICY_VIOLATION) throw new Error(reason);
    page.count("reconnects");
    if (code === RENEW && failures === 0) continue;
    failures += 1;
    await backOff(failures, `closed with ${code}`, signal, page); // 1006: lost, or never accepted
  }
}

/** Open a connection, live on it, and return its close event. */
function connection(signal, page) {
  page.asks();
  page.showState("connecting");
  const url = page.url("ws", { after: cursor });
  url.protocol = url.protocol.replace("http", "ws");
  socket = new WebSocket(url);
  signal.addEventListener("abort", () => socket.close(), { once: true });
  socket.onopen = () => {
    page.showState("open");
    if (filter.id > 0) socket.send(JSON.stringify(filter)); // the server forgot it with the last connection
  };
  socket.onmessage = (event) => receive(JSON.parse(event.data), page);
  return new Promise((resolve) => (socket.onclose = resolve));
}

function receive(message, page) {
  failures = 0;
  cursor = message.cursor; // every message has one
  if (message.type === "updates") message.updates.forEach(page.show);
  if (message.type === "reset") page.showReset(message);
  if (message.type === "filtered") showFilter(`filter ${message.id} obeyed after ${message.cursor}`);
}

document.getElementById("filter")?.addEventListener("submit", (event) => {
  event.preventDefault();
  const prefix = document.getElementById("prefix").value;
  filter = { type: "filter", id: filter.id + 1, paths: [prefix] };
  if (socket.readyState === WebSocket.OPEN) {
    socket.send(JSON.stringify(filter));
    showFilter(`filter ${filter.id} sent`);
  } else {
    showFilter(`filter ${filter.id} waits for a connection`);
  }
});

function showFilter(text) {
  document.getElementById("filtered").textContent = text;
}
