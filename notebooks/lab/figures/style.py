"""One look for every figure, and a sentence for those who cannot see it.

    a model's name ─▶ style: colour, line, marker        blank(...) ─▶ Picture ─▶ notebook (PNG and its text), or a file

Importing this module gives every figure of matplotlib's the same look, the reader's own ones too.
"""

import base64
import html
import io
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

WIDTH, DPI = 8.0, 110  # inches; half of the 880 pixels are enough to read it
INK, GREY = "#222222", "#5f5f5f"
HIDDEN = "position:absolute;width:1px;height:1px;margin:0;overflow:hidden;clip-path:inset(50%)"  # but read aloud


class Style(NamedTuple):
    """How a model looks in every figure of the course."""

    color: str
    line: str | tuple[int, tuple[int, ...]]
    marker: str
    size: float


# Pull is warm, push is cold. At least 3:1 against white, and apart from each other in grey (1.3:1) and for
# the three kinds of colour blindness (ΔE 25); the tests measure it.
STYLES = {
    "short polling": Style("#c24a0a", (0, (1, 1)), "o", 6.5),
    "long polling": Style("#6a0f3c", (0, (5, 1, 1, 1)), "s", 6),
    "WebSocket": Style("#1648b0", (0, (4, 1)), "D", 6),
    "SSE": Style("#0f9a82", "-", "^", 7.5),
}
OTHER = Style("#3a3a3a", "-", "o", 6.5)
LETTERS = {"#0f9a82": "#0b7c69"}  # where a line's colour is too pale for letters, which need 4.5:1 (WCAG 2.2, 1.4.3)

LOOK: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters on every machine
    "font.size": 12,
    "axes.titlesize": 14,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 2.2,
    "axes.prop_cycle": cycler(color=["#1648b0", "#c24a0a", "#0f9a82", "#6a0f3c"]),
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.figsize": (WIDTH, 4.0),
    "figure.dpi": DPI,
    "savefig.dpi": "figure",
    "svg.hashsalt": "push-vs-pull",  # the same ids, so the same file, each time
}

mpl.rcParams.update(LOOK)

_display: Callable[..., object] = display  # IPython's has no types


def style(model: str) -> Style:
    """The model's style; dark grey for anything else."""
    return STYLES.get(model, OTHER)


def letters(color: str) -> str:
    """What is written in a line's colour is written in this one."""
    return LETTERS.get(color, color)


class Picture(Figure):
    """A figure with its alternative text, `alt`; it shows itself as a cell's last line."""

    alt: str = ""

    def save(self, path: str | Path) -> None:
        """Write it to a file, SVG or PNG by its name: the same figure gives the same bytes."""
        path = Path(path)
        metadata = {"Date": None, "Description": self.alt} if path.suffix == ".svg" else {"Software": None}
        self.savefig(path, metadata=metadata)

    def _ipython_display_(self) -> None:
        show(self)


def show(figure: Figure, alt: str | None = None) -> None:
    """Display a figure with its alternative text, where every reader finds it.

    The text is the image's `alt` metadata, which is Jupyter's convention, and once more a hidden paragraph:
    neither JupyterLab nor nbconvert makes an `alt` attribute of the metadata. Raises ValueError without a text.
    """
    text = alt or getattr(figure, "alt", "")
    if not text:
        raise ValueError("a figure needs a sentence that says what it shows: show(figure, alt=...)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    picture = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": text}
    _display(picture, raw=True, metadata={"image/png": {"alt": text}})
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close(figure)  # a figure of pyplot's would be displayed once more, without its text
    _display({"text/html": f'<p style="{HIDDEN}">Figure: {html.escape(text)}</p>', "text/plain": ""}, raw=True)


def blank(
    title: str, xlabel: str, ylabel: str, *, height: float = 4.0, alt: str = "", tag: str = ""
) -> tuple[Picture, Axes]:
    """An empty picture in the course's look, and its axes, for a figure of one's own; `tag` is LIVE or VIRTUAL."""
    picture, axes = panel(height, title, tag)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    picture.alt = alt
    return picture, axes


def panel(height: float, title: str, tag: str = "") -> tuple[Picture, Axes]:
    """An empty picture, `height` inches without its title; `tag` (LIVE or VIRTUAL) stands at its upper right."""
    text = _balanced(title, 62 if len(tag) < 10 else 42)
    lines = text.count("\n") + 1
    picture = Picture(figsize=(WIDTH, height + 0.27 * lines), layout="constrained")
    axes: Axes = picture.add_subplot()
    picture.suptitle(text, x=0.008, ha="left", size=14, weight="bold")
    picture.text(0.992, 1 - 0.02 / height, tag, ha="right", va="top", size=9, color=GREY)
    return picture, axes


def _balanced(text: str, width: int) -> str:
    """The text in as few lines as fit the width (characters), all about as long; a unit stays with its number."""
    text = re.sub(r"(?<=\d) (?=ms\b|s\b|%)", "\N{NO-BREAK SPACE}", text)
    lines = len(textwrap.wrap(text, width))
    while width > 1 and len(textwrap.wrap(text, width - 1)) <= lines:
        width -= 1
    return textwrap.fill(text, width)


def beside(axes: Axes, text: str, x: float, y: float, color: str) -> None:
    """A direct label, a little to the right of a point."""
    offset: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(text, (x, y), color=letters(color), size=10.5, va="center", **offset)
