"""A live page inside a notebook: in a real JupyterLab below a base URL, as a JupyterHub has it, and without one."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import expect

from lab.figures.embed import SENTENCE, embed
from servers import sse
from servers.background import serve
from servers.feed import Feed
from tests.support_browser import Tab, browser, tab, until
from tests.test_demo_page import is_connected, shown

__all__ = ["browser", "tab"]  # fixtures

BASE, TOKEN = "/user/x/", "secret"
SESSION = "globalThis.jupyterapp?.shell?.currentWidget?.sessionContext"  # there by expose_app_in_browser
CELL = """\
from lab.figures.embed import embed
from servers import sse
from servers.background import serve
from servers.feed import Feed

feed = Feed(epoch="e0e0")
server = serve(sse.create_app(feed))
embed(server, height=420)"""

DEMO = """\
from lab.figures.embed import embed
from servers import demo
from servers.background import serve
from servers.feed import Feed

feed = Feed()
server = serve(demo.create_app(feed, rate=0, interval=0.2))
embed(server, height=640, title="The demo")"""


@dataclass
class Lab:
    """A running JupyterLab and its working folder."""

    url: str
    folder: Path

    def open(self, tab: Tab, *cells: str) -> None:
        """Open a new notebook with these cells, and wait until its kernel is connected."""
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells], metadata={"kernelspec": kernel})
        nbformat.write(notebook, self.folder / "notebook.ipynb")
        tab.page.goto(f"{self.url}lab/tree/notebook.ipynb?token={TOKEN}&reset")
        tab.page.wait_for_function(f"{SESSION}?.session?.kernel?.connectionStatus === 'connected'")
        tab.page.evaluate(f"{SESSION}.ready")

    def run(self, tab: Tab, cell: int) -> None:
        """Run one cell to its end."""
        tab.page.evaluate(f"jupyterapp.shell.currentWidget.content.activeCellIndex = {cell}")
        tab.page.evaluate("jupyterapp.commands.execute('notebook:run-cell')")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab as a process of its own, with its own configuration, below /user/x/."""
    home = tmp_path_factory.mktemp("jupyter")
    folder, config = home / "work", home / "config"
    (config / "labconfig").mkdir(parents=True)
    folder.mkdir()
    asks_for_news = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (config / "labconfig" / "page_config.json").write_text(json.dumps(asks_for_news))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"base_url": BASE, "port": port, "root_dir": folder, "open_browser": False, "allow_root": True}
    command = [sys.executable, "-m", "jupyterlab", f"--IdentityProvider.token={TOKEN}"]
    command += ["--LabApp.expose_app_in_browser=True"]
    command += [f"--ServerApp.{name}={value}" for name, value in options.items()]
    private = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    with (home / "log").open("w") as log:
        process = subprocess.Popen(command, env=os.environ | private, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}{BASE}"

        def answers() -> bool:
            assert process.poll() is None, (home / "log").read_text()
            try:
                return httpx.get(f"{url}api", trust_env=False).is_success
            except httpx.TransportError:
                return False

        until(answers)
        yield Lab(url, folder)
    finally:
        process.terminate()
        process.wait(20)


def test_without_jupyter_there_is_a_sentence_and_nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook that is executed to be stored keeps the sentence alone: no script, no port, no address."""
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    notebook = new_notebook(cells=[new_code_cell(CELL)])
    NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    (output,) = notebook.cells[0].outputs
    assert output.data == {"text/plain": SENTENCE, "text/html": f"<div><p><em>{SENTENCE}</em></p></div>"}


def test_picture_stands_where_no_page_can_be(tmp_path: Path) -> None:
    """A picture comes with a text for those who cannot see it, or is refused."""
    picture = tmp_path / "page.png"
    picture.write_bytes(b"\x89PNG")
    with serve(sse.create_app(Feed())) as server:
        shown = embed(server, picture=picture, alt='Dots & "lines"')
        with pytest.raises(ValueError, match="a sentence that says what it shows"):
            embed(server, picture=picture)
    assert shown._repr_html_().endswith(
        '<img src="data:image/png;base64,iVBORw==" alt="Dots &amp; &quot;lines&quot;" style="max-width:100%"></div>'
    )


def test_page_lives_in_a_notebook_below_a_base_url(lab: Lab, tab: Tab) -> None:
    """In JupyterLab below /user/x/ the page of a kernel's server streams in the notebook, and again after a re-run."""
    tab.allow("")  # what JupyterLab says in its own console
    lab.open(tab, CELL, "feed.publish('a.txt')")
    frame = tab.page.frame_locator("iframe[title='Live page']")
    for _ in range(2):
        lab.run(tab, 0)
        expect(frame.locator("#state")).to_have_text("readyState 1 (open)")
        for count in ("1", "2"):
            lab.run(tab, 1)
            expect(frame.locator("#updates")).to_have_text(count)


def test_demo_lives_in_a_notebook_below_a_base_url(lab: Lab, tab: Tab) -> None:
    """Through the proxy all four lanes of the demo work, heal a cut, and leave nothing behind on a reload."""
    complaints: list[str] = []
    tab.context.on("console", lambda message: complaints.append(f"{message.location['url']}: {message.text}"))
    tab.allow("")
    lab.open(tab, DEMO, "for _ in range(5):\n    feed.publish('a.txt')")
    lab.run(tab, 0)
    expect(tab.page.locator("iframe[title='The demo']")).to_be_visible()
    frame = tab.page.locator("iframe[title='The demo']").element_handle().content_frame()
    assert frame is not None
    is_connected(frame)
    lab.run(tab, 1)
    until(lambda: shown(frame, "received") == [5] * 4)
    assert [text for text in complaints if "/proxy/" in text] == []
    frame.get_by_role("button", name="Cut").click()
    expect(frame.locator("#said")).to_have_text(re.compile("^Cut. Each client connects again"))
    lab.run(tab, 1)
    until(lambda: shown(frame, "received") == [10] * 4)
    assert shown(frame, "lost") == [0] * 4
    frame.goto(frame.url)
    is_connected(frame)
    held = (
        "fetch('state').then(answer => answer.json()).then(({ lanes }) => Object.values(lanes).map(lane => lane.held))"
    )
    until(lambda: frame.evaluate(held)[1:] == [1, 1, 1])  # of itself the proxy keeps a stream whose reader has left
    lab.run(tab, 1)
    until(lambda: shown(frame, "received") == [5] * 4)
