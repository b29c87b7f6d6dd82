// A live page runs the client that it names: <html data-model="sse"> runs sse.js.

import { page, start } from "./live.js";

const { client } = await import(`./${document.documentElement.dataset.model}.js`);
start((signal) => client(signal, page));
