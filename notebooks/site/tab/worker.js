// The worker in which the course's Python lives: it plays situations, one after the other, and tells while it plays.
//
//     page ─▶ {load: {pyodide, course}} ─▶ {ready}
//     page ─▶ {said, sources} ─▶ lab.tab.play(said, tell, sources) ─▶ {news}, {news}, ... {result}
//
// A run occupies the worker; to stop it, the page terminates it and starts another one.

let loading = null; // becomes what plays

async function load({ pyodide, course }) {
  const { loadPyodide } = await import(`./${pyodide}/pyodide.mjs`);
  const [python, archive] = await Promise.all([
    loadPyodide({ stdout: () => {}, stderr: () => {} }), // what servers log is no news
    fetch(course).then((answer) => {
      if (!answer.ok) throw new Error(`${course}: ${answer.status}`);
      return answer.arrayBuffer();
    }),
  ]);
  python.unpackArchive(archive, "zip", { extractDir: "/course" });
  python.runPython(`
import json, sys
sys.path.insert(0, "/course")
from lab import tab

def play(said, sources, tell):
    return json.dumps(tab.play(json.loads(said), lambda news: tell(json.dumps(news)), json.loads(sources)))
`);
  return python.globals.get("play");
}

addEventListener("message", async ({ data }) => {
  try {
    if (data.load) {
      loading = load(data.load);
      await loading;
      return postMessage({ ready: true });
    }
    const play = await loading;
    const began = performance.now();
    const tell = (news) => postMessage({ news });
    const result = play(JSON.stringify(data.said), JSON.stringify(data.sources), tell); // not in a task: asyncio's rule
    postMessage({ result, took: (performance.now() - began) / 1000 });
  } catch (error) {
    postMessage({ failed: String(error.message ?? error).trim().split("\n").at(-1) });
  }
});
