// What a page has fetched is kept for the next visit, and for one without a network.
//
// What is large has its version in its name and is never asked for twice; the rest is asked for first, and kept.

const STORE = "course-VERSION";
const LARGE = /\/(pyodide-[\d.]+\/|course-\w+\.zip)/;

addEventListener("install", () => self.skipWaiting());

addEventListener("activate", (event) => {
  const others = async () => (await caches.keys()).filter((name) => name.startsWith("course-") && name !== STORE);
  event.waitUntil((async () => {
    await Promise.all((await others()).map((name) => caches.delete(name)));
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
    if (fresh.ok) await store.put(request, fresh.clone());
    return fresh;
  } catch (error) {
    const found = await kept();
    if (found) return found;
    throw error;
  }
}
