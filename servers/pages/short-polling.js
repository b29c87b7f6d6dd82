// Short polling: ask, sleep, ask again. The server answers at once, news or not.

import { backOff, bodyOf, retryAfter } from "./client.js";

let cursor = null;
let etag = null; // of the last answer: with nothing new since, the server says 304 and sends no body
let interval = 5; // seconds, until the server asks for another

export async function client(signal, page) {
  cursor ??= page.after;
  let failures = 0;
  for (;;) {
    const { status, body, pause } = await ask(signal, page).catch(noAnswer);
    page.answered();
    signal.throwIfAborted();
    if (status === 200) {
      body.updates.forEach(page.show);
      cursor = body.cursor;
      if (body.updates.length === 0) page.count("empty");
    } else if (status === 304) {
      page.count("empty");
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
    page.showState(`sleeping ${interval} s`);
    await page.rest(interval, signal);
  }
}

async function ask(signal, page) {
  page.asks();
  page.showState("asking");
  const answer = await fetch(page.url("updates", { after: cursor }), {
    headers: etag ? { "If-None-Match": etag } : {},
    cache: "no-store", // this client compares, not the browser's cache
    signal,
  });
  const body = answer.status === 304 ? null : await bodyOf(answer);
  etag = answer.headers.get("ETag");
  interval = Number(answer.headers.get("X-Poll-Interval") ?? interval);
  return { status: answer.status, body, pause: retryAfter(answer) };
}

function noAnswer(error) {
  return { status: 0, body: { detail: error.message }, pause: 0 };
}
