"""What goes over a wire, to be looked at: a protocol's messages, frames byte by byte, flights in space and time.

    a server's module ─▶ messages ─▶ a table, out of the drawing in its docstring
    bytes of frames ─▶ anatomy ─▶ each byte, and what it is for
    a transcript of lab.virtual ─▶ spoken ─▶ spacetime ─▶ each message a slope between client and server
    sizes, moments of death, runs ─▶ deflated, saw_tooth, unnoticed, in_hand ─▶ the figures of notebook 03

Titles and alternative texts are computed from what is drawn.
"""

import html
import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lab.bench.result import Run, seconds
from lab.figures.style import INK, OTHER, STYLES, Picture, blank
from lab.theory.framing import Frame, frames
from lab.virtual import Row, Way

SHOWN = 20  # bytes of a frame
BLUE, ORANGE, GREEN = STYLES["WebSocket"].color, STYLES["short polling"].color, STYLES["SSE"].color
PARTS = {  # of a frame: face and ink
    "flags and length": (BLUE, "w"),
    "longer length": ("0.35", "w"),
    "masking key": ("0.75", "k"),
    "payload": ("w", "k"),
}
OPCODES = {1: "text", 2: "binary", 8: "close", 9: "ping", 10: "pong"}
COLORS = {
    **dict.fromkeys(("GET", "101", "hello", "close"), "k"),
    **dict.fromkeys(("filter", "filtered"), ORANGE),
    **dict.fromkeys(("ping", "pong"), GREEN),
    "b": "0.55",
}


# ── the protocol ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Messages:
    """Who says what, and when: rows of (direction, message, remark)."""

    def __init__(self, rows: Sequence[tuple[str, str, str]]) -> None:
        self.rows = rows

    def __repr__(self) -> str:
        width = max(len(said) for _, said, _ in self.rows)
        return "\n".join(f"{way:<16} {said:<{width}}  {remark}".rstrip() for way, said, remark in self.rows)

    def _repr_html_(self) -> str:
        left = 'style="text-align:left"'
        body = "".join(
            f"<tr><td {left}>{html.escape(way)}</td><td {left}><code>{html.escape(said)}</code></td>"
            f"<td {left}>{html.escape(remark)}</td></tr>"
            for way, said, remark in self.rows
        )
        heads = "".join(f'<th scope="col" {left}>{head}</th>' for head in ("who to whom", "message", "when"))
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def messages(server: ModuleType) -> Messages:
    """The messages on the wire, read out of the drawing in the docstring of a server's module.

    Its lines are `client: request ─▶ server: answer`, `─▶ message   when` and `◀─ message   when`. Raises ValueError
    where there is no such drawing.
    """
    up, down = "client → server", "server → client"
    rows: list[tuple[str, str, str]] = []
    for line in (inspect.getdoc(server) or "").splitlines():
        before, arrow, after = line.partition("─▶") if "─▶" in line else line.partition("◀─")
        if not arrow:
            continue
        if asked := before.strip().removeprefix("client: "):
            rows.append((up, asked, ""))
        said, _, remark = after.strip().removeprefix("server: ").partition("   ")
        rows.append((down if asked or arrow == "◀─" else up, said.strip(), remark.strip()))
    if not rows:
        raise ValueError(f"the docstring of {server.__name__} draws no messages")
    return Messages(rows)


# ── a frame ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def anatomy(beginnings: Mapping[str, bytes]) -> Picture:
    """The first bytes of frames, a row each under its name, and in words what the first two say."""
    read = {name: next(frames(data)) for name, data in beginnings.items()}
    both = {frame.masked for frame in read.values()} == {True, False}
    title = "A client's frame is masked; the longer a frame, the longer its length field" if both else "Frames"
    picture, axes = blank(title, "byte", "", height=0.75 + 0.62 * len(read))
    for y, (name, frame) in enumerate(read.items()):
        counts = (2, frame.header - 2, 4 if frame.masked else 0, SHOWN)
        parts = [part for part, count in zip(PARTS, counts, strict=True) for _ in range(count)]
        for x, (byte, part) in enumerate(zip(beginnings[name][: min(SHOWN, frame.size)], parts, strict=False)):
            face, ink = PARTS[part]
            box = {"facecolor": face, "edgecolor": "0.6", "boxstyle": "square,pad=0.4"}
            look: dict[str, Any] = {"ha": "center", "va": "center", "family": "monospace", "size": 10, "bbox": box}
            axes.text(x, y, f"{byte:02x}", color=ink, **look)
        axes.text(-0.45, y + 0.42, _in_words(beginnings[name], frame), size=9, color="0.3", va="center")
    for part, (face, _) in PARTS.items():
        axes.plot([], [], "s", label=part, color=face, markeredgecolor="0.6", markersize=10)
    axes.set(xlim=(-0.6, SHOWN - 0.4), ylim=(len(read) - 0.35, -0.5), xticks=range(0, SHOWN, 2))
    axes.set_yticks(range(len(read)), list(read))
    picture.legend(loc="outside lower center", ncols=4, fontsize=10.5)
    texts = [f"{name}: {_in_words(beginnings[name], frame)}" for name, frame in read.items()]
    picture.alt = f"The first bytes of {len(read)} frames. {'. '.join(texts)}."
    return picture


