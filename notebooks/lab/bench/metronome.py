"""The instrument's own floor: how late this event loop is when nothing has to travel, and how full the machine.

    a grid of moments, PERIOD apart ─▶ the loop gets round to each ─▶ how late ─▶ floor
    the kernel's account of who waits for a CPU, before and after ──────────────▶ waited

A delay is read when the loop of the measuring process gets round to it. A metronome on the same loop shows what
that adds: it beats at fixed moments, and notes how much later it was. A loop that stood still for a second has missed
a hundred beats, and each of them counts with its own lateness: to count one would hide the other ninety-nine.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from lab.bench.result import LIVE, mode

PERIOD = 0.01  # s
PRESSURE = (Path("/sys/fs/cgroup/cpu.pressure"), Path("/proc/pressure/cpu"))  # a container's own, else the machine's


class Ticks:
    """The lateness of each beat (s), and the share of the time in which somebody here waited for a CPU."""

    def __init__(self) -> None:
        self.late: list[float] = []
        self.waited = 0.0
        self.due = time.perf_counter() + PERIOD

    @property
    def floor(self) -> float:
        """What 95 % of the beats were not later than (s); 0 without beats, as in virtual time."""
        return sorted(self.late)[(len(self.late) * 95 - 1) // 100] if self.late else 0.0

    def count(self) -> None:
        """Note every beat that is due by now."""
        now = time.perf_counter()
        while self.due <= now:
            self.late.append(now - self.due)
            self.due += PERIOD


@contextlib.asynccontextmanager
async def metronome() -> AsyncIterator[Ticks]:
    """Beat while the block runs. In virtual time, where nothing is ever late, it does nothing."""
    ticks = Ticks()
    if mode() != LIVE:
        yield ticks
        return
    begin, before = time.perf_counter(), _waited()
    beating = asyncio.create_task(_beat(ticks))
    try:
        yield ticks
    finally:
        beating.cancel()
        await asyncio.wait({beating})
        ticks.count()  # a stall that lasted to the end has swallowed the last beats
        after, took = _waited(), time.perf_counter() - begin
        ticks.waited = _overload() if before is None or after is None else min(1.0, (after - before) / took)


async def _beat(ticks: Ticks) -> None:
    while True:
        await asyncio.sleep(ticks.due - time.perf_counter())
        ticks.count()


def _waited() -> float | None:
    """Seconds so far in which at least one task here waited for a CPU; None where nobody counts them.

    Source: the Linux kernel's Documentation/accounting/psi.rst; the first line's "total" is in microseconds.
    """
    for account in PRESSURE:
        with contextlib.suppress(OSError, ValueError, IndexError):  # no such file, or switched off at boot
            return int(account.read_text(encoding="ascii").split()[4].removeprefix("total=")) / 1e6
    return None


def _overload() -> float:
    """From the load average of the last minute: the share of those who want a CPU that cannot have one; else 0."""
    with contextlib.suppress(OSError, AttributeError):  # Windows has none
        wanting, cpus = os.getloadavg()[0], os.cpu_count() or 1
        return max(0.0, 1 - cpus / wanting) if wanting else 0.0
    return 0.0
