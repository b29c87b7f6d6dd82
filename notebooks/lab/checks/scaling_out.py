"""The checks of notebook 08: an append that many writers share, and how large a fleet has to be.

The log of the first exercise is a stand-in for a stream of Redis, in virtual time: what one writer awaits, another may
come between.
"""

import asyncio
import contextlib
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from lab.checks.bounded import Misfit, virtually
from lab.checks.verdict import Verdict, awaiting, compared, judged
from lab.virtual import Net

WRITERS, UPDATES = 3, 12  # each writer's
LATENCY = (0.001, 0.02)  # s: what a command takes, at random, each way
LOAD = 0.7
LIMIT = 600.0  # virtual seconds
VAIN = 100  # refusals of one number: all writers together, who begin at 1 with each update, get fewer


class Conflict(Exception):
    """The log has this number already, or a later one."""


class SharedLog:
    """A log that several processes write to: every command takes time, and others' may come first.

    `await log.last()` is the newest entry's number, 0 if there is none; `await log.add(number, update)` appends, or
    raises Conflict unless the number is above the newest; `await log.count()` is a counter of its own: 1, 2, 3, ...
    """

    def __init__(self, seed: int = 1) -> None:
        self._entries: list[tuple[int, Any]] = []
        self.conflicts = self.counted = 0
        self._draw, self._refused = random.Random(seed), Counter[int]()

    @property
    def entries(self) -> tuple[tuple[int, Any], ...]:
        """All that was added, with its numbers."""
        return tuple(self._entries)

    async def last(self) -> int:
        """The newest entry's number."""
        await self._travel()
        newest = self._entries[-1][0] if self._entries else 0
        await self._travel()
        return newest

    async def count(self) -> int:
        """One more than the last time, whoever asked."""
        await self._travel()
        self.counted += 1
        counted = self.counted
        await self._travel()
        return counted

    async def add(self, number: int, update: Any) -> None:
        """Append, if nothing has this number or a later one."""
        await self._travel()
        if isinstance(number, bool) or not isinstance(number, int):
            raise Misfit(f"An entry's number is a whole number, not {number!r}.")
        taken = bool(self._entries) and number <= self._entries[-1][0]
        if taken:
            self.conflicts += 1
            self._refused[number] += 1
            if self._refused[number] > VAIN:
                raise Misfit(
                    f"It adds number {number} again and again, and the log has it already: after a refusal ask for the "
                    "newest number again, and add one to it."
                )
        else:
            self._entries.append((number, update))
        await self._travel()
        if taken:
            raise Conflict(f"{number} is not above {self._entries[-1][0]}")

    async def _travel(self) -> None:
        await asyncio.sleep(self._draw.uniform(*LATENCY))


async def _write(append: Any, log: SharedLog, writer: int, said: list[Any], refused: list[Any]) -> None:
    for n in range(UPDATES):
        update = f"writer {writer}, update {n}"
        try:
            said.append((await append(log, update), update))
        except Conflict:
            refused.append(update)


@judged
def appends_contiguously(append: Callable[[SharedLog, Any], Any]) -> Verdict:
    """Exercise: `await append(log, update)`: number the update so that many writers leave no gap, and lose nothing."""

    async def alone(net: Net) -> Verdict | None:
        log, said, refused = SharedLog(), list[Any](), list[Any]()
        await _write(awaiting(append), log, 1, said, refused)
        numbers = [number for number, _ in log.entries]
        if numbers == list(range(1, UPDATES + 1)) or len(numbers) != UPDATES:
            return None
        if numbers[0] == 0:
            return Verdict(False, "The first entry's number is 1: 0 is what a client says that has nothing yet.")
        if all(b - a == 1 for a, b in itertools.pairwise(numbers)):
            return None
        return Verdict(
            False,
            "Even one writer alone leaves gaps: the number is no time stamp and no chance, it is one more than the "
            "last, or nobody can tell a gap from a pause.",
        )

    async def together(net: Net) -> Verdict:
        log, said, refused = SharedLog(), list[Any](), list[Any]()
        async with asyncio.TaskGroup() as group:
            for writer in range(1, WRITERS + 1):
                group.create_task(_write(awaiting(append), log, writer, said, refused))
        return _judge(log, said, refused)

    async def beside(net: Net) -> Verdict | None:
        log, said, refused = SharedLog(), list[Any](), list[Any]()
        writing = asyncio.create_task(_write(awaiting(append), log, 1, said, refused))
        await _write(_again, log, 2, [], [])
        ended, _ = await asyncio.wait({writing}, timeout=LIMIT / 2)
        if ended:
            await writing
            if not refused:
                return None
        what = f"{len(refused)} of {UPDATES} are" if ended else "it waits for ever"
        writing.cancel()
        why = "that one asks no counter" if log.counted else "no lock in memory keeps that one out"
        return Verdict(
            False,
            f"Among its own no update is refused, but {what} beside a writer of another process: {why}. Take the "
            "refusal for news, and try again.",
        )

    if (found := virtually(alone, limit=LIMIT)) is not None:
        return found
    verdict = virtually(together, limit=LIMIT)
    locked = virtually(beside, limit=LIMIT) if verdict.ok else None
    return verdict if locked is None else locked


async def _again(log: SharedLog, update: Any) -> int:
    """Another process's writer."""
    while True:
        number = await log.last() + 1
        with contextlib.suppress(Conflict):
            await log.add(number, update)
            return number


