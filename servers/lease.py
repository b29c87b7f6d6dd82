"""The lease: a stream stays for so long at most, and ends when a server drains. One heap, one timer for them all.

    a stream begins ─▶ Leases.begin ─▶ Lease ─▶ at its age, or at its turn of the drain: over
                                                  └─▶ the stream ends after a whole event, and says "renew"
    its client ─▶ comes back at once, from its cursor: nothing lost, nothing twice

Each age is drawn from [S/2, S]. S is the promise: a half-dead connection is gone after S, whatever the proxies between
acknowledge, and a platform that cuts at 60 s never cuts. Half of it is the price for 10 000 streams that began together
(a deploy) ending over S/2, five times as thin as over the last tenth, and being spread evenly after some five ages
instead of a hundred.
"""

import asyncio
import heapq
import math
import random
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from servers.limits import check_finite, check_positive

if TYPE_CHECKING:
    from servers.service import Closing

SPREAD = 0.5  # of an age: what is drawn
NOTICE = 0.1  # of a drain: /healthz says it before the first stream ends, so that balancers know where not to go
TICK = 0.1  # seconds between two looks at the heap, at least: what has ended meanwhile ends together
MOST_LOST = 1000  # entries of streams that have left by themselves, before the heap is made anew


class Lease:
    """One stream's; a Stop: it is set once it is `over`, or the server closes.

    `end` is called when it is over; without one, its reader is woken, and looks.
    """

    __slots__ = ("_leases", "end", "over")

    def __init__(self, leases: "Leases", end: Callable[[], None] | None) -> None:
        self._leases, self.end, self.over = leases, end, False

    def is_set(self) -> bool:
        """Whether this stream is to end."""
        return self.over or self._leases.closing.is_set()

    def release(self) -> None:
        """The stream has ended."""
        self._leases.held.pop(self, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.release()


class Leases:
    """Those of one server, used on its loop only. `max_age` in seconds; without one only a drain ends a stream.

    `seed` makes the ages repeatable.
    """

    def __init__(self, closing: "Closing", max_age: float | None = None, seed: int | None = None) -> None:
        if max_age is not None:
            check_positive(max_age=max_age)
        self.closing, self.max_age, self.rng = closing, max_age, random.Random(seed)
        self.held: dict[Lease, None] = {}
        self.respread: Callable[[float, float], None] = lambda begin, end: None  # what else is held, and drains too
        self._ends: list[tuple[float, int, Lease]] = []  # a heap; some have left, or got an earlier end
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._rings = math.inf  # when the timer does, if there is one (loop time, s); uvloop's cannot always tell

    def begin(self, end: Callable[[], None] | None = None) -> Lease:
        """The lease of a stream that begins now."""
        lease = Lease(self, end)
        self.held[lease] = None
        age = self.rest if self.max_age is None else min(self.rest, self.max_age * self.rng.uniform(SPREAD, 1))
        if age < math.inf:
            self._due(lease, asyncio.get_running_loop().time() + age)
        return lease

    @property
    def rest(self) -> float:
        """How long what begins now may stay (s), as far as a drain goes: a share of what is left of it."""
        if self.closing.drained == math.inf:
            return math.inf
        return max(0.0, (self.closing.drained - asyncio.get_running_loop().time()) * self.rng.random())

    def drain(self, seconds: float) -> None:
        """End all streams within so many seconds, evenly, in random order; what is not ended by then, closing ends."""
        check_finite(seconds=seconds)
        now = asyncio.get_running_loop().time()
        begin, end = now + NOTICE * seconds, now + seconds
        self.closing.drained = end
        streams = list(self.held)
        self.rng.shuffle(streams)
        for number, lease in enumerate(streams):
            self._due(lease, begin + (end - begin) * (number + 0.5) / len(streams))
        self.respread(begin, end)

    def _due(self, lease: Lease, end: float) -> None:
        if len(self._ends) > 2 * len(self.held) + MOST_LOST:
            self._ends = [entry for entry in self._ends if entry[2] in self.held]
            heapq.heapify(self._ends)
        self._count += 1
        heapq.heappush(self._ends, (end, self._count, lease))
        if self._timer is None or end < self._rings:
            self._look_at(end)

    def _look_at(self, moment: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._rings = moment
        self._timer = asyncio.get_running_loop().call_at(moment, self._look)

    def _look(self) -> None:
        """End what is due; who waits for the feed is woken once for all of them."""
        self._timer = None
        now, waiting = asyncio.get_running_loop().time() + 1e-6, False
        while self._ends and self._ends[0][0] <= now:
            lease = heapq.heappop(self._ends)[2]
            if lease in self.held and not lease.over:
                lease.over = True
                if lease.end:
                    lease.end()
                else:
                    waiting = True
        if waiting:
            self.closing.wake()
        if self._ends and not self.closing.is_set():
            self._look_at(max(self._ends[0][0], now + TICK))
