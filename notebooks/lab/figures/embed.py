"""A running server's live page inside a notebook, wherever that notebook runs.

    embed(server) ─▶ Embedded ─▶ HTML: one sentence, and a script that knows the server's port
                                       └─ in JupyterLab: asks BASE/proxy/PORT/healthz ─▶ the page in a frame

The browser cannot reach 127.0.0.1 of the kernel's machine when that is not its own (JupyterHub, Binder), so the page
comes through jupyter-server-proxy, below the base URL that JupyterLab writes into its own page. Whatever shows no
JupyterLab keeps the sentence: a site that renders notebooks, an editor with a notebook view, this file in git.

A page that streams holds connections to JupyterLab's own address, and a browser opens six to one address (HTTP/1.1,
WebSockets apart): keep at most three streaming pages open at a time, or JupyterLab itself waits for a free one.
"""

import base64
import html
import json
import os
from pathlib import Path
from typing import Any, Protocol

SENTENCE = "When this cell runs in JupyterLab, on JupyterHub or on Binder, the live page shows here."


class Running(Protocol):
    """A running server, as `serve` returns it."""

    port: int
    app: Any


class Embedded:
    """What `embed` returns; it shows itself as a cell's last line. `instead` is the HTML where no page can be."""

    def __init__(self, instead: str, **page: str | int) -> None:
        self.instead, self.page = instead, page

    def __repr__(self) -> str:
        return SENTENCE

    def _repr_html_(self) -> str:
        # Jupyter's server tells a kernel for which notebook it runs. Without that (nbclient, an editor) there is no
        # proxy either, so neither script nor port gets into a notebook that is executed to be stored.
        if "JPY_SESSION_NAME" not in os.environ:
            return f"<div>{self.instead}</div>"
        page = json.dumps(self.page).replace("<", r"\u003c")
        return f"<div>{self.instead}</div><script>({SCRIPT})({page})</script>"


def embed(
    server: Running,
    height: int = 560,
    *,
    path: str = "",
    title: str = "Live page",
    picture: str | Path | None = None,
    alt: str = "",
) -> Embedded:
    """The live page of a server that `serve` started, `height` pixels high, to be the last line of a cell.

    `path` leads to another page of it ("docs"), `title` names the frame for those who cannot see it. Where no live page
    can be, there is a sentence, with a `picture` (PNG) of the page if one is given; it needs its own text, `alt`.
    Running the cell again replaces the frame, whose streams end with it. Raises ValueError without that text.
    """
    instead = f"<p><em>{html.escape(SENTENCE)}</em></p>"
    if picture is not None:
        if not alt:
            raise ValueError("a picture needs a sentence that says what it shows: embed(..., picture=..., alt=...)")
        data = base64.b64encode(Path(picture).read_bytes()).decode()
        instead += f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}" style="max-width:100%">'
    feed = getattr(server.app, "feed", None)
    epoch = f"{feed.epoch}-" if feed is not None else ""
    return Embedded(instead, port=server.port, path=path, epoch=epoch, height=height, title=title)


# A reader's own saved copy has the script, and later another program may have the port: only a server whose cursor is
# of this very log gets a frame. Without jupyter-server-proxy (404) a reader at the kernel's machine gets the page all
# the same. It is a classic script: `currentScript` is null in a module.
SCRIPT = """({ port, path, epoch, height, title }) => {
  const place = document.currentScript.previousElementSibling;
  const config = document.getElementById("jupyter-config-data"); // JupyterLab, Notebook 7
  const base = config ? JSON.parse(config.textContent).baseUrl : document.body.dataset.baseUrl;
  if (!base) return;
  const proxied = new URL(`${base.replace(/[/]$/, "")}/proxy/${port}/`, location.href);
  const show = (url) => {
    const frame = document.createElement("iframe");
    Object.assign(frame, { src: new URL(path, url), title });
    frame.style.cssText = `width: 100%; height: ${height}px; border: 0`;
    place.replaceChildren(frame);
  };
  fetch(new URL("healthz", proxied)).then(async (answer) => {
    if (answer.ok && (await answer.json()).cursor.startsWith(epoch)) show(proxied);
    if (answer.status === 404 && ["localhost", "127.0.0.1"].includes(location.hostname)) show(`http://127.0.0.1:${port}/`);
  }).catch(() => {}); // another program's answer: the sentence stays
}"""
