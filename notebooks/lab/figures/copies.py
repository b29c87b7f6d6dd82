"""Copies of a directory: how far behind they are, whose share that is, and what a delivery costs, in bytes and CPU.

    looks, moments, means ─▶ files_wrong │ identical │ shares_of_delay        sizes, rungs ─▶ bytes_by_size │ stacked
    bursts ─▶ joined

Titles and alternative texts are made from the numbers that are drawn.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lab.bench.metronome import Ticks
from lab.bench.result import FULL, LIVE, seconds
from lab.figures.style import GREY, INK, STYLES, Picture, blank, letters, style
from lab.figures.words import upper

Numbers = NDArray[np.float64]
SHADES = ("#8a8a8a", STYLES["SSE"].color, "#1648b0", INK)
STEP = 0.25  # s of a figure's grid


def live(ticks: Ticks) -> str:
    """LIVE, and whether the machine was too full for its delays to be believed."""
    return f"{LIVE}; machine too busy to be believed" if ticks.waited > FULL else LIVE


def files_wrong(at: Numbers, wrong: Numbers, *, files: int, copies: int, last: float, tag: str = LIVE) -> Picture:
    """How many of so many `files` differ in each look (`at` s), the worst copy and the mean; `last`: the last edit."""
    grid = np.arange(0, at.max() + STEP, STEP)
    among = [wrong[(at >= t) & (at < t + STEP)] for t in grid]
    worst = [float(each.max(initial=0)) for each in among]
    mean = [float(each.mean()) if len(each) else 0.0 for each in among]
    at_the_end = wrong[at >= at.max() - STEP].max()
    title = (
        f"Of {files} files a copy has {wrong.max():.0f} wrong at worst, {wrong.mean():.1f} on average, and "
        f"{at_the_end:.0f} at the end"
    )
    alt = (
        f"Files that differ from the original over {at.max():.0f} s, the worst of {copies} copies and their mean, "
        f"{tag}: {wrong.max():.0f} of {files} at worst, at {at[wrong.argmax()]:.1f} s; {wrong.mean():.1f} on average; "
        f"the last edit at {last:.1f} s; {at_the_end:.0f} at the end."
    )
    picture, axes = blank(title, "time (s)", "files that differ", alt=alt, tag=tag)
    color = STYLES["SSE"].color
    axes.fill_between(grid, worst, step="post", color=color, alpha=0.25, label="worst")
    axes.step(grid, mean, where="post", color=color, label=f"mean of {copies} copies")
    axes.axvline(last, color=GREY, linestyle=":", label="last edit")
    axes.legend(loc="upper left", ncols=3)
    axes.set_ylim(0, 1.3 * max(*worst, 1.0))
    return picture


def identical(behind: Sequence[float], *, tag: str = LIVE) -> Picture:
    """Which share of the copies is identical, so many seconds after the last edit; `behind` has a moment of each."""
    moments = np.sort(np.asarray(behind, dtype=float))
    x = 1000 * np.concatenate(([0.0], moments, [1.1 * moments[-1]]))
    share = 100 * np.concatenate((np.arange(len(moments) + 1), [len(moments)])) / len(moments)
    first, last = seconds(float(moments[0])), seconds(float(moments[-1]))
    title = f"The first copy is identical {first} after the last edit, all {len(moments)} are after {last}"
    alt = (
        f"Share of identical copies over the time since the last edit, {tag}: the first after {first}, half of them "
        f"after {seconds(float(np.median(moments)))}, all {len(moments)} after {last}."
    )
    picture, axes = blank(title, "time since the last edit (ms)", "identical copies (%)", alt=alt, tag=tag)
    axes.step(x, share, where="post", color=STYLES["SSE"].color)
    axes.set(ylim=(0, 104), xlim=(0, None))
    return picture


def shares_of_delay(means: Mapping[str, Sequence[float]], parts: Sequence[str], *, tag: str = LIVE) -> Picture:
    """The mean delay (s), a bar for each row of `means`, stacked from its `parts`."""
    [first, *_] = means.values()
    whole, most = sum(first), int(np.argmax(first))
    title = (
        f"A copy is {seconds(whole)} late on average; most of it, {100 * first[most] / whole:.0f} %, is the "
        f"{parts[most]}'s"
    )
    told = "; ".join(
        f"{upper(row)}: " + ", ".join(f"{part} {seconds(value)}" for part, value in zip(parts, each, strict=True))
        for row, each in means.items()
    )
    alt = f"Mean delay from an edit to its copy, in its parts, {tag}. {told}."
    picture, axes = blank(title, "delay from edit to copy (ms), mean", "", height=2.9, alt=alt, tag=tag)
    left = np.zeros(len(means))
    for n, (part, color) in enumerate(zip(parts, SHADES, strict=False)):
        width = 1000 * np.array([each[n] for each in means.values()])
        axes.barh(list(means), width, left=left, color=color, label=part, height=0.6)
        left += width
    axes.invert_yaxis()
    picture.legend(loc="outside lower right", ncols=len(parts))
    return picture


def bytes_by_size(
    laws: Mapping[str, tuple[Numbers, Numbers]],
    counted: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    crossings: Mapping[str, float],
) -> Picture:
    """Bytes per client against a file's size, both logarithmic: laws as dashed lines, what was counted as points.

    The first law is what the others cross, at the sizes (bytes) that `crossings` names.
    """
    where = ", ".join(f"{size:,.0f} bytes if {who}" for who, size in crossings.items())
    title = f"Sending along takes fewer bytes below {where}"
    alt = (
        f"Bytes per client and update against the file's size, VIRTUAL: the inline line crosses the others at {where}."
    )
    picture, axes = blank(title, "size of the file (bytes)", "bytes per client and update", alt=alt, tag="VIRTUAL")
    for (name, (x, y)), color in zip(laws.items(), (INK, *SHADES[1:3]), strict=False):
        axes.loglog(x, y, color=color, linestyle="--", linewidth=1.2)
        axes.loglog(*counted[name], "o" if color == INK else "^", color=color, label=name)
    for size, color in zip(crossings.values(), SHADES[1:3], strict=False):
        axes.axvline(size, ymax=0.6, color=color, linestyle=":")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(loc="upper left")
    return picture


def joined(
    known: Mapping[int, tuple[int, int]], chosen: Mapping[int, tuple[int, int]], *, edits: int, away: float
) -> Picture:
    """How many of a burst's edits are (announced, fetched), by the milliseconds between two, which are logarithmic.

    `known` is drawn in grey; the one that is `chosen`, by a mirror so many milliseconds `away`, is what the title says.
    """
    [(apart, (told, got))] = chosen.items()
    title = f"{edits} edits {apart} ms apart, a mirror {away:g} ms away: {told} announced, {got} fetched"
    listed = "; ".join(f"{ms} ms: {told} and {got}" for ms, (told, got) in known.items())
    alt = f"Edits of a burst of {edits} that are announced and fetched, by the time between two, VIRTUAL. {title}. "
    alt += f"In grey, 25 ms away: {listed}."
    picture, axes = blank(title, "between two edits (ms), logarithmic", f"of {edits} edits", alt=alt, tag="VIRTUAL")
    color = STYLES["SSE"].color
    for n, (what, mark, dashes) in enumerate((("announced", "^", ()), ("fetched", "o", (4, 2)))):
        axes.plot(list(known), [each[n] for each in known.values()], color=GREY, dashes=dashes or (None, None))
        axes.plot([apart], [chosen[apart][n]], mark, color=color, fillstyle="none" if n else "full", markersize=13)
        axes.plot([], [], mark, color=color, fillstyle="none" if n else "full", label=what)
    axes.set(xscale="log", ylim=(-1, 1.08 * edits))
    axes.set_xticks(list(known), [f"{ms}" for ms in known])
    axes.minorticks_off()
    axes.legend(loc="lower right")
    return picture


def by_tree(
    measured: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    laws: Mapping[str, tuple[Numbers, Numbers]],
    *,
    tag: str = LIVE,
) -> Picture:
    """CPU seconds in which an edit is found, by the number of files and both logarithmic: laws as lines, and points."""
    [(many, first), (_, last)] = measured.values()
    title = f"At {many[-1]:,} files a look at all costs {first[-1] / last[-1]:,.0f} times a look at one name"
    told = "; ".join(
        f"{name}: " + ", ".join(f"{seconds(cost)} at {count:,}" for count, cost in zip(*each, strict=True))
        for name, each in measured.items()
    )
    alt = f"CPU time to find one edit against the files in the tree, {tag}. {told}. The laws are dashed lines."
    picture, axes = blank(title, "files in the tree", "CPU time to find an edit (ms)", alt=alt, tag=tag)
    for (name, (counts, costs)), mark, color in zip(measured.items(), "^o", (INK, SHADES[1]), strict=True):
        x, y = laws[name]
        axes.loglog(x, 1000 * y, color=color, linestyle="--", linewidth=1.2)
        axes.loglog(counts, 1000 * np.array(costs), mark, color=color, label=name)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.legend(loc="upper left")
    return picture


def rungs(cost: Mapping[str, float], what: Mapping[str, str], real: Sequence[str], *, tag: str = LIVE) -> Picture:
    """CPU seconds for a delivery on each rung of a ladder, and how many times cheaper than the first that is."""
    [first, *_], [*_, last] = cost, cost
    title = f"For the same events {first} takes {cost[first] / cost[last]:.0f} times the CPU time of {last}"
    told = "; ".join(f"{rung}: {1e6 * each:.0f} µs" for rung, each in cost.items())
    alt = f"Bars, CPU per delivery on each rung, {tag}: {told}."
    picture, axes = blank(title, "CPU time per delivery (µs)", "", height=3.4, alt=alt, tag=tag)
    for row, (rung, each) in enumerate(cost.items()):
        axes.barh(row, 1e6 * each, color=STYLES["SSE"].color if rung in real else SHADES[0], height=0.62)
        times = f", {cost[first] / each:.1f} times cheaper" if row else ""
        axes.text(1e6 * each, row, f"  {1e6 * each:.1f} µs{times}", va="center")
    axes.set_yticks(range(len(cost)), [f"{rung}\n{what[rung]}" for rung in cost])
    axes.set(ylim=(len(cost) - 0.5, -0.5), xlim=(0, 1.25e6 * max(cost.values())))
    return picture


def contents_and_beyond(
    title: str, rows: Mapping[str, tuple[str, float, float, float]], *, tag: str = "VIRTUAL"
) -> Picture:
    """Bytes per update and client by row: a model's name, the contents, what comes beyond, and the median delay (s)."""
    told = "; ".join(
        f"{name}: {inside:.0f} bytes of contents, {beyond:.0f} beyond, {seconds(delay)} late"
        for name, (_, inside, beyond, delay) in rows.items()
    )
    alt = f"Bytes per update and client, contents (grey) and what comes beyond (coloured), {tag}. {told}."
    picture, axes = blank(title, "bytes per update and client", "", height=3.4, alt=alt, tag=tag)
    for row, (model, inside, beyond, delay) in enumerate(rows.values()):
        axes.barh(row, inside, color="#c8c8c8", height=0.6, label="contents" if not row else None)
        axes.barh(row, beyond, left=inside, color=style(model).color, height=0.6)
        axes.text(inside + beyond, row, f" {seconds(delay)} late", va="center", color=letters(style(model).color))
    axes.set_yticks(range(len(rows)), list(rows))
    most = max(inside + beyond for _, inside, beyond, _ in rows.values())
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, 1.25 * most))
    picture.legend(loc="outside lower right")
    return picture
