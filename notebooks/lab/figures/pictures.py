"""The course's figures: one look, one colour, line and marker for each model, a sentence for those who cannot see.

    Run, or several ─▶ timeline │ delay_ecdf │ request_bars ─▶ Picture ─▶ notebook (PNG and its text), or a file

Each returns a `Picture`: a matplotlib figure that a notebook displays when it is a cell's last line. Its
title and its alternative text state what was found, from the numbers, unless the caller says it better.
Importing this module gives every figure of matplotlib's the same look, the reader's own ones too.
"""

import base64
import html
import io
import math
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lab.bench.result import Run, count, seconds

WIDTH, DPI = 8.0, 110  # inches; half of the 880 pixels are enough to read it
INK, GREY = "#222222", "#5f5f5f"
MOST_UPDATES = 24  # in one timeline, to be told apart
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
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.figsize": (WIDTH, 4.0),
    "figure.dpi": DPI,
    "savefig.dpi": "figure",
    "svg.hashsalt": "push-vs-pull",  # the same ids, so the same file, each time
}

mpl.rcParams.update(LOOK)

_display: Callable[..., object] = display  # IPython's has no types
Cdf = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def style(model: str) -> Style:
    """The model's style; dark grey for anything else."""
    return STYLES.get(model, OTHER)


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
    picture, axes = _panel(height, title, tag)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    picture.alt = alt
    return picture, axes


def timeline(
    runs: Run | Sequence[Run],
    *,
    title: str | None = None,
    alt: str | None = None,
    lanes: int | None = None,
    start: float | None = None,
    end: float | None = None,
) -> Picture:
    """The signature figure: a lane per client, updates as vertical lines, requests as spans, deliveries as dots.

    Several runs stand above each other on one time axis. `lanes` is how many clients of each are drawn (at
    most ten, and three of each of several runs, unless said); `start` and `end` (s) choose a part of the time.
    """
    runs = _listed(runs)
    lanes = lanes or (3 if len(runs) > 1 else 10)
    left = min(run.begin for run in runs) if start is None else start
    right = _readable_end(runs, left) if end is None else end
    margin = (right - left) / 80
    rows = sum(min(lanes, run.clients) + 1 for run in runs) + 0.6
    picture, axes = _panel(0.36 * rows + 0.85, title or _timeline_title(runs), _mode(runs))
    axes.set(xlim=(left - margin, right + margin), ylim=(rows, 0), yticks=[])
    cut = end is None and right < max(run.end for run in runs)
    axes.set_xlabel(f"time (s), up to {right:.0f} s of {runs[0].schedule.seconds:.0f} s" if cut else "time (s)")
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.spines["left"].set_visible(False)
    moments = [publication.at for publication in runs[0].published]
    axes.plot(moments, [0.25] * len(moments), "v", color=INK, markersize=6)
    top = 0.6
    for run in runs:
        top = _draw_lanes(axes, run, top, min(lanes, run.clients))
    picture.legend(
        handles=_timeline_key(runs),
        loc="outside lower left",
        ncols=4,
        fontsize=10.5,
        handlelength=1.3,
        columnspacing=1.5,
    )
    picture.alt = alt or _timeline_alt(runs)
    return picture


def _readable_end(runs: Sequence[Run], left: float) -> float:
    """The end (s) of a timeline from `left` on unless told: that of the runs, or of the first MOST_UPDATES updates."""
    moments = sorted(publication.at for publication in runs[0].published if publication.at >= left)
    if len(moments) <= MOST_UPDATES:
        return max(run.end for run in runs)
    return math.ceil(moments[MOST_UPDATES])


