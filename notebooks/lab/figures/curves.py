"""A law as a line and what was measured as points; distributions; a copy's age; how many ask at the same time.

    laws, points │ values │ a run │ runs ─▶ law_and_points │ shares │ copy_age │ asked_together ─▶ Picture

The alternative texts are made from the numbers that are drawn.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lab.bench.result import Run, seconds
from lab.figures.style import GREY, INK, STYLES, Picture, blank, style
from lab.figures.words import mode_of

DASHES = ((), (5, 2), (1, 1.4), (6, 2, 1, 2))  # of the laws, in this order
Line = tuple[ArrayLike, ArrayLike]


def law_and_points(
    title: str,
    xlabel: str,
    ylabel: str,
    laws: Mapping[str, Line],
    points: Mapping[str, tuple[float, float]],
    *,
    mark: float | None = None,
    ylim: tuple[float, float] | None = None,
    model: str = "short polling",
    tag: str = "VIRTUAL",
) -> Picture:
    """Laws as black lines, (x, y) each, and what was measured as the model's points, each with its name beside it.

    `mark` is an x that the title speaks of.
    """
    listed = "; ".join(f"{name} {y:.3g}" for name, (_, y) in points.items())
    alt = f"{ylabel} against {xlabel}, {tag}: {listed}. The laws drawn in: {', '.join(laws)}."
    picture, axes = blank(title, xlabel, ylabel, tag=tag, alt=alt)
    for dashes, (name, (x, y)) in zip(DASHES, laws.items(), strict=False):
        axes.plot(x, y, "k", dashes=dashes or (None, None), linewidth=1.6, label=name)
    look = style(model)
    for name, (at, value) in points.items():
        axes.plot(at, value, look.marker, color=look.color, markersize=9, zorder=3)
        axes.annotate(name, (at, value), xytext=(7, 5), textcoords="offset points", fontsize=10.5)
    if mark is not None:
        axes.axvline(mark, color=GREY, linewidth=1)
    axes.set(ylim=ylim or (0, None))
    axes.legend(loc="best", fontsize=10.5)
    return picture


def shares(
    title: str,
    what: str,
    values: Mapping[str, NDArray[np.float64]],
    *,
    above: float = 0.0,
    tag: str = "VIRTUAL",
) -> Picture:
    """Distributions as ECDF, on a logarithmic axis: which share (%) was no longer than so many milliseconds.

    `values` are seconds; the figure begins at the share `above`, and its axis says so.
    """
    from_where = f", from {above:g}" if above else ""
    found = "; ".join(f"{name}: 99 % within {seconds(float(np.quantile(v, 0.99)))}" for name, v in values.items())
    alt = f"Share of {what} within a delay, logarithmic, {tag}. {found}."
    picture, axes = blank(title, "delay (ms), logarithmic", f"share of {what} (%){from_where}", tag=tag, alt=alt)
    for dashes, (name, delays) in zip(DASHES, values.items(), strict=False):
        share = 100 * np.arange(1, len(delays) + 1) / len(delays)
        axes.step(1000 * np.sort(delays), share, "k", dashes=dashes or (None, None), label=name)
    axes.set(xscale="log", ylim=(above, 100 + (100 - above) / 20))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(loc="lower right")
    return picture


def copy_age(run: Run, transit: float, *, start: float, end: float, client: int = 0) -> Picture:
    """The age of a client's copy as a saw-tooth, from `start` to `end` (s), and when the copy is no longer true.

    Each answer shows the server as it was one `transit` (s) before it arrives; from then on the copy ages.
    """
    asked = [r for r in run.all_requests if r.client == client and start - 60 <= r.start <= end]
    looked = np.array([r.start for r in asked]) + transit
    got = looked + transit
    published = np.append([publication.at for publication in run.published], np.inf)
    outdated = published[np.searchsorted(published, looked, "right")]
    oldest = float(np.max(got[1:] - looked[:-1]))
    title = f"A copy ages from {seconds(transit)} to {seconds(oldest)}, and is wrong from the next update on (grey)"
    picture, axes = blank(title, "time (s)", "age of the copy (s)", tag=run.mode)
    look = style(run.model)
    for n in range(len(got) - 1):
        axes.plot([got[n], got[n + 1]], [transit, got[n + 1] - looked[n]], color=look.color)
        axes.plot([got[n + 1]] * 2, [got[n + 1] - looked[n], transit], color=look.color, linewidth=0.8)
        false = max(got[n], min(outdated[n], got[n + 1]))
        low, high = false - looked[n], got[n + 1] - looked[n]
        axes.fill_between([false, got[n + 1]], [0, 0], [low, high], color="#d9d4cc", linewidth=0)
    shown = [at for at in published if start <= at <= end]
    axes.plot(shown, [0.0] * len(shown), "v", color=INK, markersize=6, clip_on=False)
    axes.set(xlim=(start, end), ylim=(0, None))
    picture.alt = (
        f"Age of one client's copy over time, {run.mode}: a saw-tooth from {seconds(transit)} to {seconds(oldest)}. "
        f"{len(shown)} updates; from each until the next answer the copy is wrong."
    )
    return picture


def asked_together(runs: Mapping[str, Run], settled: float, *, title: str | None = None, width: float = 1.0) -> Picture:
    """How many requests begin in each `width` seconds, for two runs or more; the title compares them from `settled` on.

    Bins are centred on whole widths, so that what is planned for one moment stays in one bin.
    """
    listed: Sequence[Run] = list(runs.values())
    end = max(run.schedule.seconds for run in listed)
    bins = np.arange(-width / 2, end + width, width)
    counts = {name: _starts(run, bins) for name, run in runs.items()}
    worst = {name: int(each[bins[:-1] >= settled].max(initial=0)) for name, each in counts.items()}
    compared = ", ".join(f"{name}: {most}" for name, most in worst.items())
    text = title or f"Requests in the worst second after {settled:g} s: {compared}"
    alt = f"Requests in each {width:g} s over {end:g} s, {mode_of(listed)}. The most after {settled:g} s: {compared}."
    picture, axes = blank(
        text,
        "time (s)",
        "requests in each second" if width == 1 else f"requests in each {width:g} s",
        tag=mode_of(listed),
        alt=alt,
    )
    colors = ["0.72", STYLES[listed[-1].model].color, INK]
    for (name, each), color in zip(counts.items(), colors, strict=False):
        axes.stairs(each, bins, fill=True, color=color, label=name)
    axes.axvline(settled, ymax=0.9, color=INK, linewidth=1, linestyle=(0, (4, 2)))  # above it is the legend
    axes.set_ylim(0, 1.2 * max(each.max() for each in counts.values()))
    axes.legend(loc="upper right", ncols=len(runs))
    return picture


def most_together(run: Run, settled: float, width: float = 1.0) -> int:
    """The most requests that begin within `width` seconds of each other's bin, from `settled` (s) on."""
    bins: NDArray[Any] = np.arange(-width / 2, run.schedule.seconds + width, width)
    return int(_starts(run, bins)[bins[:-1] >= settled].max(initial=0))


def _starts(run: Run, bins: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.histogram([request.start for request in run.all_requests], bins)[0]
