"""What an experiment gives back: every request and every delivery as it was, and the numbers counted from them.

    requests, deliveries, publications (raw, seconds) ─▶ Run ─▶ counts, delays ─▶ one line, a table, figures

All times are seconds since the schedule began; what happened before, while the clients started, is negative.
"""

import asyncio
import html
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from lab.bench.schedule import Schedule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LIVE, VIRTUAL = "LIVE", "VIRTUAL"
BUSY = 0.02  # s; an idle machine keeps its loop's time to a few milliseconds
FULL = 0.25  # of the time; somebody waiting for a CPU more often than that is a machine with too little of it


def mode() -> str:
    """Whether the running event loop lives in real time, LIVE, or in VIRTUAL time: a virtual loop says so."""
    return str(getattr(asyncio.get_running_loop(), "mode", LIVE))


class Publication(NamedTuple):
    """An update entering the log: its number, the planned and the real moment (s), and the file it is about."""

    seq: int
    planned: float
    at: float
    path: str


class Request(NamedTuple):
    """A handshake, poll or reconnect: who asked, from when to when it was open (s), and how many updates it brought."""

    client: int
    start: float
    end: float
    updates: int
    failed: bool


class Delivery(NamedTuple):
    """An update in a client's hands, at a moment (s)."""

    client: int
    seq: int
    at: float