def _draw_lanes(axes: Axes, run: Run, top: float, lanes: int) -> float:
    """Draw one run's lanes from `top` on; return where the next run's begin."""
    look, (left, right) = style(run.model), axes.get_xlim()
    published = {publication.seq: publication.at for publication in run.published}
    bottom = top + lanes + 1
    lane = np.arange(lanes) + top + 1
    axes.vlines(list(published.values()), top - 0.35, bottom - 0.35, color="#a8a8a8", linewidth=1, zorder=1)
    axes.hlines(lane, left, right, color="#e4e4e4", linewidth=1, zorder=0)
    name = axes.text(left, top + 0.3, run.label, color=look.color, size=13, weight="bold", va="center", zorder=6)
    name.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
    _beside(axes, _summary(run), right, (top + bottom) / 2, look.color)
    for client in range(lanes if lanes > 1 else 0):
        axes.text(left, lane[client], f"client {client} ", size=9, color=GREY, ha="right", va="center")

    for client in range(lanes):
        spans = [(r.start, r.end - r.start) for r in run.all_requests if r.client == client]
        held = [span for span in spans if span[1] > (right - left) / 200]
        axes.broken_barh(held, (lane[client] - 0.13, 0.26), facecolor=look.color, alpha=0.22, linewidth=0, zorder=2)
    for useful, half, width, alpha in ((False, 0.2, 1.3, 0.55), (True, 0.3, 2.2, 1.0)):
        asked = [r for r in run.all_requests if r.client < lanes and (r.updates > 0) is useful]
        y = np.array([lane[r.client] for r in asked])
        starts = [r.start for r in asked]
        axes.vlines(starts, y - half, y + half, look.color, linewidth=width, alpha=alpha, zorder=3)
    fanned = _fanned(run, lanes, right - left)
    fan = [(at, lane[n] + shift, published[seq], width) for n, seq, at, shift, width in fanned]
    x, y, began, widths = np.array(fan).T if fan else np.empty((4, 0))
    axes.hlines(y, began, x, look.color, linewidth=widths, zorder=4)
    dot: dict[str, Any] = {"marker": look.marker, "markersize": look.size, "markeredgecolor": "white"}
    axes.plot(x, y, color=look.color, linestyle="", zorder=5, **dot)
    missed = {(n, seq) for n in range(lanes) for seq in published} - run.first_deliveries.keys() - run.superseded
    crosses = [(published[seq], n) for n, seq in sorted(missed)]
    lost: dict[str, Any] = {"marker": "x", "markersize": 8, "markeredgewidth": 2.2}
    axes.plot([at for at, _ in crosses], [lane[n] for _, n in crosses], color=INK, linestyle="", zorder=6, **lost)
    return bottom


def _fanned(run: Run, lanes: int, span: float) -> Iterator[tuple[int, int, float, float, float]]:
    """(client, seq, moment, shift, line width): deliveries that would hide each other are fanned out in their lane."""
    mine = sorted((client, at, seq) for (client, seq), at in run.first_deliveries.items() if client < lanes)
    for _, together in groupby(mine, key=lambda delivery: (delivery[0], round(delivery[1] * 150 / span))):
        batch = list(together)
        apart = 0.8 / max(4, len(batch))  # of a lane
        for place, (client, at, seq) in enumerate(batch):
            yield client, seq, at, apart * (place - (len(batch) - 1) / 2), min(1.6, 12 * apart)


def _timeline_key(runs: Sequence[Run]) -> list[Line2D | Patch]:
    look = style(runs[0].model) if len({run.model for run in runs}) == 1 else OTHER
    dot: dict[str, Any] = {"marker": look.marker, "markersize": look.size, "markeredgecolor": "white"}
    tick: dict[str, Any] = {"marker": "|", "linestyle": "", "markersize": 11, "markeredgewidth": 2.2}
    key: list[Line2D | Patch] = [
        Line2D([], [], color=INK, marker="v", linestyle="", markersize=6, label="update published"),
        Line2D([], [], color=look.color, linewidth=1.6, **dot, label="on its way, delivered"),
        Line2D([], [], color=look.color, **tick, label="request (thin: for nothing)"),
        Patch(facecolor=look.color, alpha=0.22, label="held open"),
    ]
    if any(run.lost for run in runs):
        key[3] = Line2D([], [], color=INK, marker="x", linestyle="", markersize=8, markeredgewidth=2.2, label="lost")
    return key


def _summary(run: Run) -> str:
    asked = count(run.requests, "request")
    lines = [f"{run.clients} clients: {asked}" if run.clients > 1 else asked]
    if run.wasted:
        lines.append(f"{run.wasted:,} brought nothing")
    if run.expected:
        lines.append(f"median delay {seconds(run.delay(0.5))}")
    if run.lost:
        lines.append(f"{run.lost:,} of {run.expected:,} lost")
    return "\n".join(lines)


