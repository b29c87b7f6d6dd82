"""A live page inside a notebook: in a real JupyterLab below a base URL, as a JupyterHub has it, and without one."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import expect

from lab.figures.embed import SENTENCE, embed
from lab.teaching.client import Client
from servers import sse
from servers.background import serve
from servers.feed import Feed
from tests.support_browser import Tab, browser, tab, until
from tests.support_jupyter import Jupyter, jupyter
from tests.test_demo_page import is_connected, shown

__all__ = ["browser", "tab"]  # fixtures

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


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jupyter]:
    """JupyterLab, below a base URL."""
    with jupyter("lab", tmp_path_factory.mktemp("jupyter")) as running:
        yield running


def test_without_jupyter_there_is_a_sentence_and_nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook that is executed to be stored keeps the sentence alone: no script, no port, no address."""
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    notebook = new_notebook(cells=[new_code_cell(CELL)])
    Client(notebook, kernel_name="python3", timeout=60).execute()
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


def test_page_lives_in_a_notebook_below_a_base_url(lab: Jupyter, tab: Tab) -> None:
    """In JupyterLab below /user/x/ the page of a kernel's server streams in the notebook, and again after a re-run."""
    tab.allow("")  # what JupyterLab says in its own console
    lab.open_new(tab, CELL, "feed.publish('a.txt')")
    frame = tab.page.frame_locator("iframe[title='Live page']")
    for _ in range(2):
        lab.run(tab, 0)
        expect(frame.locator("#state")).to_have_text("readyState 1 (open)")
        for count in ("1", "2"):
            lab.run(tab, 1)
            expect(frame.locator("#updates")).to_have_text(count)


def test_demo_lives_in_a_notebook_below_a_base_url(lab: Jupyter, tab: Tab) -> None:
    """Through the proxy all four lanes of the demo work, heal a cut, and leave nothing behind on a reload."""
    complaints: list[str] = []
    tab.context.on("console", lambda message: complaints.append(f"{message.location['url']}: {message.text}"))
    tab.allow("")
    lab.open_new(tab, DEMO, "for _ in range(5):\n    feed.publish('a.txt')")
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
