// Long polling: ask, and let the server hold the request until there is news. Then ask again at once.

import { backOff, bodyOf, retryAfter } from "./client.js";

const HOLD = 25; // seconds that the server may wait for news
const LEAST = 1; // second from one question to the next, if nothing is new: a server that is closing does not hold
const PATIENCE = 10; // seconds more until the link is taken for dead

let cursor = null;

export async function client(signal, page) {
  cursor ??= page.after;
  let failures = 0;
  for (;;) {
    const begun = performance.now();
    const { status, body, pause } = await ask(signal, page).catch(noAnswer);
    page.answered();
    signal.throwIfAborted();
    if (status === 200) {
      body.updates.forEach(page.show);
      const asked = cursor;
      cursor = body.cursor;
      if (body.updates.length === 0) page.count("empty");
      if (cursor === asked) await page.rest(Math.max(0, LEAST - (performance.now() - begun) / 1000), signal);
    } else if (status === 410) {
      page.showReset(body);
      cursor = body.cursor;
    } else if (status === 400) {
      throw new Error(body.detail); // asking again would not help
    } else {
      page.count("retries");
      failures += 1;
      await backOff(failures, body.detail ?? `answered ${status}`, signal, page, pause);
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
  return { status: answer.status, body: await bodyOf(answer), pause: retryAfter(answer) };
}

function noAnswer(error) {
  return { status: 0, body: { detail: error.message }, pause: 0 };
}
