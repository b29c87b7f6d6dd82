"""The figures of a fleet: the last of many clients, a ladder's calls, heartbeats, compressors, what a plan hinges on.

    heard │ profiles │ rates │ compressed │ plans ─▶ last_client │ ladder_calls │ heartbeat_shares │ … ─▶ Picture

The alternative texts are made from the numbers that are drawn.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lab.cost.capacity import Capacity
from lab.cost.compression import Compressed
from lab.cost.profile import Profile
from lab.cost.reported import Report
from lab.figures.style import GREY, INK, STYLES, Picture, beside, blank, panel, style
from lab.theory import MODELS, SOCKET, STREAM, fleet

SHADES = ("#222222", "#c24a0a", "#1648b0", "#0f9a82", "#6a0f3c", "#8a8a8a", "#d9a441", "#7fb2d9", "#b7b7b7", "#5b7a3a")


def last_client(
    title: str, delays: Mapping[str, Mapping[int, float]], slopes: Mapping[str, tuple[float, float]], *, tag: str
) -> Picture:
    """How late the last of N clients is, by server: what was measured, and a line of (p, c), p + N c, all in s."""
    told = "; ".join(
        f"{name}: " + ", ".join(f"{1000 * late:.1f} ms at {n}" for n, late in each.items())
        for name, each in delays.items()
    )
    picture, axes = blank(title, "clients N", "the last client has it after (ms)", tag=tag)
    picture.alt = f"Delay of the last client against the number of clients, {tag}. {told}."
    for (name, each), line, marker in zip(delays.items(), ("-", (0, (4, 2))), ("^", "o"), strict=False):
        color = STYLES[STREAM].color if name == "file-updates" else INK
        at = np.linspace(0, max(each), 50)
        p, c = slopes[name]
        axes.plot(at, 1000 * (p + c * at), color=color, linestyle=line, linewidth=1.6)
        axes.plot(list(each), [1000 * late for late in each.values()], marker, color=color, markersize=8)
        beside(axes, f"{name}: {1e6 * c:.0f} µs a client", max(each), 1000 * each[max(each)], color)
    axes.set(xlim=(0, 1.45 * max(max(each) for each in delays.values())), ylim=(0, None))
    return picture


def ladder_calls(found: Mapping[str, Profile]) -> Picture:
    """Function calls for each delivery, a bar for each rung, shaded by whose code the time was spent in."""
    first, last = next(iter(found.values())), list(found.values())[-1]
    title = f"From {first.calls:.0f} calls a delivery to {last.calls:.0f}: each step leaves somebody's code out"
    picture, axes = panel(1.2 + 0.6 * len(found), title, "LIVE, under cProfile")
    whose = list(dict.fromkeys(name for profile in found.values() for name in profile.shares))
    shade = dict(zip(whose, SHADES, strict=False))
    for row, profile in enumerate(found.values()):
        left = 0.0
        for name in whose:
            part = profile.calls * profile.shares.get(name, 0.0)
            axes.barh(row, part, left=left, height=0.6, color=shade.get(name, GREY), label=name if not row else None)
            left += part
        beside(axes, f"{profile.calls:.0f}", profile.calls, row, INK)
    missing = [name for name in whose if name not in first.shares]
    for name in missing:
        axes.barh(0, 0, color=shade.get(name, GREY), label=name)
    axes.set(
        yticks=range(len(found)), yticklabels=list(found), ylim=(len(found) - 0.4, -0.6), xlabel="calls a delivery"
    )
    axes.legend(loc="lower right", fontsize=9.5, ncols=2)
    told = "; ".join(
        f"{p.rung}: {p.calls:.0f}, most of the time in {', '.join(list(p.shares)[:3])}" for p in found.values()
    )
    picture.alt = f"Bars, function calls for each delivery on each rung, shaded by whose code: {told}."
    return picture


def heartbeat_shares(every: float, counted: Mapping[float, float], *, tag: str = "VIRTUAL") -> Picture:
    """The share of heartbeats among a client's messages against λ: the two laws, and what was counted, by rate."""
    rates: Any = np.geomspace(1e-4, 10, 300)
    even = math.log(2) / every
    title = f"With an update every {1 / even:.0f} s or more seldom, most messages are heartbeats"
    picture, axes = blank(title, "updates per second λ", "share of heartbeats", tag=tag)
    axes.plot(rates, fleet.heartbeat_share(rates, every), "k", label="where silence is filled: $e^{-λh}$")
    axes.plot(rates, fleet.heartbeat_share(rates, every, silence=False), "k", dashes=(5, 2),
              label="where a clock strikes: 1/(1 + λh)")  # fmt: skip
    look = style(STREAM)
    axes.plot(list(counted), list(counted.values()), look.marker, color=look.color, markersize=9, label="counted")
    axes.set(xscale="log", ylim=(0, 1.05))
    axes.legend(loc="lower left")
    told = ", ".join(f"{100 * share:.0f} % at {rate:g}/s" for rate, share in counted.items())
    picture.alt = f"Share of heartbeats among messages against the rate of updates, h = {every:g} s, {tag}: {told}."
    return picture


