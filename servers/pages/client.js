// What the four clients share. A client runs until its AbortSignal says stop, and tells the page what it does:
//
//   client(signal, page) ─▶ page.asks() … page.answered() · page.show(update) · page.showReset(gap)
//                           page.showState(text) · page.count(name) · page.rest(seconds, signal)
//                           page.url(path, parameters) · page.after
//
// live.js is a page with one of them, demo.js one with all four.

const LONGEST_PAUSE = 30_000; // ms

/** The URL of a path beside this page, wherever the page is served from; a null parameter is left out. */
export function endpoint(path, parameters = {}) {
  const url = new URL(path, new URL(".", location.href));
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null) url.searchParams.set(name, value);
  }
  return url;
}

/** Wait `ms` milliseconds; reject at once when the signal says stop. */
export function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal.addEventListener("abort", stop, { once: true });
  });
}

/** Wait before another try: the seconds that the server asks for (Retry-After), and on top a random time below a limit
 *  that doubles with each failure ("full jitter"). */
export async function backOff(failures, reason, signal, page, asked = 0) {
  const ms = 1000 * asked + Math.random() * Math.min(LONGEST_PAUSE, 500 * 2 ** failures);
  page.showState(`${reason}; trying again in ${(ms / 1000).toFixed(1)} s`);
  await sleep(ms, signal);
}

/** The JSON object of an answer; of an answer that is none, such as a proxy's page, an empty one. */
export async function bodyOf(answer) {
  const text = await answer.text();
  try {
    return JSON.parse(text);
  } catch (error) {
    if (answer.ok) throw error;
    return {};
  }
}

/** The seconds that an answer's Retry-After asks for (RFC 9110, section 10.2.3), an hour at most; 0 if it has none. */
export function retryAfter(answer) {
  const value = answer.headers.get("Retry-After") ?? "0";
  const seconds = /^\d+$/.test(value) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Math.min(Math.max(seconds || 0, 0), 3600);
}

export function median(numbers) {
  return [...numbers].sort((a, b) => a - b)[numbers.length >> 1];
}
