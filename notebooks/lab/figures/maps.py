"""The figures of the decision: what a server's costs are the slopes of, where two costs cross, and who wins where.

Measured ─▶ slopes │ costs over one number ─▶ flip │ Decision over two numbers ─▶ decision_map ─▶ Picture
Recommendation ─▶ turns ─▶ how far each number may move before the answer is another
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from lab.cost.advice import Recommendation
from lab.cost.decision import Decision
from lab.cost.flips import REACH
from lab.cost.measuring import Interval, Measured
from lab.cost.requirements import Requirements
from lab.figures.style import GREY, INK, WIDTH, Picture, blank, letters, style
from lab.figures.words import upper
from lab.theory import MODELS, SHORT, Prices, Units, interval_for

HATCHES = {"short polling": "..", "long polling": "xx", "WebSocket": "\\\\\\", "SSE": "///", "": ""}
ONE = {"requests": "a request", "deliveries": "a delivery", "beats": "a heartbeat", "messages": "a message up"}
COLUMNS = 40  # of a map
TURNED = {  # what a choice may hinge on, as in lab.cost.flips
    "rate": "updates a second",
    "budget": "budget (s)",
    "upstream": "messages up",
    "rtt": "round trip (s)",
    "clients": "clients",
}


def slopes(measured: Sequence[Measured]) -> Picture:
    """CPU time over work, and memory over connections: a point for each window, and the line whose slope is the cost.

    Of one column. Memory is drawn without the server's own: from the first ascent, above what its line begins with.
    """
    picture = Picture(figsize=(WIDTH, 4.4), layout="constrained")
    left, right = picture.subplots(1, 2)
    labels: dict[Axes, list[tuple[float, float, str, str]]] = {left: [], right: []}
    for each in measured:
        look = style(each.model)
        work = np.array([getattr(w, each.per) / w.seconds for w in each.ramp])
        cpu = np.array([1000 * w.cpu / w.seconds for w in each.ramp])
        dots: dict[str, Any] = {"marker": look.marker, "color": look.color, "markersize": look.size, "linestyle": ""}
        left.plot(work, cpu, **dots)
        across = np.array([0.0, work.max()])
        left.plot(across, 1000 * (each.cpu["idle"].value + each.main.value * across), color=look.color,
                  linestyle=look.line)  # fmt: skip
        span = f"{each.model}\n{1e6 * each.main.low:.0f} to {1e6 * each.main.high:.0f} µs"
        labels[left].append((cpu.max(), work.max(), span, look.color))
        used = each.ascent
        held = np.array([0, *(w.connections for w in used)])
        own = used[0].memory - each.memory.value * used[0].connections
        mib = np.array([w.memory - own for w in used]) / 2**20
        right.plot(held[1:], mib, **dots)
        right.plot(held, each.memory.value * held / 2**20, color=look.color, linestyle=look.line)
        labels[right].append((mib[-1], held[-1], f"{each.model}\n{each.memory.value / 1024:.0f} KiB each", look.color))
    left.set(xlabel="polls, long polls or deliveries per second", ylabel="CPU time (ms per second)")
    right.set(xlabel="connections", ylabel="memory above the idle server's (MiB)")
    for axes in (left, right):
        axes.margins(x=0.04)
        axes.set_xlim(right=1.55 * axes.get_xlim()[1])
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        _name_lines(axes, labels[axes])
    others = max(each.others for each in measured)
    tag = f"LIVE, no processor asleep; others took {others:.0%} of the machine"
    _headline(picture, f"A cost is a slope: {measured[0].column}", tag)
    picture.alt = (
        "CPU time per second against work per second, and memory against connections, a line each. "
        + " ".join(
            f"{each.model}: {_range(each.main, 1e6)} µs of CPU for each of its {each.per}, "
            f"{each.memory.value / 1024:.0f} KiB a connection."
            for each in measured
        )
    )
    return picture


def unit_costs(measured: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    """A table's columns, by model: every unit cost of one column, CPU time and memory with their intervals."""
    return {each.model: _unit_costs(each) for each in measured}


