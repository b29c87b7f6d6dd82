// Short polling on node's http, as small as it gets: node recipes.js PORT RATE. The updates are like our own, and all kept.

const http = require("node:http");
const [port, rate] = process.argv.slice(2).map(Number);
const history = [];

setInterval(() => {
  const seq = history.length + 1;
  history.push({
    seq, path: `folder/file-${seq % 50}.txt`, change: "modified", size: 1234, sha256: "0".repeat(64),
    published: Date.now() / 1000,
  });
}, 1000 / rate);

http.createServer({ keepAliveTimeout: 75000 }, (request, response) => {
  const after = Number(new URL(request.url, "http://x").searchParams.get("after"));
  const body = JSON.stringify({ updates: history.slice(after), cursor: history.length });
  response.writeHead(200, { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(body) });
  response.end(body);
}).listen(port, "127.0.0.1");
