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

/** Wait before another try: a random time below a limit that doubles with each failure ("full jitter"). */
export async function backOff(failures, reason, signal, page) {
  const ms = Math.random() * Math.min(LONGEST_PAUSE, 500 * 2 ** failures);
  page.showState(`${reason}; trying again in ${(ms / 1000).toFixed(1)} s`);
  await sleep(ms, signal);
}

export function median(numbers) {
  return [...numbers].sort((a, b) => a - b)[numbers.length >> 1];
}
