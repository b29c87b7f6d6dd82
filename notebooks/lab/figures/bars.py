"""Requests as bars: those that brought an update, and those for nothing."""

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.ticker import MaxNLocator

from lab.bench.result import Run, count
from lab.figures.style import Picture, beside, letters, panel, style
from lab.figures.words import in_words, listed, mode_of, percent, upper


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
    runs = listed(runs)
    predicted = predicted or {}
    picture, axes = panel(0.9 + 0.62 * len(runs), title or _bars_title(runs), mode_of(runs))
    longest = max(max(run.requests, predicted.get(run.label, 0)) for run in runs)
    for row, run in enumerate(runs):
        color, law = style(run.model).color, predicted.get(run.label)
        axes.barh(row, run.useful, height=0.56, color=color)
        axes.barh(row, run.wasted, height=0.56, left=run.useful, color="white", edgecolor=color, hatch="////")
        text = f"{run.useful:,} useful" + (f" + {run.wasted:,} for nothing" if run.wasted else "")
        if run.still_open:
            axes.barh(row, run.still_open, height=0.56, left=run.requests - run.still_open, color="w", edgecolor=color)
            text += f" + {run.still_open:,} still open"
        if law is not None:
            axes.plot([law, law], [row - 0.4, row + 0.4], "k", dashes=(3, 1.2), linewidth=1.6)
            text += f"\npredicted: {law:,.0f}"
        beside(axes, text, max(run.requests, law or 0), row, color)
    axes.set(xlim=(0, longest * 1.45), ylim=(len(runs) - 0.45, -0.55), xlabel="requests", yticks=range(len(runs)))
    for label, run in zip(axes.set_yticklabels([textwrap.fill(run.label, 20) for run in runs]), runs, strict=True):
        label.set(color=letters(style(run.model).color), weight="bold")
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    picture.alt = (
        alt or f"Requests that brought updates, and that did not ({mode_of(runs)}). {' '.join(map(in_words, runs))}"
    )
    return picture


def _bars_title(runs: Sequence[Run]) -> str:
    most, fewest = max(runs, key=lambda run: run.requests), min(run.requests for run in runs)
    text = f"{upper(most.label)}: {count(most.requests, 'request')}, {percent(most.wasted, most.requests)} for nothing"
    names = " and ".join(run.label for run in runs if run.requests == fewest)
    return text if most.requests == fewest else f"{text}; {names}: {count(fewest, 'request')}"