def compressors(found: Sequence[Compressed]) -> Picture:
    """Bytes per event against memory per connection; a direct label for each way."""
    plain, best = found[0], min(found, key=lambda each: each.size)
    title = f"{best.way}: {plain.size / best.size:.1f} times fewer bytes, for {best.memory / 1024:.0f} KiB a connection"
    picture, axes = blank(title, "memory of a connection (KiB)", "bytes an event", tag="LIVE")
    for row, each in enumerate(found):
        axes.plot(each.memory / 1024, each.size, "o", color=INK, markersize=9)
        place: Any = {"xytext": (8, 6 if row % 2 else -16), "textcoords": "offset points", "fontsize": 10}
        axes.annotate(f"{each.way}, {1e6 * each.cpu:.1f} µs", (each.memory / 1024, each.size), **place)
    axes.set(ylim=(0, 1.25 * plain.size), xlim=(-0.05 * _widest(found), 1.5 * _widest(found)))
    told = "; ".join(f"{each.way}: {each.size:.0f} bytes, {each.memory / 1024:.0f} KiB" for each in found)
    picture.alt = f"Bytes per event against memory per connection for each way to compress: {told}."
    return picture


def _widest(found: Sequence[Compressed]) -> float:
    return max(each.memory for each in found) / 1024


def tornado(plan: Capacity, found: Mapping[str, tuple[float, float]], result: str, factor: float) -> Picture:
    """What the `result` of a plan becomes when one number is halved or doubled (a `factor` each way)."""
    names = list(found)
    title = f"What moves the {result} most: {names[0]}, then {names[1]}"
    picture, axes = panel(0.9 + 0.42 * len(found), title, "computed")
    for row, (less, more) in enumerate(found.values()):
        for value, color, word in (
            (less, "0.72", f"divided by {factor:g}"),
            (more, STYLES[STREAM].color, f"times {factor:g}"),
        ):
            if not math.isnan(value):
                axes.barh(row, math.log2(value), height=0.6, color=color, label=word if not row else None)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6), xlabel=result)
    axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["1/2", "0.7", "now", "1.4 times", "2 times"])
    axes.legend(loc="lower right")
    told = "; ".join(f"{name}: {less:.2f} and {more:.2f}" for name, (less, more) in found.items())
    picture.alt = f"Bars, {result} of the plan when a number is divided by {factor:g} and multiplied: {told}."
    return picture


def plans(
    by_model: Mapping[str, Sequence[Capacity]], reports: Sequence[Report] = (), *, title: str
) -> Picture:  # fmt: skip
    """Clients against the cores they need, a line for each model; what others report as stars, or as marks below."""
    picture, axes = blank(title, "clients", "cores (ours: a process each)", height=5.0, tag="computed; reported")
    told = []
    for model in MODELS:
        if model in by_model:
            some, look = by_model[model], style(model)
            axes.plot([p.clients for p in some], [p.processes for p in some], color=look.color, linestyle=look.line)
            axes.annotate(model, (some[-1].clients, some[-1].processes), xytext=(6, -9 if model == SOCKET else 3),
                          textcoords="offset points", color=look.color, fontsize=10.5)  # fmt: skip
            told.append(f"{model}: {some[-1].processes:,} cores for {some[-1].clients:,}")
    for report in reports:
        if report.connections and report.cores:
            axes.plot(report.connections, report.cores, "*", color=INK, markersize=13, zorder=4)
            axes.annotate(report.name, (report.connections, report.cores), xytext=(9, -4), ha="left",
                          textcoords="offset points", fontsize=10)  # fmt: skip
            told.append(f"{report.name}: {report.cores:g} cores for {report.connections:,.0f}")
        elif report.connections:
            axes.axvline(report.connections, ymax=0.05, color=INK, linewidth=2)
            axes.annotate(report.name, (report.connections, 0.05), xycoords=("data", "axes fraction"), rotation=90,
                          ha="center", va="bottom", fontsize=9)  # fmt: skip
            told.append(f"{report.name}: {report.connections:,.0f} clients, cores not said")
    axes.set(xscale="log", yscale="log", ylim=(0.2, None))
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * 4)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    picture.alt = f"Cores against clients. {'; '.join(told)}."
    return picture