def _unit_costs(each: Measured) -> dict[str, Any]:
    units, quiet = each.units, each.units.held
    spent = {f"CPU µs, {ONE[name]}": _range(found, 1e6) for name, found in each.cpu.items() if name != "idle"}
    return {
        **spent,
        "CPU µs a second, nobody there": f"{1e6 * each.cpu['idle'].value:,.0f}",
        "memory KiB a connection": _range(each.memory, 1 / 1024),
        "bytes up, down, a request": f"{units.request.up:.0f}, {units.request.down:.0f}",
        "bytes down, a delivery": f"{units.delivery.down:.0f}",
        "bytes up, down, a message": f"{units.message.up:.0f}, {units.message.down:.0f}",
        "bytes both ways, a quiet second": f"{quiet.up + quiet.down:.2g}",
    }


def flip(
    title: str,
    xlabel: str,
    curves: Mapping[str, Callable[[NDArray[np.float64]], Any]],
    at: float,
    counted: Mapping[str, Mapping[float, float]],
    *,
    ylabel: str = "a month, for 1000 clients",
) -> Picture:
    """Two or more costs over one number, their crossing, and what VIRTUAL runs came to on both sides of it.

    `curves` are laws by the model's name, functions of the number; `counted` has a cost at each number that was run.
    """
    points = sorted({x for runs in counted.values() for x in runs})
    axis = np.geomspace(points[0] / 1.6, points[-1] * 1.6, 200)
    found = "; ".join(f"{name} {counted[name][points[0]]:.3g} then {counted[name][points[-1]]:.3g}" for name in counted)
    alt = f"{ylabel} against {xlabel}; the curves cross at {at:.3g}. VIRTUAL, below and above: {found}."
    inside = axis[0] <= at <= axis[-1]
    picture, axes = blank(title if inside else "No flip here: one is cheaper throughout", xlabel, ylabel, height=3.4,
                          alt=alt)  # fmt: skip
    for name, law in curves.items():
        look = style(name.partition(",")[0])
        line = look.line if name in MODELS else (0, (3.0 * len(axes.lines) + 1, 1))
        axes.loglog(axis, law(axis), color=look.color, linestyle=line, label=name)
        runs = counted.get(name, {})
        axes.plot(list(runs), list(runs.values()), look.marker, color=look.color, markersize=look.size + 2)
    if inside:
        axes.axvline(at, color=GREY, linewidth=1.2)
        axes.annotate(f" {at:.3g}", (at, 0.03), xycoords=("data", "axes fraction"), color=INK, weight="bold")
    for ticks in (axes.xaxis, axes.yaxis):
        ticks.set_major_formatter(lambda value, _: f"{value:g}")
        low, high = ticks.get_view_interval()
        ticks.set_minor_formatter(_few if high > 4 * low else lambda value, _: f"{value:.3g}")
    axes.legend(loc="best", title="law (lines), VIRTUAL (points)", title_fontsize=9, fontsize=10.5)
    return picture


