// Long polling: ask, and let the server hold the request until there is news. Then ask again at once.

import { backOff } from "./client.js";

const HOLD = 25; // seconds that the server may wait for news
const PATIENCE = 10; // seconds more until the link is taken for dead

let cursor = null;

export async function client(signal, page) {
  cursor ??= page.after;
  let failures = 0;
  for (;;) {
    const { status, body } = await ask(signal, page).catch(noAnswer);
    page.answered();
    signal.throwIfAborted();
    if (status === 200) {
      body.updates.forEach(page.show);
      cursor = body.cursor;
      if (body.updates.length === 0) page.count("empty");
    } else if (status === 410) {
      page.showReset(body);
      cursor = body.cursor;
    } else if (status === 400) {
      throw new Error(body.detail); // asking again would not help
    } else {
      page.count("retries");
      failures += 1;
      await backOff(failures, body.detail, signal, page);
      continue;
    }
    failures = 0;
  }
}

async function ask(signal, page) {
  page.asks();
  page.showState(cursor === null ? "asking where the log stands" : "waiting for news");
  const answer = await fetch(page.url("updates", { after: cursor, wait: HOLD }), {
    signal: AbortSignal.any([signal, AbortSignal.timeout(1000 * (HOLD + PATIENCE))]),
  });
  return { status: answer.status, body: await answer.json() };
}

function noAnswer(error) {
  return { status: 0, body: { detail: error.message } };
}
