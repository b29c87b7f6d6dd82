"""Tests of the pictures of streams, and of what notebook 04 says of its server's messages."""

import re
from pathlib import Path

import nbformat
import pytest

from lab.figures import cut_lines, proxy_lanes
from servers import sse

ROOT = Path(__file__).resolve().parent.parent


def texts(picture: object) -> list[str]:
    """Everything that is written inside the axes."""
    [axes] = picture.axes  # type: ignore[attr-defined]
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(
    ("chunks", "lines", "crossed"),
    [
        ([b"data: x\r", b"\ndata: y\r", b"data: z\n"], ["line 1: data: x", "line 2: data: y", "line 3: data: z"], 1),
        ([b"a\r\nb", b"c\n"], ["line 1: a", "line 2: bc"], 1),
        ([b"a\n", b"\r", b"\n"], ["line 1: a", "line 2:"], 1),
        ([b"a\rb"], ["line 1: a"], 0),
    ],
    ids=["over two chunks", "in one, and a cut line", "a blank line", "an unfinished line"],
)
def test_an_lf_after_a_cr_ends_no_line_of_its_own(chunks: list[bytes], lines: list[str], crossed: int) -> None:
    """Each line has its text below it, and only the second halves of CRLF are crossed out."""
    picture = cut_lines(chunks)
    assert [text.strip() for text in texts(picture) if text.startswith("line ")] == lines
    assert f"{len(lines)} line" in picture.get_suptitle().replace("\n", " ")
    [axes] = picture.axes
    assert sum(len(set(line.get_ydata())) == 2 for line in axes.lines) == crossed  # type: ignore[arg-type]
    assert f"{crossed} LF" in picture.alt


def test_the_lanes_say_what_was_held_back() -> None:
    """Title and alternative text name the lanes where nothing came while the stream was open, and the program."""
    sent, late = [10.0, 10.1], [12.0, 12.0]
    picture = proxy_lanes(sent, {"plain": sent, "gzip": late}, {"plain": 2, "gzip": 0}, "nginx/1.22.1")
    assert picture.get_suptitle() == "Held back until the stream ends: gzip"
    assert "through nginx/1.22.1. All together at the end: gzip. Each as it is published: plain." in picture.alt
    nothing = proxy_lanes(sent, {"plain": sent}, {"plain": 2}, "imitation")
    assert nothing.get_suptitle() == "Held back until the stream ends: nothing"


def test_the_time_of_the_lanes_begins_with_the_first_update() -> None:
    """The axis counts from the first publication, not from the start of the proxies."""
    [axes] = proxy_lanes([100.0, 101.0], {"plain": [100.5]}, {"plain": 1}, "imitation").axes
    published, arrived = axes.lines[0].get_xdata(), axes.lines[1].get_xdata()
    assert (list(published), list(arrived)) == ([0.0, 1.0], [0.5])  # type: ignore[arg-type]


def test_notebook_04_lists_the_messages_of_its_server() -> None:
    """Whatever its table says that passes stands in the flow at the head of servers/sse.py."""
    notebook = nbformat.read(ROOT / "notebooks" / "04_server_sent_events.ipynb", as_version=4)
    [table] = [cell.source for cell in notebook.cells if "| from | what | when |" in cell.source]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith(("| client", "| server"))]
    said = {span for row in rows for span in re.findall("`(.*?)`", row)}
    flow = re.sub(r"\s+", " ", (sse.__doc__ or "").replace("C'", "C"))
    assert len(rows) == 6
    assert [span for span in sorted(said) if span not in flow] == []