@dataclass(frozen=True, repr=False)
class Run:
    """One model, one schedule, `clients` clients, from `begin` (the first client's start, s) to `end`.

    `mode` is LIVE (real sockets, real time) or VIRTUAL. `server_requests` is the server's own count.
    Bytes on the wire are those of the payload of TCP, headers and framing included; None where nobody counted.
    `coalescing` says that of several updates of one file the server may have sent only the last.
    `floor` (s) is the instrument's own: how late a metronome on the clients' event loop was, in the worst one of
    twenty ticks. A difference of delays below it says nothing. It is 0 in virtual time.
    `waited` is the share of the time in which somebody on this machine, whoever, waited for a CPU.
    """

    model: str
    label: str
    mode: str
    clients: int
    schedule: Schedule
    begin: float
    end: float
    server_requests: int
    published: Sequence[Publication] = field(compare=False)
    all_requests: Sequence[Request] = field(compare=False)
    all_deliveries: Sequence[Delivery] = field(compare=False)
    bytes_up: int | None = None
    bytes_down: int | None = None
    floor: float = 0.0
    coalescing: bool = False
    waited: float = 0.0

    @property
    def duration(self) -> float:
        """Seconds from the first client's start to the end of the observation."""
        return self.end - self.begin

    @property
    def requests(self) -> int:
        """Handshakes, polls and reconnects that the clients made, those before the first update included."""
        return len(self.all_requests)

    @property
    def useful(self) -> int:
        """Requests that brought at least one update."""
        return sum(request.updates > 0 for request in self.all_requests)

    @property
    def wasted(self) -> int:
        """Requests for nothing: they were over, and had brought no update."""
        return self.requests - self.useful - self.still_open

    def is_open(self, request: Request) -> bool:
        """Whether the request was still open when the observation ended, and had brought nothing yet."""
        return request.updates == 0 and not request.failed and request.end >= self.end

    @property
    def still_open(self) -> int:
        """Requests that may yet bring something: the end of the observation cut them off."""
        return sum(map(self.is_open, self.all_requests))

    def requests_between(self, start: float, end: float) -> list[Request]:
        """The requests made in [start, end) (s): what a law about a steady state is held against.

        `requests` counts more: clients begin before 0, where the schedule does, and go on until all has arrived.
        """
        return [request for request in self.all_requests if start <= request.start < end]

    @property
    def held_seconds(self) -> float:
        """Seconds that requests were open, all clients added up: what the server had to hold."""
        return sum(request.end - request.start for request in self.all_requests)

    @cached_property
    def held_peak(self) -> int:
        """The most requests that were open at one moment."""
        steps = [(request.start, 1) for request in self.all_requests] + [(r.end, -1) for r in self.all_requests]
        return max(accumulate(step for _, step in sorted(steps)), default=0)

    @property
    def expected(self) -> int:
        """Deliveries there should be: every update to every client, once, unless a later one stands for it."""
        return self.clients * len(self.published) - self.coalesced

    @property
    def coalesced(self) -> int:
        """Deliveries that a later update of the same file stands for: none unless the run is `coalescing`."""
        return len(self.superseded)

    @cached_property
    def superseded(self) -> frozenset[tuple[int, int]]:
        """(client, seq) of each of them: the update did not come, and a later one of its file did."""
        left_out: set[tuple[int, int]] = set()
        for client in range(self.clients if self.coalescing else 0):
            came_later: set[str] = set()
            for seq, _, _, path in sorted(self.published, reverse=True):
                if (client, seq) in self.first_deliveries:
                    came_later.add(path)
                elif path in came_later:
                    left_out.add((client, seq))
        return frozenset(left_out)

    @property
    def deliveries(self) -> int:
        """Deliveries there were, repeated ones included."""
        return len(self.all_deliveries)

    @cached_property
    def first_deliveries(self) -> dict[tuple[int, int], float]:
        """(client, seq) to the moment (s) of its first delivery, for the updates of this run."""
        ours = self._planned
        first: dict[tuple[int, int], float] = {}
        for client, seq, at in self.all_deliveries:
            if seq in ours:
                first.setdefault((client, seq), at)
        return first

    @property
    def lost(self) -> int:
        """Deliveries that never came."""
        return self.expected - len(self.first_deliveries)

    @property
    def unexpected(self) -> int:
        """Deliveries of updates that are not of this run: something else published into the same feed."""
        return sum(delivery.seq not in self._planned for delivery in self.all_deliveries)

    @property
    def duplicated(self) -> int:
        """Deliveries of an update that the client had already."""
        times = Counter((client, seq) for client, seq, _ in self.all_deliveries)
        return sum(times.values()) - len(times)

    @property
    def out_of_order(self) -> int:
        """First deliveries of an update after a later one."""
        newest: dict[int, int] = {}
        late = 0
        for client, seq in self.first_deliveries:
            late += seq < newest.get(client, 0)
            newest[client] = max(seq, newest.get(client, 0))
        return late

    @cached_property
    def _planned(self) -> dict[int, float]:
        """The number of each update of this run, and the moment (s) that it was planned for."""
        return {publication.seq: publication.planned for publication in self.published}

    @cached_property
    def _delays(self) -> list[float]:
        return [at - self._planned[seq] for (_, seq), at in self.first_deliveries.items()]

    @cached_property
    def _ascending(self) -> list[float]:
        return sorted(self._delays)

    @cached_property
    def delays(self) -> "NDArray[np.float64]":
        """Seconds from the *planned* publication to the first delivery, one for each that came, in the order they came.

        From the planned one, because a machine that publishes late is late, too: counted from the real one, a stall
        would hide the very delays that it causes ("coordinated omission", Gil Tene, "How NOT to Measure Latency").
        """
        import numpy as np  # for those who reckon with them: an experiment does without

        return np.array(self._delays)

    def delay(self, q: float) -> float:
        """The delay (s) that a share `q` of the *expected* deliveries did not exceed; infinite for the lost ones.

        NaN where nothing was expected.
        """
        if not self.expected:
            return math.nan
        rank = max(math.ceil(q * self.expected - 1e-9), 1)
        return self._ascending[rank - 1] if rank <= len(self._ascending) else math.inf

    @property
    def mean_delay(self) -> float:
        """The mean delay (s) of what arrived; NaN when nothing did."""
        return math.fsum(self._delays) / len(self._delays) if self._delays else math.nan

    @property
    def busy(self) -> bool:
        """Whether this machine had so much else to do that the delays of this run are not to be believed."""
        return bool(self.busy_with)

    @property
    def busy_with(self) -> str:
        """What makes it so: the clients' loop was late, an update was published late, or the machine is full."""
        reasons = {
            f"the clients' loop was {seconds(self.floor)} late": self.floor > BUSY,
            f"an update was published {seconds(self.lateness)} late": self.lateness > BUSY and self.mode == LIVE,
            f"somebody waited for a CPU {self.waited:.0%} of the time": self.waited > FULL,
        }
        return ", ".join(reason for reason, holds in reasons.items() if holds)

    @property
    def lateness(self) -> float:
        """How much later than planned (s) the latest publication was: the sender's own unpunctuality."""
        return max((publication.at - publication.planned for publication in self.published), default=0.0)

    def __repr__(self) -> str:
        return (
            f"Run({self.label}, {self.mode}: {count(self.clients, 'client')}, {count(len(self.published), 'update')}, "
            f"{count(self.requests, 'request')} ({self.wasted:,} for nothing), "
            f"{self.expected - self.lost:,}/{self.expected:,} delivered, "
            f"{f'{self.coalesced:,} coalesced, ' if self.coalesced else ''}"
            f"delay p50 {seconds(self.delay(0.5))}, p95 {seconds(self.delay(0.95))})"
        )

    def _repr_html_(self) -> str:
        return table([self])._repr_html_()