def _timeline_title(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        [run] = runs
        return (
            f"{_worst(runs, 0.5, 'median delay')}; {run.wasted:,} of {count(run.requests, 'request')} brought nothing"
        )
    return _worst(runs, 0.5, "median delay")


def _worst(runs: Sequence[Run], q: float, what: str) -> str:
    """A title's finding: who loses most, or when a share `q` of the deliveries has come, slowest and others."""
    if not any(run.expected for run in runs):
        return "No update was published"
    slow = max(runs, key=lambda run: (run.lost, run.delay(q)))
    if slow.lost:
        return f"{_upper(slow.label)}: {_percent(slow.lost, slow.expected)} of the deliveries never come"
    text = f"{_upper(slow.label)}: {what} {seconds(slow.delay(q))}"
    match [run for run in runs if run is not slow]:
        case []:
            return text
        case [other]:
            return f"{text}; {other.label}: {seconds(other.delay(q))}"
        case others:
            return f"{text}; the others: {seconds(max(run.delay(q) for run in others))} at most"


def _timeline_alt(runs: Sequence[Run]) -> str:
    schedule = f"{count(len(runs[0].published), 'update')} in {runs[0].schedule.seconds:g} s"
    return f"Timeline ({_mode(runs)}), {schedule}. {' '.join(map(_in_words, runs))}"


def delay_ecdf(
    runs: Run | Sequence[Run],
    predicted: Cdf | Mapping[str, Cdf] | None = None,
    *,
    title: str | None = None,
    alt: str | None = None,
) -> Picture:
    """What share of the expected deliveries had come within a delay; lost ones keep a line below 100 %.

    `predicted` is the law to draw in: a function from delays (s) to shares, or several by their names. The
    delay axis is logarithmic when the runs' medians are more than a factor of 20 apart.
    """
    runs = _listed(runs)
    laws = predicted if isinstance(predicted, Mapping) else {"predicted": predicted} if predicted else {}
    medians = [run.delay(0.5) for run in runs if math.isfinite(run.delay(0.5))]
    log = bool(medians) and max(medians) > 20 * min(medians)
    delays = np.concatenate([run.delays for run in runs])
    shortest, longest = (delays.min(), delays.max()) if len(delays) else (0.0, 1.0)
    low, high = (shortest / 2, longest * 2) if log else (0.0, longest * 1.02)
    unit, name = (1.0, "s") if longest >= 1 else (1000.0, "ms")
    picture, axes = _panel(4.0, title or _worst(runs, 0.95, "95 % of the updates within"), _mode(runs))
    axes.set(xlim=(low * unit, high * unit), ylim=(0, 104), xscale="log" if log else "linear")
    axes.set(xlabel=f"delay ({name})", ylabel="share of expected deliveries (%)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    named = log or len(runs) == 1  # else the curves cross the labels, if those are long
    curves = [_draw_delays(axes, run, low, high, unit, named) for run in sorted(runs, key=lambda run: run.delay(0.5))]
    grid = np.geomspace(low, high, 500) if log else np.linspace(low, high, 500)
    for label, law in laws.items():
        [line] = axes.plot(grid * unit, 100 * law(grid), "k", dashes=(5, 2), linewidth=1.4, zorder=5, label=label)
        _label(axes, [line], 75, right=False)
    if log:
        for bundle in _bundles(curves):
            right = _place(axes, bundle[-1], 50) < 0.5
            _label(axes, bundle, 50 if right else 80, right=right)
    else:
        for n, line in enumerate(curves):
            level = 90 - 16 * n if len(runs) > 1 else 35
            _label(axes, [line], level, right=_place(axes, line, level) < 0.7)
    picture.alt = alt or f"Share of deliveries against their delay ({_mode(runs)}). {' '.join(map(_in_words, runs))}"
    return picture


def _draw_delays(axes: Axes, run: Run, low: float, high: float, unit: float, name_median: bool) -> Line2D:
    look, delays = style(run.model), np.sort(run.delays)
    shares = 100 * np.arange(len(delays) + 1) / max(run.expected, 1)
    x, y = unit * np.concatenate(([low], delays, [high])), np.append(shares, shares[-1])
    label = f"{run.label}: median {seconds(run.delay(0.5))}" if name_median else run.label
    [line] = axes.step(x, y, where="post", color=look.color, linestyle=look.line, label=label)
    return line


def _bundles(curves: Sequence[Line2D]) -> list[list[Line2D]]:
    """The curves in groups that run so close together on a logarithmic axis that they can only be labelled as one."""
    bundles = [[curves[0]]]
    for line in curves[1:]:
        if _reach(line, 50) < 4 * _reach(bundles[-1][-1], 50):
            bundles[-1].append(line)
        else:
            bundles.append([line])
    return bundles


def _reach(line: Line2D, level: float) -> float:
    """Where the curve reaches a level, on its own x axis."""
    x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
    return float(x[min(int(np.searchsorted(y, level)), len(x) - 1)])


def _place(axes: Axes, line: Line2D, level: float) -> float:
    """The same as a share of the axes' width."""
    return float(axes.transAxes.inverted().transform(axes.transData.transform((_reach(line, level), level)))[0])


def _label(axes: Axes, lines: Sequence[Line2D], level: float, *, right: bool) -> None:
    """Name the curves beside where they reach `level` (%), to the right of the last or to the left of the first."""
    places = [_place(axes, line, level) for line in lines]
    top = max(float(np.asarray(line.get_ydata(), float)[-1]) for line in lines)
    anchor = (max(places) + 0.025 if right else min(places) - 0.015, min(level, top + 6) / axes.get_ylim()[1])
    names = [str(line.get_label()) for line in lines]
    look: dict[str, Any] = {"fontsize": 11, "labelcolor": "linecolor", "handlelength": 1.8, "handletextpad": 0.5}
    look["loc"] = "center left" if right else "center right"
    axes.add_artist(Legend(axes, list(lines), names, bbox_to_anchor=anchor, borderpad=0, **look))


def request_bars(
    runs: Run | Sequence[Run],
    predicted: Mapping[str, float] | None = None,
    *,
    title: str | None = None,
    alt: str | None = None,
) -> Picture:
    """Requests of each run, one bar each: those that brought an update, and those that brought nothing.

    `predicted` gives the law's number of requests by the run's label; it is drawn as a line across the bar.
    """
    runs = _listed(runs)
    predicted = predicted or {}
    picture, axes = _panel(0.9 + 0.62 * len(runs), title or _bars_title(runs), _mode(runs))
    longest = max(max(run.requests, predicted.get(run.label, 0)) for run in runs)
    for row, run in enumerate(runs):
        color, law = style(run.model).color, predicted.get(run.label)
        axes.barh(row, run.useful, height=0.56, color=color)
        axes.barh(row, run.wasted, height=0.56, left=run.useful, color="white", edgecolor=color, hatch="////")
        text = f"{run.useful:,} useful" + (f" + {run.wasted:,} for nothing" if run.wasted else "")
        if law is not None:
            axes.plot([law, law], [row - 0.4, row + 0.4], "k", dashes=(3, 1.2), linewidth=1.6)
            text += f"\npredicted: {law:,.0f}"
        _beside(axes, text, max(run.requests, law or 0), row, color)
    axes.set(xlim=(0, longest * 1.45), ylim=(len(runs) - 0.45, -0.55), xlabel="requests", yticks=range(len(runs)))
    for label, run in zip(axes.set_yticklabels([textwrap.fill(run.label, 20) for run in runs]), runs, strict=True):
        label.set(color=style(run.model).color, weight="bold")
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    picture.alt = (
        alt or f"Requests that brought updates, and that did not ({_mode(runs)}). {' '.join(map(_in_words, runs))}"
    )
    return picture


def _bars_title(runs: Sequence[Run]) -> str:
    most, fewest = max(runs, key=lambda run: run.requests), min(run.requests for run in runs)
    text = (
        f"{_upper(most.label)}: {count(most.requests, 'request')}, {_percent(most.wasted, most.requests)} for nothing"
    )
    names = " and ".join(run.label for run in runs if run.requests == fewest)
    return text if most.requests == fewest else f"{text}; {names}: {count(fewest, 'request')}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.0f} %"


def _beside(axes: Axes, text: str, x: float, y: float, color: str) -> None:
    """A direct label, a little to the right of a point."""
    offset: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(text, (x, y), color=color, size=10.5, va="center", **offset)


def _listed(runs: Run | Sequence[Run]) -> Sequence[Run]:
    listed = [runs] if isinstance(runs, Run) else list(runs)
    if not listed:
        raise ValueError("there is no run to draw")
    return listed


def _mode(runs: Sequence[Run]) -> str:
    mode = ", ".join(dict.fromkeys(run.mode for run in runs))
    return f"{mode}; machine too busy to be believed" if any(run.busy for run in runs) else mode


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _in_words(run: Run) -> str:
    """The run in one sentence, for those who hear the figure."""
    asked = f"{count(run.requests, 'request')}, {run.wasted:,} of them for nothing"
    came = f"{run.expected - run.lost:,} of {run.expected:,} deliveries came"
    late = f", median delay {seconds(run.delay(0.5))}, 95 % within {seconds(run.delay(0.95))}" if run.expected else ""
    return f"{_upper(run.label)}, {count(run.clients, 'client')}: {asked}; {came}{late}."


def _panel(height: float, title: str, tag: str = "") -> tuple[Picture, Axes]:
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