def turns(advice: Recommendation) -> Picture:
    """How far each number may move until the answer is another, a bar for each, and which the other one is.

    The axis is the factor by which it moves, as far as `flips` looks: REACH either way, or as far as it is possible;
    further turns behind the first are not looked for. Raises ValueError where nothing turns the answer.
    """
    if not advice.flips:
        raise ValueError("no single number turns this answer")
    against = f"; {advice.runner_up} costs {advice.margin:.3g} times as much" if advice.runner_up else ""
    told = "; ".join(map(str, advice.flips))
    alt = f"{advice.model}: bars, how far each number may move until another answer is better. It becomes {told}."
    title = f"{upper(advice.model)}{against}, and where that turns"
    picture, axes = blank(title, "times as much as now (logarithmic)", "", height=2.9, alt=alt, tag="computed")
    for row, quantity in enumerate(TURNED):
        here = [flip for flip in advice.flips if flip.quantity == quantity]
        where = []
        if all(flip.now for flip in here):  # from 0 there are no times as much
            axes.barh(row, REACH - 1 / REACH, left=1 / REACH, height=0.56, color=style(advice.model).color, alpha=0.4)
        for flip in here:
            up = flip.value > flip.now
            where.append(f"{flip.model} {'above' if up else 'below'} {_few_digits(flip.value)}")
            if flip.now:
                low, high = (flip.value / flip.now, REACH) if up else (1 / REACH, flip.value / flip.now)
                axes.barh(row, high - low, left=low, height=0.56, color="w")
                axes.barh(row, high - low, left=low, height=0.56, color=style(flip.model).color)
        axes.text(1.3 * REACH, row, "\n".join(where), va="center", size=10)
    axes.axvline(1, color=INK, linewidth=1.2)
    axes.set(xscale="log", xlim=(1 / REACH, REACH), ylim=(len(TURNED) - 0.5, -0.5))
    axes.set_xticks([1e-3, 1e-2, 0.1, 1, 10, 100, 1e3], ["1/1000", "1/100", "1/10", "now", "10", "100", "1000"])
    axes.minorticks_off()
    axes.set_yticks(range(len(TURNED)), list(TURNED.values()))
    return picture


