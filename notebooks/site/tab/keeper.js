// What a page has fetched is kept for the next visit, and for one without a network.
//
// What is large has its version in its name and is never asked for twice; the rest is asked for first, and kept.

const STORE = new URL("./", location).pathname; // the host may have other courses
const PARTS = ["written by build.py"].map((name) => new URL(name, location).href);
const LARGE = /\/(pyodide-[\d.]+\/|course-\w+\.zip)/;

addEventListener("install", (event) => {
  const small = PARTS.filter((part) => !LARGE.test(part)).map((part) => new Request(part, { cache: "no-cache" }));
  event.waitUntil(caches.open(STORE).then((store) => store.addAll(small)));
  self.skipWaiting();
});

addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    const store = await caches.open(STORE);
    const old = (await store.keys()).filter(({ url }) => !PARTS.includes(url));
    await Promise.all(old.map((request) => store.delete(request)));
    await clients.claim();
  })());
});

addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "GET" && new URL(request.url).origin === location.origin) event.respondWith(answer(request));
});

async function answer(request) {
  const store = await caches.open(STORE);
  const kept = () => store.match(request, { ignoreSearch: true });
  if (LARGE.test(request.url)) {
    const found = await kept();
    if (found) return found;
  }
  try {
    const fresh = await fetch(request);
    if (fresh.ok) await store.put(request, fresh.clone()).catch(() => {}); // no room: it is there all the same
    return fresh;
  } catch (error) {
    const found = await kept();
    if (found) return found;
    throw error;
  }
}
