"""Delays as ECDF: which share of the deliveries had come within a delay."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from numpy.typing import NDArray

from lab.bench.result import Run, seconds
from lab.figures.style import WIDTH, Picture, letters, panel, style
from lab.figures.words import in_words, listed, mode_of, worst

Cdf = Callable[[NDArray[np.float64]], NDArray[np.float64]]
SIZE = 11  # points of a curve's name


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
    runs = listed(runs)
    laws = predicted if isinstance(predicted, Mapping) else {"predicted": predicted} if predicted else {}
    medians = [run.delay(0.5) for run in runs if math.isfinite(run.delay(0.5))]
    log = bool(medians) and max(medians) > 20 * min(medians)
    delays = np.concatenate([run.delays for run in runs])
    shortest, longest = (delays.min(), delays.max()) if len(delays) else (0.0, 1.0)
    low, high = (shortest / 2, longest * 2) if log else (0.0, longest * 1.02)
    unit, name = (1.0, "s") if longest >= 1 else (1000.0, "ms")
    picture, axes = panel(4.0, title or worst(runs, 0.95, "95 % of the updates within"), mode_of(runs))
    axes.set(xlim=(low * unit, high * unit), ylim=(0, 104), xscale="log" if log else "linear")
    axes.set(xlabel=f"delay ({name}){', logarithmic' if log else ''}", ylabel="share of expected deliveries (%)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    named = log or len(runs) == 1  # else the curves cross the labels, if those are long
    curves = [_draw_delays(axes, run, low, high, unit, named) for run in sorted(runs, key=lambda run: run.delay(0.5))]
    grid = np.geomspace(low, high, 500) if log else np.linspace(low, high, 500)
    for label, law in laws.items():
        [line] = axes.plot(grid * unit, 100 * law(grid), "k", dashes=(5, 2), linewidth=1.4, zorder=5, label=label)
        right = log and _fits(axes, [line], 25)  # where no curve's name comes
        _label(axes, [line], 25 if right else 75, right=right)
    if log:
        for bundle in _bundles(curves):
            right = _place(axes, bundle[-1], 50) < 0.5 and _fits(axes, bundle, 50)
            _label(axes, bundle, 50 if right else 80, right=right)
    else:
        for n, line in enumerate(curves):
            level = 90 - 16 * n if len(runs) > 1 else 35
            _label(axes, [line], level, right=_fits(axes, [line], level))
    picture.alt = alt or f"Share of deliveries against their delay ({mode_of(runs)}). {' '.join(map(in_words, runs))}"
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


def _fits(axes: Axes, lines: Sequence[Line2D], level: float) -> bool:
    """Whether the curves' names have room to the right of where the curves reach a level."""
    longest = max(TextPath((0, 0), str(line.get_label()), size=SIZE).get_extents().width for line in lines)
    return max(_place(axes, line, level) for line in lines) + (longest + 4 * SIZE) / (72 * WIDTH * 0.85) < 1


def _label(axes: Axes, lines: Sequence[Line2D], level: float, *, right: bool) -> None:
    """Name the curves beside where they reach `level` (%), to the right of the last or to the left of the first."""
    places = [_place(axes, line, level) for line in lines]
    top = max(float(np.asarray(line.get_ydata(), float)[-1]) for line in lines)
    anchor = (max(places) + 0.025 if right else min(places) - 0.015, min(level, top + 6) / axes.get_ylim()[1])
    names = [str(line.get_label()) for line in lines]
    look: dict[str, Any] = {"fontsize": SIZE, "handlelength": 1.8, "handletextpad": 0.5}
    look["loc"] = "center left" if right else "center right"
    legend = Legend(axes, list(lines), names, bbox_to_anchor=anchor, borderpad=0, **look)
    for line, text in zip(lines, legend.get_texts(), strict=True):
        text.set_color(letters(to_hex(line.get_color())))
    axes.add_artist(legend)