def _few_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def decision_map(
    panels: Mapping[str, Requirements],
    units: Mapping[str, Units],
    prices: Prices,
    *,
    title: str = "",
    rates: tuple[float, float] = (1e-3, 100.0),
    budgets: tuple[float, float] = (0.01, 600.0),
) -> Picture:
    """Who is the cheapest that is fresh enough, over updates per second and freshness budget; a map for each panel.

    In each column the boundaries are computed by halving, not read off a grid. What a panel's requirements say of
    rate and budget does not matter; where nothing is fresh enough the map is white.
    """
    picture = Picture(figsize=(WIDTH, 4.9), layout="constrained")
    all_axes = picture.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    shares: dict[str, dict[str, float]] = {}
    for axes, (name, requirements) in zip(all_axes, panels.items(), strict=True):
        shares[name] = _draw_map(axes, Decision(requirements, units, prices), rates, budgets)
        axes.set_title(name, size=11, loc="left", weight="bold")
    all_axes[len(panels) // 2].set_xlabel("updates per second, λ")
    all_axes[0].set_ylabel("freshness budget: 95 % of the updates within (s)")
    _headline(picture, title or "The answer depends on how often, how fresh, and who talks", "computed")
    picture.alt = "The cheapest model that is fresh enough, over updates per second and freshness budget. " + " ".join(
        f"{name}: "
        + ", ".join(f"{model} on {area:.0%} of the map" for model, area in share.items() if area > 0.005)
        + "."
        for name, share in shares.items()
    )
    return picture


def boundaries(decision: Decision, rate: float, budgets: tuple[float, float]) -> list[tuple[float, str | None]]:
    """From the tightest budget up, at this rate: (the budget from which on it is the choice, the model), ascending."""
    low, high = budgets
    steps = np.geomspace(low, high, 20)
    found: list[tuple[float, str | None]] = [(low, _choice(decision, rate, low))]
    for below, above in itertools.pairwise(steps):
        here, there = found[-1][1], _choice(decision, rate, above)
        a, b = float(below), float(above)
        while here != there and b / a > 1 + 1e-4:
            middle = math.sqrt(a * b)
            a, b = (middle, b) if _choice(decision, rate, middle) == here else (a, middle)
        if here != there:
            found.append((b, _choice(decision, rate, b)))
    return found


def _choice(decision: Decision, rate: float, budget: float) -> str | None:
    r = decision.requirements
    if budget < r.rtt / 2:
        return None
    return replace(decision, requirements=replace(r, rate=rate, budget=budget)).model


def _draw_map(
    axes: Axes, decision: Decision, rates: tuple[float, float], budgets: tuple[float, float]
) -> dict[str, float]:
    """Fill the regions, draw and name their boundaries; return the share of the map of each model."""
    stacks = _stacks(decision, rates, budgets)
    columns = np.array(list(stacks))
    low, high = budgets
    area: dict[str, float] = {}
    for model in MODELS:
        spans = np.full((len(columns), 2), np.nan)
        for n, stack in enumerate(stacks.values()):
            for (start, who), (end, _) in zip(stack, [*stack[1:], (high, None)], strict=True):
                if who == model:
                    spans[n] = start, end
        there = ~np.isnan(spans[:, 0])
        if not there.any():
            continue
        look = style(model)
        fill: dict[str, Any] = {"facecolor": look.color, "alpha": 0.3, "linewidth": 0}
        axes.fill_between(columns, spans[:, 0], spans[:, 1], where=there, interpolate=False, **fill)
        axes.fill_between(
            columns, spans[:, 0], spans[:, 1], where=there, facecolor="none", edgecolor=look.color,
            hatch=HATCHES[model], linewidth=0, alpha=0.55,
        )  # fmt: skip
        axes.plot(columns, np.where(spans[:, 0] > low, spans[:, 0], np.nan), color=INK, linewidth=1.5)
        _draw_sides(axes, model, columns, spans)
        heights = np.log(spans[:, 1] / spans[:, 0])
        share = np.nan_to_num(heights) / math.log(high / low)
        area[model] = float(np.trapezoid(share, np.log(columns)) / math.log(rates[1] / rates[0]))
        if area[model] > 0.02:
            _name_region(axes, model, columns, spans, heights)
        if model == SHORT:
            _name_boundary(axes, decision, columns, spans[:, 0])
    axes.set(xscale="log", yscale="log", xlim=rates, ylim=budgets)
    axes.axhline(decision.requirements.rtt / 2, color=INK, linewidth=1.2, linestyle=":")
    axes.annotate(
        "one transit", (rates[0], decision.requirements.rtt / 2), xytext=(3, -11), textcoords="offset points", size=9
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.tick_params(labelsize=9)
    return area


def _stacks(
    decision: Decision, rates: tuple[float, float], budgets: tuple[float, float]
) -> dict[float, list[tuple[float, str | None]]]:
    """The boundaries in each column, by its rate, ascending; where a model comes or goes, the columns stand close."""
    columns = [float(rate) for rate in np.geomspace(*rates, COLUMNS)]
    stacks = {rate: boundaries(decision, rate, budgets) for rate in columns}
    for left, right in itertools.pairwise(columns):
        a, b = left, right
        while _models(stacks[a]) != _models(stacks[b]) and b / a > 1.01:
            middle = math.sqrt(a * b)
            stacks[middle] = boundaries(decision, middle, budgets)
            a, b = (middle, b) if _models(stacks[middle]) == _models(stacks[a]) else (a, middle)
    return dict(sorted(stacks.items()))


def _models(stack: list[tuple[float, str | None]]) -> list[str | None]:
    return [model for _, model in stack]


def _draw_sides(axes: Axes, model: str, columns: NDArray[np.float64], spans: NDArray[np.float64]) -> None:
    """Where a region ends to the right because another begins."""
    for n, (start, end) in enumerate(spans[:-1]):
        if start == start and spans[n + 1][0] != spans[n + 1][0]:  # it is in this column, and not in the next
            axes.vlines(columns[n], start, end, color=INK, linewidth=1.5)
            if model != SHORT:
                place: dict[str, Any] = {"xytext": (0, 6), "textcoords": "offset points", "ha": "right"}
                axes.annotate(f"λ = {columns[n]:.2g} ", (columns[n], start), size=9, **place)


def _name_boundary(axes: Axes, decision: Decision, columns: NDArray[np.float64], budget: NDArray[np.float64]) -> None:
    """What polling's boundary says in the middle of its slope: updates an interval, or the interval if it is flat."""
    n = int(np.abs(columns - 1.0).argmin())
    if not budget[n] > 0:
        n = int(np.flatnonzero(budget > 0)[0])
    interval = float(interval_for(float(budget[n]), decision.requirements.rtt / 2))
    x = float(columns[n])
    text = f" λT = {x * interval:.2g}" if x > 0.1 else f" T = {interval:.0f} s"
    axes.plot(x, budget[n], "o", color=INK, markersize=5)
    place = (3, 5) if x > 0.1 else (3, -13)
    axes.annotate(text, (x, budget[n]), xytext=place, textcoords="offset points", size=9.5, weight="bold")


def _name_region(
    axes: Axes, model: str, columns: NDArray[np.float64], spans: NDArray[np.float64], heights: NDArray[np.float64]
) -> None:
    weights = np.nan_to_num(heights)
    x = math.exp(float((np.log(columns) * weights).sum() / weights.sum()))
    x = max(x, float(columns[len(columns) // 6]))  # a name has a width
    nearest = int(np.abs(columns - x).argmin())
    if not weights[nearest]:
        nearest = int(weights.argmax())
    y = math.sqrt(float(spans[nearest, 0] * spans[nearest, 1]))
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.9}
    name = model.replace(" ", "\n").replace("bS", "b-\nS")
    axes.text(
        float(columns[nearest]), y, name, color=letters(style(model).color), ha="center", va="center", size=11,
        weight="bold", bbox=box,
    )  # fmt: skip


def _name_lines(axes: Axes, labels: list[tuple[float, float, str, str]]) -> None:
    """Beside the lines' ends, each as near to its own as there is room: on no point, no line and no other name."""
    limits = np.array([axes.get_xlim(), axes.get_ylim()])
    corner, size = limits[:, 0], np.ptp(limits, axis=1)
    taken = [_places(line) for line in axes.lines]
    for y, x, text, color in sorted(labels, reverse=True):
        end = (np.array([x, y]) - corner) / size  # in shares of the axes, as all that follows
        half = np.array([0.011 * max(map(len, text.split("\n"))), 0.055])
        there = (np.concatenate(taken) - corner) / size
        steps = [step for step in sorted(np.arange(-100, 101) / 100, key=abs) if 0.05 < end[1] + step < 1]
        middles = [end + np.array([0.02 + half[0], step]) for step in steps]
        free = (middle for middle in middles if not np.any(np.all(np.abs(there - middle) <= half, axis=1)))
        middle = next(free, middles[0])
        box = np.stack(np.meshgrid(*np.linspace(middle - half, middle + half, 9).T), axis=-1).reshape(-1, 2)
        taken.append(corner + size * box)
        offset: dict[str, Any] = {"xytext": (8, 0), "textcoords": "offset points", "annotation_clip": False}
        axes.annotate(text, (x, corner[1] + size[1] * middle[1]), color=letters(color), size=9.5, va="center", **offset)


def _places(line: Line2D) -> NDArray[np.float64]:
    """Where a line, or its markers, are."""
    points = np.asarray(line.get_xydata(), float)
    if line.get_linestyle() == "None":
        return points
    at = np.linspace(0, len(points) - 1, 100)
    return np.column_stack([np.interp(at, range(len(points)), column) for column in points.T])


def _range(interval: Interval, scale: float) -> str:
    """ "24 (18 to 33)"."""
    value, low, high = (scale * number for number in interval[:3])
    return f"{_short(value)} ({_short(low)} to {_short(high)})"


def _short(number: float) -> str:
    """Two figures, or all before the point."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _few(value: float, _: float) -> str:
    """The name of a tick between two powers of ten, if it is one of those that leave room."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _headline(picture: Figure, text: str, tag: str) -> None:
    picture.suptitle(text, x=0.008, ha="left", size=14, weight="bold")
    picture.text(0.992, 0.995, tag, ha="right", va="top", size=9, color=GREY)
