"""The instrument's own floor: a beat on a fixed grid, and who waits for a CPU."""

import asyncio
import os
import time
from pathlib import Path

import pytest

import lab.bench.metronome as wing
from lab.bench.metronome import PERIOD, Ticks, metronome
from lab.virtual import Net, run_virtual


async def beats(*pauses: float) -> Ticks:
    """Beat while the loop stands still for so long, each time after a moment in which it does not."""
    async with metronome() as ticks:
        for pause in pauses:
            await asyncio.sleep(3 * PERIOD)
            time.sleep(pause)  # noqa: ASYNC251  # the stall that is measured
    return ticks


def test_a_stall_is_all_the_beats_that_it_swallowed() -> None:
    """A loop that stands still for 0.3 s misses thirty beats, each of which counts with its own lateness."""
    ticks = asyncio.run(beats(0.3, 0.0))
    late = sorted((late for late in ticks.late if late > 0.05), reverse=True)
    assert len(late) >= 24
    assert late[0] > 0.27
    assert ticks.floor > 0.2, "one late tick among many would not be seen"


def test_a_stall_at_the_end_counts_too() -> None:
    """A loop that stands still when the block ends has swallowed its last beats, and they are counted."""
    assert sum(late > 0.05 for late in asyncio.run(beats(0.3)).late) >= 24


def test_beats_keep_to_the_grid() -> None:
    """However late each of them is, there are as many beats as the time has periods."""

    async def main() -> tuple[float, float, Ticks]:
        async with metronome() as ticks:
            first = ticks.due
            for _ in range(10):
                await asyncio.sleep(3 * PERIOD)
                time.sleep(2 * PERIOD)  # noqa: ASYNC251  # the stall that makes them late
            end = time.perf_counter()
        return first, end, ticks

    first, end, ticks = asyncio.run(main())
    assert len(ticks.late) == round((ticks.due - first) / PERIOD) >= 50
    assert ticks.due > end


def test_virtual_time_has_no_floor() -> None:
    """In virtual time nothing beats, nothing is late, and nobody waits."""

    async def main(net: Net) -> Ticks:
        async with metronome() as ticks:
            await asyncio.sleep(100)
        return ticks

    ticks = run_virtual(main)
    assert (ticks.late, ticks.floor, ticks.waited) == ([], 0.0, 0.0)


def test_who_waits_for_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel counts while the block runs is its share of the time, of a container's account first; where it
    counts nothing, the load average says how many of those who want a CPU have none; and where that is not, nothing."""
    account = tmp_path / "cpu.pressure"
    monkeypatch.setattr(wing, "PRESSURE", (tmp_path / "none", account))

    async def run() -> float:
        async with metronome() as ticks:
            account.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=9000000\nfull avg10=0 total=1\n")
            await asyncio.sleep(0.05)
        return ticks.waited

    account.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\nfull avg10=0 total=1\n")
    assert asyncio.run(run()) == 1.0
    monkeypatch.setattr(wing, "PRESSURE", ())
    monkeypatch.setattr(os, "getloadavg", lambda: (4.0, 0.0, 0.0), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert asyncio.run(run()) == 0.75
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert asyncio.run(run()) == 0.0
    monkeypatch.delattr(os, "getloadavg")
    assert asyncio.run(run()) == 0.0
