"""The figures of long polling: what is lost between two requests, how often it asks, how many ask together.

    runs                ─▶ loss_grid        ─▶ a square for each update, dark if it never came
    a law, measurements ─▶ asked_by_rate    ─▶ requests a second against updates a second
    a law, runs         ─▶ empty_answers    ─▶ how many holds end empty, and where proxies cut
    runs                ─▶ crowds           ─▶ a row for each: the requests of the last tenth of a second

Titles and alternative texts are computed from what is drawn.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lab import theory
from lab.bench.result import Run, count
from lab.figures.style import GREY, INK, Picture, blank, style
from lab.figures.words import mode_of

LOOK = style("long polling")
LIMITS = {30: "Heroku, Google Cloud", 60: "AWS, nginx"}  # s of silence, unless somebody has changed what can be
SPREAD = 0.1  # s; who asks within that asks together
Law = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def loss_grid(*runs: Run, columns: int = 50) -> Picture:
    """A square for each update of one client's runs, in the order of publication; dark if it never came."""
    finding = "; ".join(f"{run.label}: {run.lost} of {run.expected} updates lost" for run in runs)
    alt = f"A square for each update, dark if it never came. {finding}."
    rows = sum(-(-len(run.published) // columns) + 1 for run in runs)
    picture, axes = blank(finding, "", "", height=0.17 * rows + 0.4, alt=alt, tag=mode_of(runs))
    top = 0
    for run in runs:
        axes.text(0, top - 0.4, run.label, color=LOOK.color, weight="bold", va="bottom")
        for number, publication in enumerate(run.published):
            came = (0, publication.seq) in run.first_deliveries
            look = {"color": LOOK.color, "alpha": 0.3} if came else {"color": "black"}
            axes.plot(number % columns, top + number // columns + 0.5, "s", markersize=6, **look)
        top += -(-len(run.published) // columns) + 2
    axes.set(xlim=(-0.7, columns), ylim=(top - 2, -1.6))
    axes.axis("off")
    return picture


def asked_by_rate(law: Law, measured: Mapping[float, float], gap: float, hold: float) -> Picture:
    """Requests a second of one client against updates a second, both logarithmic, between their two limits.

    `hold` (s) is the mean one, `gap` (s) the time between two requests.
    """
    rates = np.geomspace(0.02, 100, 200)
    most, least = 1 / gap, 1 / (gap + hold)
    points = ", ".join(f"{rate:g}/s: {asked:.2g}" for rate, asked in measured.items())
    picture, axes = blank(
        f"From {least:.2g} requests a second, one each hold, to {most:.3g}, one each round trip",
        "updates per second, λ (logarithmic)",
        "requests per second (logarithmic)",
        tag="VIRTUAL",
        alt=f"Requests per second against updates per second, both logarithmic: flat at {least:.2g}, one each hold, "
        f"then rising with the updates, then flat at {most:.3g}, one each round trip. Measured at {points}.",
    )
    axes.loglog(rates, law(rates), "k--", label="law")
    axes.axhline(most, color="0.7", label="1/G: one each round trip")
    axes.axhline(least, color="0.7", linestyle=":", label="1/(G + H): one each hold")
    axes.plot(list(measured), list(measured.values()), LOOK.marker, color=LOOK.color, markersize=9, label="VIRTUAL")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.12), fontsize=10.5)
    return picture


def empty_answers(updates_per_hour: float, transit: float, runs: Mapping[float, Run] | None = None) -> Picture:
    """Empty answers of one client in an hour against the hold (s), and the silence that intermediaries bear.

    Holds are exact. `runs` are an hour each, by their hold.
    """
    holds: NDArray[np.float64] = np.linspace(4, 90, 200)
    empty = np.array([empty_an_hour(updates_per_hour, transit, float(hold)) for hold in holds])
    finding = f"{updates_per_hour:g} updates an hour: {np.interp(25, holds, empty):.0f} empty answers if H is 25 s"
    points = "".join(f" With {hold:g} s there were {run.wasted}." for hold, run in (runs or {}).items())
    picture, axes = blank(
        finding,
        "hold H (s)",
        "empty answers per client and hour",
        tag="VIRTUAL" if runs else "law",
        alt=f"Empty answers fall with the hold, as 1/H at first. {finding}.{points}",
    )
    axes.plot(holds, empty, "k--", label="law")
    for hold, run in (runs or {}).items():
        axes.plot(hold, run.wasted, LOOK.marker, color=LOOK.color, markersize=9)
    for limit, names in LIMITS.items():
        axes.axvline(limit, color="0.6", linewidth=1.2)
        axes.text(limit + 0.7, 0.95 * empty.max(), names, va="top")
    axes.set(xlim=(0, 92), ylim=(0, None))
    return picture


def empty_an_hour(updates_per_hour: float, transit: float, hold: float) -> float:
    """How many holds of exactly `hold` (s) end empty in an hour: no update came in one, nor in the gap before."""
    rate, gap = updates_per_hour / 3600, 2 * transit
    return float(3600 * theory.long_polling_request_rate(rate, gap, hold) * np.exp(-rate * (gap + hold)))


def together(run: Run, start: float, end: float, within: float = SPREAD) -> int:
    """The most requests that begin within `within` seconds of one another, between `start` and `end` (s)."""
    moments = [request.start for request in run.requests_between(start, end)]
    return int(_recent(np.array(moments), within).max(initial=0))


def _recent(moments: NDArray[np.float64], within: float) -> NDArray[np.int64]:
    """For each moment, in order: how many of them lie in the `within` seconds that end with it."""
    first = np.searchsorted(moments, moments - within, "left")
    return np.arange(1, len(moments) + 1) - first


def crowds(runs: Mapping[str, Run], events: Mapping[float, str], *, start: float, end: float) -> Picture:
    """A row for each run: at every moment, how many requests began in the last tenth of a second.

    `events` names the moments (s) at which a crowd is expected; beside each stands the most around it.
    """
    times = sorted(events)
    most = max(run.clients for run in runs.values())
    peaks = {name: [_around(run, at, times, end) for at in times] for name, run in runs.items()}
    said = "; ".join(f"{name} {', '.join(map(str, counts))}" for name, counts in peaks.items())
    where = ", ".join(f"{events[at]} ({at:g} s)" for at in times)
    picture, axes = blank(
        f"The most that ask within {SPREAD:g} s of one another, of {count(most, 'client')}",
        "time (s)",
        f"requests in the last {SPREAD:g} s",
        height=1.3 * len(runs) + 0.6,
        tag=mode_of(list(runs.values())),
        alt=f"Requests in the last {SPREAD:g} s over time, a row for each remedy. The most around {where}: {said}.",
    )
    room = 1.45 * most
    for row, (name, run) in enumerate(runs.items()):
        base = -room * row
        moments = np.array([r.start for r in run.requests_between(start, end)])
        axes.vlines(moments, base, base + _recent(moments, SPREAD), color=LOOK.color, linewidth=1.6)
        axes.axhline(base, color="0.8", linewidth=1, zorder=0)
        axes.text(start + 0.01 * (end - start), base + 0.62 * most, name, weight="bold", va="bottom")
        for at, peak in zip(times, peaks[name], strict=True):
            axes.text(at + 0.01 * (end - start), base + most, f"{peak}", va="top", color=INK)
    for at in times:
        axes.axvline(at, color=GREY, linewidth=1, linestyle=(0, (4, 2)), zorder=0)
        axes.text(at + 0.005 * (end - start), most * 1.12, events[at], va="bottom", size=10, color=GREY)
    lines = [-room * row + high for row in range(len(runs)) for high in (0, most)]
    axes.set(xlim=(start, end), ylim=(-room * (len(runs) - 1) - 0.05 * most, 1.3 * most))
    axes.set_yticks(lines, [f"{high:g}" for _ in runs for high in (0, most)])
    return picture


def _around(run: Run, at: float, times: Sequence[float], end: float) -> int:
    """The most together from half-way to the event before until half-way to the next."""
    place = times.index(at)
    first = (times[place - 1] + at) / 2 if place else at / 2
    last = (at + times[place + 1]) / 2 if place + 1 < len(times) else end
    return together(run, first, last)