def _in_words(data: bytes, frame: Frame) -> str:
    last = "last frame" if frame.fin else "more to come"
    who = "masked" if frame.masked else "not masked"
    short = data[1] & 127
    size = f"length {short}" if short < 126 else f"{short}: length in {frame.header - 2} bytes, {len(frame.payload):,}"
    return f"{data[0]:02x}: {last}, {OPCODES.get(frame.opcode, str(frame.opcode))} · {data[1]:02x}: {who}, {size}"


# ── space and time ───────────────────────────────────────────────────────────────────────────────────────────────────


class Flight(NamedTuple):
    """A message on its way: when it was sent, when it is due (s), which way, and what kind of message it is."""

    sent: float
    due: float
    way: Way
    kind: str


def spoken(transcript: Iterable[Row]) -> list[Flight]:
    """The messages of a WebSocket's transcript; an update's kind is the first folder of its path."""
    return [Flight(row.sent, row.due, row.way, kind) for row in transcript for kind in _kinds(row)]


def _kinds(row: Row) -> Iterator[str]:
    if row.data.startswith((b"GET ", b"HTTP/")):
        yield "GET" if row.way == "up" else "101"
        return
    for frame in frames(row.data):
        kind = OPCODES.get(frame.opcode, "")
        if kind == "text":
            message = json.loads(frame.payload)
            kind = message["type"]
            if kind == "updates":
                kind = message["updates"][0]["path"].partition("/")[0]
        yield kind


def spacetime(transcript: Iterable[Row], title: str) -> Picture:
    """One connection in space and time: the server above, the client below, each message a slope between them."""
    flights = spoken(transcript)
    order = ", ".join(f"{f.kind} {f.way}" for f in _firsts(flights))
    alt = f"Space and time of one connection, {len(flights)} messages; the first of each kind: {order}."
    picture, axes = blank(title, "time (s), VIRTUAL", "", height=2.8, alt=alt)
    for flight in flights:
        ends = (1, 0) if flight.way == "down" else (0, 1)
        axes.plot(
            [flight.sent, flight.due],
            ends,
            color=_color(flight),
            linewidth=1.2 if flight.kind == "b" or flight.kind not in COLORS else 2.4,
        )
    names: dict[tuple[float, int], list[Flight]] = {}
    for flight in _firsts(flights):
        names.setdefault((flight.sent, int(flight.way == "down")), []).append(flight)
    for (sent, end), group in names.items():
        text, place = ", ".join(flight.kind for flight in group), "bottom" if end else "top"
        axes.text(sent, 1.04 if end else -0.04, text, color=_color(group[0]), va=place, ha="center", size=10.5)
    axes.hlines([0, 1], 0, axes.get_xlim()[1], color="0.3", linewidth=1)
    axes.set(ylim=(-0.25, 1.25), xlim=(0, None))
    axes.set_yticks([0, 1], ["client", "server"])
    return picture


def _firsts(flights: Iterable[Flight]) -> Iterator[Flight]:
    """The first of each kind: it says what it is."""
    known: set[str] = set()
    for flight in flights:
        if flight.kind not in known:
            known.add(flight.kind)
            yield flight


def _color(flight: Flight) -> str:
    return COLORS.get(flight.kind, BLUE)


# ── sizes, deaths, slow readers ──────────────────────────────────────────────────────────────────────────────────────


def deflated(off: ArrayLike, alone: ArrayLike, on: ArrayLike) -> Picture:
    """Bytes of each message: without deflate, each compressed alone, and with what was remembered of the others."""
    plain, each, together = (np.asarray(sizes, float) for sizes in (off, alone, on))
    saved, by_memory = plain.sum() - together.sum(), each.sum() - together.sum()
    title = f"Deflate saves {saved / plain.sum():.0%} of repeated JSON, {by_memory / saved:.0%} of that by its memory"
    means = f"on average {plain.mean():.0f} without deflate, {each.mean():.0f} alone, {together.mean():.0f} with memory"
    alt = f"Bytes of each of {len(plain)} messages: {means}."
    picture, axes = blank(title, "message number", "bytes on the wire, VIRTUAL", alt=alt)
    numbers = np.arange(1, len(plain) + 1)
    axes.plot(numbers, plain, color="0.45", label="off")
    axes.plot(numbers, each, "k:", label="each message alone")
    axes.plot(numbers, together, color=BLUE, label="on, with context takeover")
    axes.set_ylim(0)
    axes.legend(loc="upper right", ncols=3, bbox_to_anchor=(1, 1.1))
    return picture


