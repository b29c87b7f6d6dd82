"""VIRTUAL held against LIVE: one description, run over real sockets through a wire and in virtual time.

What the machine's speed cannot move agrees exactly: deliveries, order, counts where updates are far apart against
the round trip, bytes up to the text of host and port. Delays agree within a factor.
"""

import asyncio
import functools
from typing import Any

import httpx
import pytest

from lab.bench.experiment import HTTP, ClientLog, Run, Schedule
from lab.bench.result import BUSY, seconds, table
from lab.bench.trial import Trial
from servers import long_polling, short_polling, sse, websocket
from tests.test_laws import ask, listen, long_poll, open_socket

DELAY = 0.05  # s, one way
TRIES = 6  # of a run that keeps its time
SCHEDULE = Schedule.at([0.35, 1.55, 2.75], 3.0)  # far apart against the round trip, and half-way between two polls


async def poll(url: str, log: ClientLog, times: int = 4) -> None:
    """A fixed number of polls on a grid, none of them near an update."""
    cursor, start = log.cursor, asyncio.get_running_loop().time()
    async with httpx.AsyncClient(**HTTP) as http:
        for number in range(times):
            await asyncio.sleep(start + 1.2 * number - asyncio.get_running_loop().time())
            cursor = await ask(http, url, log, cursor)


TRIALS = {
    "short polling": Trial(short_polling.create_app, poll, SCHEDULE),
    "long polling": Trial(functools.partial(long_polling.create_app, jitter=0.0), long_poll, SCHEDULE),
    "WebSocket": Trial(websocket.create_app, open_socket, SCHEDULE),
    "SSE": Trial(sse.create_app, listen, SCHEDULE),
}


@functools.cache
def both(name: str) -> tuple[Run, Run]:
    """The trial, LIVE and VIRTUAL; LIVE again where the machine stood still so long that a poll met another update."""
    for _ in range(TRIES):
        live = asyncio.run(TRIALS[name].live(delay=DELAY))
        if max(live.floor, live.lateness) < 0.1:
            break
    return live, TRIALS[name].virtual(delay=DELAY)


def order(run: Run) -> list[tuple[int, int]]:
    return [(delivery.client, delivery.seq) for delivery in run.all_deliveries]


@pytest.mark.parametrize("name", TRIALS)
def test_live_and_virtual_deliver_the_same_in_the_same_order(name: str) -> None:
    """The same deliveries arrive, in the same order, none lost, none twice."""
    live, virtual = both(name)
    assert (live.mode, virtual.mode) == ("LIVE", "VIRTUAL")
    assert order(live) == order(virtual)
    for run in (live, virtual):
        assert run.lost == run.duplicated == run.out_of_order == 0


@pytest.mark.parametrize("name", ["long polling", "WebSocket", "SSE"])
def test_live_and_virtual_make_the_same_requests(name: str) -> None:
    """Where updates are far apart against the round trip, the requests are as many, and the server counts them too."""
    live, virtual = both(name)
    assert live.requests == virtual.requests == live.server_requests == virtual.server_requests


@pytest.mark.parametrize("name", TRIALS)
def test_live_and_virtual_put_the_same_bytes_on_the_wire(name: str) -> None:
    """Bytes agree up to the text of Host and port, and the digits of `published`, per request and per update."""
    live, virtual = both(name)
    assert live.bytes_up is not None
    assert virtual.bytes_up is not None
    assert live.requests == virtual.requests
    address = len("127.0.0.1:65535") - len("server")
    assert 0 <= live.bytes_up - virtual.bytes_up <= address * live.requests
    # an answer says neither host nor port: what is left is the length of a date or a stamp, which is fixed
    assert live.bytes_down == virtual.bytes_down


@pytest.mark.parametrize("name", TRIALS)
def test_live_and_virtual_delays_agree_within_a_factor(name: str) -> None:
    """The median delay LIVE is at least the VIRTUAL one's order, and at most twice it on a machine that keeps time."""
    live, virtual = both(name)
    assert live.delay(0.5) > 0.9 * virtual.delay(0.5) - 1.2 * (name == "short polling")
    if not live.busy:
        assert live.delay(0.5) < 2 * virtual.delay(0.5) + 2 * BUSY + 1.2 * (name == "short polling")


def test_a_floor_is_measured_live_and_is_nothing_in_virtual_time() -> None:
    """The instrument's own floor is above 0 with a real clock, and 0 with a virtual one."""
    live, virtual = both("SSE")
    assert live.floor > 0
    assert virtual.floor == 0
    assert f"within {seconds(live.floor)}, the instrument's own floor" in repr(table([live, virtual]))
    assert "floor" not in repr(table([virtual]))


def test_a_busy_machine_says_so_beside_the_figure() -> None:
    """A client that hogs the event loop makes the run busy, and the figure's corner says it."""
    from lab.figures import delay_ecdf

    async def hog(url: str, log: ClientLog) -> None:
        task = asyncio.create_task(poll(url, log, 100))
        try:
            while not task.done():
                spin_until = asyncio.get_running_loop().time() + 0.05
                while asyncio.get_running_loop().time() < spin_until:
                    pass
                await asyncio.sleep(0)
        finally:
            task.cancel()

    trial: Any = Trial(short_polling.create_app, hog, Schedule.at([0.1], 0.5))
    run = asyncio.run(trial.live())
    assert run.busy
    assert "too busy" in delay_ecdf(run).alt
    assert "too busy" in repr(table([run]))
