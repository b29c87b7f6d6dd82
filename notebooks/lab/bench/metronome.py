"""The instrument's own floor: how late this event loop is when nothing has to travel.

A delay is read when the loop of the measuring process gets round to it. A metronome on the same loop shows what
that adds: it asks to be woken at fixed moments, and notes how much later it was.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import numpy as np

from lab.bench.result import LIVE

PERIOD = 0.01  # s


class Ticks:
    """The lateness of each tick (s)."""

    def __init__(self) -> None:
        self.late: list[float] = []

    @property
    def floor(self) -> float:
        """What 95 % of the ticks were not later than (s); 0 without ticks, as in virtual time."""
        return float(np.quantile(self.late, 0.95)) if self.late else 0.0


@contextlib.asynccontextmanager
async def metronome() -> AsyncIterator[Ticks]:
    """Tick while the block runs. In virtual time, where nothing is ever late, it does nothing."""
    ticks = Ticks()
    if getattr(asyncio.get_running_loop(), "mode", LIVE) != LIVE:
        yield ticks
        return
    beating = asyncio.create_task(_beat(ticks))
    try:
        yield ticks
    finally:
        beating.cancel()
        await asyncio.wait({beating})


async def _beat(ticks: Ticks) -> None:
    while True:
        due = time.perf_counter() + PERIOD
        await asyncio.sleep(PERIOD)
        ticks.late.append(max(0.0, time.perf_counter() - due))
