// Long polling: ask, and let the server hold the request until there is news. Then ask again at once.

import { backOff, count, endpoint, firstCursor, show, showReset, showState, start } from "./live.js";

const HOLD = 25; // seconds that the server may wait for news
const PATIENCE = 10; // seconds more until the link is taken for dead

let cursor = firstCursor;

start(async (signal) => {
  let failures = 0;
  for (;;) {
    const { status, body } = await ask(signal).catch(noAnswer);
    signal.throwIfAborted();
    if (status === 200) {
      body.updates.forEach(show);
      cursor = body.cursor;
      if (body.updates.length === 0) count("empty");
    } else if (status === 410) {
      showReset(body);
      cursor = body.cursor;
    } else if (status === 400) {
      throw new Error(body.detail); // asking again would not help
    } else {
      count("retries");
      failures += 1;
      await backOff(failures, body.detail, signal);
      continue;
    }
    failures = 0;
  }
});

async function ask(signal) {
  count("requests");
  showState(cursor === null ? "asking where the log stands" : "waiting for news");
  const answer = await fetch(endpoint("updates", { after: cursor, wait: HOLD }), {
    signal: AbortSignal.any([signal, AbortSignal.timeout(1000 * (HOLD + PATIENCE))]),
  });
  return { status: answer.status, body: await answer.json() };
}

function noAnswer(error) {
  return { status: 0, body: { detail: error.message } };
}