def count(number: int, noun: str) -> str:
    """ "1 request", "1,200 requests"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def seconds(value: float) -> str:
    """A duration as one would say it, two or three digits and the unit that suits: "1.2 ms", "252 ms", "4.03 s"."""
    if not math.isfinite(value):
        return "never" if value > 0 else "-"
    if abs(value) >= 0.9995:
        return f"{value:.3g} s" if abs(value) < 1000 else f"{value:,.0f} s"
    thousandths = 1000 * value
    return f"{thousandths:.0f} ms" if abs(thousandths) >= 99.5 else f"{thousandths:.2g} ms"


class Table:
    """Runs side by side: an HTML table in a notebook, aligned text elsewhere. What they share is the caption."""

    head = ("", "requests", "for nothing", "held", "lost", "twice", "out of order", "median delay", "95 %")

    def __init__(self, runs: Sequence[Run]) -> None:
        modes = " and ".join(dict.fromkeys(run.mode for run in runs))
        clients = " or ".join(dict.fromkeys(count(run.clients, "client") for run in runs))
        updates = " or ".join(dict.fromkeys(count(len(run.published), "update") for run in runs))
        self.caption = f"{modes}: {clients}{' each' if len(runs) > 1 else ''}, {updates}"
        if floor := max((run.floor for run in runs), default=0.0):
            self.caption += f"; no delay is told apart within {seconds(floor)}, the instrument's own floor"
        self.caption += "; held: the most requests that were open at once"
        if late := max((run.lateness for run in runs if run.mode == LIVE), default=0.0):
            self.caption += f"; delays count from the plan, the latest update was published {seconds(late)} after it"
        if busy := next((run.busy_with for run in runs if run.busy), ""):
            self.caption += f": this machine is too busy for its delays to be believed ({busy})"
        self.rows = [self._row(run) for run in runs]

    def _row(self, run: Run) -> tuple[str, ...]:
        counts = (run.requests, run.wasted, run.held_peak, run.lost, run.duplicated, run.out_of_order)
        return (run.label, *(f"{n:,}" for n in counts), seconds(run.delay(0.5)), seconds(run.delay(0.95)))

    def __repr__(self) -> str:
        lines = [self.head, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        name, *columns = widths
        text = [
            "  ".join([line[0].ljust(name), *(cell.rjust(n) for cell, n in zip(line[1:], columns, strict=True))])
            for line in lines
        ]
        return "\n".join([self.caption, *text])

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in self.head[1:])
        body = "".join(
            f'<tr><th scope="row" style="white-space:nowrap">{html.escape(row[0])}</th>'
            + "".join(f'<td style="white-space:nowrap">{html.escape(cell)}</td>' for cell in row[1:])
            + "</tr>"
            for row in self.rows
        )
        caption = f'<caption style="text-align:left">{html.escape(self.caption)}</caption>'
        return f"<table>{caption}<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"


def table(runs: Iterable[Run]) -> Table:
    """The runs as rows of one table."""
    return Table(list(runs))