def saw_tooth(deaths: ArrayLike, noticed: ArrayLike, law: Callable[[float], float], period: float) -> Picture:
    """How long a dead link goes unnoticed (s), against the moment of its death; the law drawn in."""
    x = np.asarray(deaths, float)
    late = np.asarray(noticed, float) - x
    title = f"A dead link is noticed {late.min():.0f} to {late.max():.0f} seconds later"
    alt = (
        f"How long a dead link goes unnoticed, against when it dies: a saw-tooth from {late.min():.3g} to "
        f"{late.max():.3g} seconds, a tooth each {period:g} s, and {len(x)} measured points."
    )
    what, how_late = "the link dies at (s after opening)", "noticed so many seconds later"
    picture, axes = blank(title, what, how_late, alt=alt, tag="VIRTUAL")
    grid = np.linspace(0, x.max() + period / 20, 4000)
    axes.plot(grid, [law(at) - at for at in grid], "k--", linewidth=1.3, label="law")
    axes.plot(x, late, "D", color=BLUE, markersize=5, label="VIRTUAL")
    ticks = np.arange(0, x.max() + period, period)
    axes.vlines(ticks, 0, late.max() * 1.15, color="0.85", linewidth=1, zorder=0)
    axes.set(xlim=(0, grid[-1]), ylim=(0, late.max() * 1.15), xticks=ticks)
    axes.legend(loc="lower right", ncols=2)
    return picture


def unnoticed(late: Mapping[tuple[float, float], Sequence[float]], within: float) -> Picture:
    """How late deaths are noticed (s), a row for each (ping interval, wait for the pong); the first is the chosen one.

    `within` (s) is how late is allowed; every row has its price, in pings an hour.
    """
    rows = [(f"h = {h:g} s, t = {t:g} s", 3600 / h, min(each), max(each)) for (h, t), each in late.items()]
    name, pings, soonest, latest = rows[0]
    title = f"{name}: noticed {soonest:.0f} to {latest:.0f} s later, for {pings:.0f} pings an hour"
    told = "; ".join(f"{name}: {low:.3g} to {high:.3g} s, {price:.0f} pings an hour" for name, price, low, high in rows)
    alt = f"How many seconds later a dead link is noticed, a bar for each choice of h and t, VIRTUAL. {told}."
    picture, axes = blank(title, "noticed so many seconds later", "", height=3.2, alt=alt, tag="VIRTUAL")
    for row, ((_, price, low, high), each) in enumerate(zip(rows, late.values(), strict=True)):
        color = OTHER.color if row else BLUE
        axes.barh(row, high - low, left=low, height=0.5, color=color, alpha=0.25)
        axes.plot(each, [row] * len(each), "D", color=color, markersize=4)
        axes.text(high + 4, row, f"{price:.0f} pings an hour", va="center", color=color, backgroundcolor="w")
    axes.axvline(within, color=INK, linewidth=1.2)
    axes.text(within, -0.62, f" {within:g} s are allowed", va="bottom")
    axes.set(xlim=(0, 165), ylim=(len(rows) - 0.5, -1.1))
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    return picture


def in_hand(runs: Iterable[Run], slow: int = 0) -> Picture:
    """How many updates a client has, over time: of each run the `slow` client and one of the others."""
    runs = list(runs)
    found = "; ".join(f"{run.label}: {_waited(longest_delay(run, without=slow))}" for run in runs)
    alt = f"Updates in hand over time, when one client stops reading. {found}."
    title = f"One client stops reading. {found[:1].upper()}{found[1:]}"
    picture, axes = blank(title, "time (s)", "updates in hand", alt=alt, tag="VIRTUAL")
    for run, (color, width) in zip(runs, ((OTHER.color, 4), (BLUE, 2)), strict=False):
        for client, who, dots in ((slow + 1, "the others", "-"), (slow, "the slow one", ":")):
            moments = sorted(at for (number, _), at in run.first_deliveries.items() if number == client)
            look: dict[str, Any] = {"color": color, "linewidth": width, "linestyle": dots, "where": "post"}
            axes.step([0, *moments], range(len(moments) + 1), label=f"{run.label}: {who}", **look)
    axes.legend(loc="upper left")
    return picture


def _waited(delay: float) -> str:
    return f"the others wait {seconds(delay)} at most" if math.isfinite(delay) else "the others never get all"


def longest_delay(run: Run, *, without: int) -> float:
    """The longest delay (s) that any client but one saw; infinite if something never came."""
    others = [client for client in range(run.clients) if client != without]
    came = run.first_deliveries
    return max(came.get((n, update.seq), math.inf) - update.at for n in others for update in run.published)