def _judge(log: SharedLog, said: list[Any], refused: list[Any]) -> Verdict:
    due = WRITERS * UPDATES
    numbers, updates = [number for number, _ in log.entries], [update for _, update in log.entries]
    if refused:
        what = "Read, then write: between the two another writer took the number"
        if log.counted:
            what = "Who counted first need not add first, and the later one's number is then no longer above the newest"
        return Verdict(
            False,
            f"{what}: {len(refused)} of {due} updates were refused and lost. A refusal is the news that the number is "
            "gone: ask again, and try again.",
        )
    if len(set(updates)) < due:
        lost = due - len(set(updates))
        why = "a Conflict says that it is not in the log" if log.conflicts else "each has to be added"
        if log.counted and log.conflicts:
            why = "who counted first need not add first, and the later one is then refused"
        return Verdict(False, f"{lost} of {due} updates are not in the log, and nobody was told: {why}.")
    if len(updates) > due:
        return Verdict(False, f"{len(updates) - due} updates are in the log twice: add again only what was refused.")
    if numbers != list(range(1, due + 1)):
        gaps = sum(b - a - 1 for a, b in zip([0, *numbers], numbers, strict=False))
        why = "a number that was counted and then not used is a gap" if log.counted else "one more than the last is due"
        return Verdict(False, f"Nothing is lost, but {gaps} numbers are left out, from 1 to {numbers[-1]}: {why}.")
    if sorted(map(repr, said)) != sorted(map(repr, log.entries)):
        return Verdict(False, "Every update is in the log; return its number as well, the one that it has there.")
    return Verdict(
        True,
        f"{due} updates of {WRITERS} writers, each once, numbered without a gap; {log.conflicts} times the number was "
        "gone. Redis saves these by running both steps as one script.",
    )


def size_fleet(function: Callable[..., int]) -> Verdict:
    """Exercise: `processes(clients, rate, deadline, delivery, beat, heartbeat, descriptors)`: how many it takes.

    The last client of a process is served within the deadline, a process is busy at most 70 % of its time, heartbeats
    (`beat` s of CPU each, every `heartbeat` s) included, and has at most so many descriptors.
    """

    def rule(*, least: Any = min, load: float = LOAD, beats: float = 1.0, by: tuple[int, ...] = (0, 1, 2),
             whole: Any = math.ceil, floor: Any = math.floor) -> Callable[..., Any]:  # fmt: skip
        def processes(n: int, rate: float, deadline: float, c: float, beat: float, every: float, most: int) -> Any:
            limits = (deadline / c, load / (rate * c + beats * beat / every), most)
            return whole(n / floor(least(limits[k] for k in by)))

        return processes

    def either(**mistaken: Any) -> tuple[Callable[..., Any], ...]:
        """The rule with a mistake, for whole clients in a process and for parts of them."""
        return rule(**mistaken), rule(floor=float, **mistaken)

    def turned(rule: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *case: rule(*case[:5], 1 / case[5], case[6])

    mistakes: dict[str, Callable[..., Any] | tuple[Callable[..., Any], ...]] = {
        "It looks as if heartbeats were free: in a quiet fleet they are nearly all there is to do.": (
            *either(beats=0.0), *either(beats=0.0, by=(0, 1)),
        ),
        "The average load fits, but the last client is late: an update comes for all clients of a process at once, "
        "and they are served one after the other.": (*either(by=(1, 2)), *either(by=(1,))),
        "It looks as if a process could have any number of connections: each takes a descriptor, and the limit is "
        "the process's.": either(by=(0, 1)),
        "That leaves no room: at 100 % of its time every process is late for ever. Keep to 70 %.": either(load=1.0),
        "That rounds down: the clients that are left over need a process, too.": (
            *either(whole=math.floor), *either(whole=round),
        ),
        "The tightest limit counts, not the loosest.": either(least=max),
        "The deadline alone does not size it: many updates make a process busy even if each is in time.": (
            *either(by=(0, 2)), *either(by=(0,)),
        ),
        "A client makes 1/heartbeat heartbeats in a second, not `heartbeat`.": tuple(map(turned, either())),
        "A process serves whole clients: round down what it holds before the fleet is divided by it.": (
            rule(floor=float)
        ),
        "That counts one process too many where the last one is full: nobody is left over then.": (
            either(whole=lambda fleet: math.floor(fleet) + 1)
        ),
        "Processes are counted in whole numbers: round up.": (rule(whole=float), rule(whole=float, floor=float)),
    }  # fmt: skip
    cases = [
        (1_000_000, 0.3, 0.2, 11e-6, 7e-6, 15.0, 65_000),
        (1_000_000, 0.0007, 5.0, 9e-6, 23e-6, 2.0, 65_000),
        (310_000, 130.0, 0.7, 13e-6, 5e-6, 25.0, 65_000),
        (777_777, 0.01, 1.3, 10e-6, 8e-6, 15.0, 1_000),
        (800_000, 0.01, 1.3, 10e-6, 8e-6, 15.0, 1_000),
        (250_001, 0.001, 30.0, 12e-6, 31e-6, 1.0, 300_000),
    ]
    praise = "Deadline, load with its heartbeats, descriptors: the tightest sizes a process, and rounding up the fleet."
    return compared(function, rule(), mistakes, cases, praise)
