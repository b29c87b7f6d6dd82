// Server-Sent Events: one response that does not end. EventSource parses it, reconnects, and sends Last-Event-ID.
//
// What EventSource does not do: it gives up for good on an answer other than 200, and does not say which it was.
// Then this client opens a new one, from the last cursor it knows.

import { backOff } from "./client.js";

const READY_STATES = ["connecting", "open", "closed"];

let cursor = null;
let failures = 0;

export async function client(signal, page) {
  cursor ??= page.after;
  for (;;) {
    const reason = await stream(signal, page).catch((error) => error.message);
    page.answered();
    signal.throwIfAborted();
    page.count("reconnects");
    failures += 1;
    await backOff(failures, reason, signal, page);
  }
}

/** Listen until EventSource has given up. */
async function stream(signal, page) {
  // The opening id makes no event: EventSource remembers it, this client would not have it when it needs it.
  cursor ??= (await (await fetch(page.url("healthz"), { signal })).json()).cursor;

  page.asks();
  let dropped = false;
  const source = new EventSource(page.url("events", { after: cursor }));
  const showReadyState = () => page.showState(`readyState ${source.readyState} (${READY_STATES[source.readyState]})`);
  showReadyState();

  source.addEventListener("open", () => {
    failures = 0;
    if (dropped) page.asks(); // EventSource did, by itself, after the pause that "retry:" gave it
    dropped = false;
    showReadyState();
  });
  source.addEventListener("update", (event) => {
    cursor = event.lastEventId;
    page.show(JSON.parse(event.data));
  });
  source.addEventListener("reset", (event) => {
    cursor = event.lastEventId;
    page.showReset(JSON.parse(event.data));
  });

  return new Promise((resolve) => {
    source.addEventListener("error", () => {
      showReadyState();
      if (source.readyState === EventSource.CLOSED) {
        resolve("readyState 2 (closed): EventSource has given up");
      } else {
        if (!dropped) page.answered();
        dropped = true;
        page.count("reconnects");
      }
    });
    signal.addEventListener("abort", () => {
      source.close();
      resolve();
    });
  });
}
