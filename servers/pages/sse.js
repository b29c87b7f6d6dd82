// Server-Sent Events: one response that does not end. EventSource parses it, reconnects, and sends Last-Event-ID.
//
// What EventSource does not do: it gives up for good on an answer other than 200, and does not say which it was.
// Then this client opens a new one, from the last cursor it knows.

import { backOff, count, endpoint, firstCursor, show, showReset, showState, start } from "./live.js";

const READY_STATES = ["connecting", "open", "closed"];

let cursor = firstCursor;
let failures = 0;

start(async (signal) => {
  for (;;) {
    const reason = await stream(signal).catch((error) => error.message);
    signal.throwIfAborted();
    count("reconnects");
    failures += 1;
    await backOff(failures, reason, signal);
  }
});

/** Listen until EventSource has given up. */
async function stream(signal) {
  // The opening id makes no event: EventSource remembers it, this client would not have it when it needs it.
  cursor ??= (await (await fetch(endpoint("healthz"), { signal })).json()).cursor;

  count("requests");
  const source = new EventSource(endpoint("events", { after: cursor }));
  const showReadyState = () => showState(`readyState ${source.readyState} (${READY_STATES[source.readyState]})`);
  showReadyState();

  source.addEventListener("open", () => {
    failures = 0;
    showReadyState();
  });
  source.addEventListener("update", (event) => {
    cursor = event.lastEventId;
    show(JSON.parse(event.data));
  });
  source.addEventListener("reset", (event) => {
    cursor = event.lastEventId;
    showReset(JSON.parse(event.data));
  });

  return new Promise((resolve) => {
    source.addEventListener("error", () => {
      showReadyState();
      if (source.readyState === EventSource.CLOSED) {
        resolve("readyState 2 (closed): EventSource has given up");
      } else {
        count("requests"); // EventSource asks again by itself, after the pause that "retry:" gave it
        count("reconnects");
      }
    });
    signal.addEventListener("abort", () => {
      source.close();
      resolve();
    });
  });
}
