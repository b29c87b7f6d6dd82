// Short polling: ask, sleep, ask again. The server answers at once, news or not.

import { backOff, count, endpoint, firstCursor, show, showReset, showState, sleep, start } from "./live.js";

let cursor = firstCursor;
let etag = null; // of the last answer: with nothing new since, the server says 304 and sends no body
let interval = 5; // seconds, until the server asks for another

start(async (signal) => {
  let failures = 0;
  for (;;) {
    const { status, body } = await ask(signal).catch(noAnswer);
    signal.throwIfAborted();
    if (status === 200) {
      body.updates.forEach(show);
      cursor = body.cursor;
      if (body.updates.length === 0) count("empty");
    } else if (status === 304) {
      count("empty");
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
    showState(`sleeping ${interval} s`);
    await sleep(1000 * interval, signal);
  }
});

async function ask(signal) {
  count("requests");
  showState("asking");
  const answer = await fetch(endpoint("updates", { after: cursor }), {
    headers: etag ? { "If-None-Match": etag } : {},
    cache: "no-store", // this client compares, not the browser's cache
    signal,
  });
  const body = answer.status === 304 ? null : await answer.json();
  etag = answer.headers.get("ETag");
  interval = Number(answer.headers.get("X-Poll-Interval") ?? interval);
  return { status: answer.status, body };
}

function noAnswer(error) {
  return { status: 0, body: { detail: error.message } };
}
