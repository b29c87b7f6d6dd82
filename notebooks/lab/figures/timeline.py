"""The signature figure: a lane per client, updates as vertical lines, requests as spans, deliveries as dots."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lab.bench.result import Request, Run, count, seconds
from lab.figures.style import GREY, INK, OTHER, Picture, beside, letters, panel, style
from lab.figures.words import in_words, listed, mode_of, worst

MOST_UPDATES = 24  # in one timeline, to be told apart
SHADE = "#f0ead6"
HEADING = 1.2  # rows above a run's first lane: its name, and below it the updates' marks
COLUMNS = 4  # of the key


def timeline(
    runs: Run | Sequence[Run],
    *,
    title: str | None = None,
    alt: str | None = None,
    lanes: int | None = None,
    start: float | None = None,
    end: float | None = None,
    transit: float = 0.0,
    shade: Mapping[str, tuple[float, float]] | None = None,
) -> Picture:
    """The signature figure: a lane per client, updates as vertical lines, requests as spans, deliveries as dots.

    Several runs stand above each other on one time axis. `lanes` is how many clients of each are drawn (at
    most ten, and three of each of several runs, unless said); `start` and `end` (s) choose a part of the time.
    With `transit` (s, one way) requests are drawn as the server sees them: each arrives so much after the client
    has sent it, and is answered so much before the client has the answer. `shade` names parts of the time.
    """
    runs = listed(runs)
    lanes = lanes or (3 if len(runs) > 1 else 10)
    left = min(run.begin for run in runs) if start is None else start
    right = _readable_end(runs, left) if end is None else end
    margin = (right - left) / 80
    rows = sum(min(lanes, run.clients) + HEADING for run in runs) + 0.3
    key = _timeline_key(runs, "held, at the server" if transit else "held open")
    key += [Patch(facecolor=SHADE, label=name) for name in shade or {}]
    most = max(_summary(run, min(lanes, run.clients)).count("\n") + 1 for run in runs)
    height = max(0.36 * rows, 0.19 * most * len(runs)) + 0.85 + 0.22 * (len(key) > COLUMNS)
    picture, axes = panel(height, title or _timeline_title(runs), mode_of(runs))
    axes.set(xlim=(left - margin, right + margin), ylim=(rows, 0), yticks=[])
    cut = end is None and right < max(run.end for run in runs)
    axes.set_xlabel(f"time (s), up to {right:.0f} s of {runs[0].schedule.seconds:.0f} s" if cut else "time (s)")
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.spines["left"].set_visible(False)
    for first, last in (shade or {}).values():
        axes.axvspan(first, last, color=SHADE, linewidth=0, zorder=-1)
    top = 0.3
    for run in runs:
        top = _draw_lanes(axes, run, top, min(lanes, run.clients), transit)
    picture.legend(
        handles=key,
        loc="outside lower left",
        ncols=COLUMNS,
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


def _draw_lanes(axes: Axes, run: Run, top: float, lanes: int, transit: float) -> float:
    """Draw one run's lanes from `top` on; return where the next run's begin."""
    look, (left, right) = style(run.model), axes.get_xlim()
    published = {publication.seq: publication.at for publication in run.published}
    bottom = top + lanes + HEADING
    lane = np.arange(lanes) + top + HEADING
    moments = list(published.values())  # the lines leave the row of the name free
    axes.vlines(moments, top + 0.6, bottom - 0.5, color="#a8a8a8", linewidth=1, zorder=1)
    axes.plot(moments, [top + 0.6] * len(moments), "v", color=INK, markersize=5, zorder=2)
    axes.hlines(lane, left, right, color="#e4e4e4", linewidth=1, zorder=0)
    axes.text(left, top + 0.1, run.label, color=letters(look.color), size=13, weight="bold", va="center", zorder=6)
    beside(axes, _summary(run, lanes), right, (top + bottom) / 2, look.color)
    for client in range(lanes if lanes > 1 else 0):
        axes.text(left, lane[client], f"client {client} ", size=9, color=GREY, ha="right", va="center")

    for client in range(lanes):
        mine = [(r.start + transit, _answered(run, r, transit)) for r in run.all_requests if r.client == client]
        spans = [(begin, end - begin) for begin, end in mine]
        held = [span for span in spans if span[1] > (right - left) / 200]
        axes.broken_barh(held, (lane[client] - 0.13, 0.26), facecolor=look.color, alpha=0.22, linewidth=0, zorder=2)
    for useful, half, width, alpha in ((False, 0.42, 1.3, 0.7), (True, 0.3, 2.2, 1.0)):
        asked = [r for r in run.all_requests if r.client < lanes and (r.updates > 0 or run.is_open(r)) is useful]
        y = np.array([lane[r.client] for r in asked])
        starts = [r.start + transit for r in asked]
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


def _answered(run: Run, request: Request, transit: float) -> float:
    """When the server answered (s), a transit before the client had it; what is still open it has not answered."""
    return request.end if run.is_open(request) else max(request.start + transit, request.end - transit)


def _fanned(run: Run, lanes: int, span: float) -> Iterator[tuple[int, int, float, float, float]]:
    """(client, seq, moment, shift, line width): deliveries that would hide each other are fanned out in their lane."""
    mine = sorted((client, at, seq) for (client, seq), at in run.first_deliveries.items() if client < lanes)
    for _, together in groupby(mine, key=lambda delivery: (delivery[0], round(delivery[1] * 150 / span))):
        batch = list(together)
        apart = 0.8 / max(4, len(batch))  # of a lane
        for place, (client, at, seq) in enumerate(batch):
            yield client, seq, at, apart * (place - (len(batch) - 1) / 2), min(1.6, 12 * apart)


def _timeline_key(runs: Sequence[Run], held: str) -> list[Line2D | Patch]:
    look = style(runs[0].model) if len({run.model for run in runs}) == 1 else OTHER
    dot: dict[str, Any] = {"marker": look.marker, "markersize": look.size, "markeredgecolor": "white"}
    tick: dict[str, Any] = {"marker": "|", "linestyle": "", "markersize": 11, "markeredgewidth": 2.2}
    key: list[Line2D | Patch] = [
        Line2D([], [], color=INK, marker="v", linestyle="", markersize=6, label="update published"),
        Line2D([], [], color=look.color, linewidth=1.6, **dot, label="on its way, delivered"),
        Line2D([], [], color=look.color, **tick, label="request (thin: for nothing)"),
        Patch(facecolor=look.color, alpha=0.22, label=held),
    ]
    if any(run.lost for run in runs):
        key[3] = Line2D([], [], color=INK, marker="x", linestyle="", markersize=8, markeredgewidth=2.2, label="lost")
    return key


def _summary(run: Run, drawn: int) -> str:
    asked = count(run.requests, "request")
    lines = [f"{run.clients} clients: {asked}" if run.clients > 1 else asked]
    if drawn < run.clients:
        lines[0] += f",\n{drawn} of them drawn"
    if run.wasted:
        lines.append(f"{run.wasted:,} for nothing")
    if run.still_open:
        lines.append(f"{run.still_open:,} still open")
    if run.expected:
        lines.append(f"median delay {seconds(run.delay(0.5))}")
    if run.lost:
        lines.append(f"{run.lost:,} of {run.expected:,} lost")
    return "\n".join(lines)


def _timeline_title(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        [run] = runs
        return f"{worst(runs, 0.5, 'median delay')}; {run.wasted:,} of {count(run.requests, 'request')} for nothing"
    return worst(runs, 0.5, "median delay")


def _timeline_alt(runs: Sequence[Run]) -> str:
    schedule = f"{count(len(runs[0].published), 'update')} in {runs[0].schedule.seconds:g} s"
    return f"Timeline ({mode_of(runs)}), {schedule}. {' '.join(map(in_words, runs))}"
