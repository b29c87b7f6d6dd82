"""How many deliveries a second one server can make before they are late: the fast path beside nginx with nchan.

    python tests/benchmarks/capacity.py [--clients 1000] [--limit 0.1] [--seconds 4]

The rate of updates, evenly spaced, is doubled until the 99th percentile of the delay passes the limit, then halved in.
A delay counts from the moment the update was *planned* for: a server that is too busy to accept it is late, too.
What the fast path leaves out, because a later update of the same path overtook it, is not counted as delivered, and
nor is what nchan's buffer loses; a server that delivers less than SHARE of what was planned has not kept up.
"""

import argparse
import asyncio
import contextlib
import functools
import re
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import uvloop

from tests.benchmarks.fan_out import Client, Load, free_port
from tests.benchmarks.nchan import nchan

SERVERS = ("nchan", "file-updates")
SHARE = 0.9
PROBES = 20  # clients whose delays are taken; all are counted
UPDATE = re.compile(rb'"seq": ?(\d+),[^\n]*"published": ?(\d+\.\d+)')


class Probe(Client):
    """A client that also notes when the first update of each read was published and came."""

    def __init__(self, audience: "Audience") -> None:
        super().__init__(audience)
        self.audience = audience

    def data_received(self, data: bytes) -> None:
        if oldest := UPDATE.search(self.tail + data):
            self.audience.seen.append((int(oldest[1]), float(oldest[2]), time.time()))
        super().data_received(data)


class Audience(Load):
    """All clients; `seen` has number, publication and arrival of what the probes got."""

    seen: list[tuple[int, float, float]]

    async def gather(self, clients: int) -> None:
        """Connect, probes among them."""
        self.seen = []
        loop = asyncio.get_running_loop()
        for number in range(clients):
            kind = Client if number % (clients // PROBES) else Probe
            transport, _ = await loop.create_connection(functools.partial(kind, self), "127.0.0.1", self.port)
            self.transports.append(transport)


@contextlib.asynccontextmanager
async def running(model: str, port: int, rate: float) -> AsyncIterator[None]:
    if model == "nchan":
        async with nchan(port, rate, regular=True):
            yield
        return
    command = [sys.executable, "-m", "servers", model, "--port", str(port), "--rate", str(rate), "--regular"]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        await process.stdout.readline()
        yield
    finally:
        process.kill()
        await process.wait()


async def trial(model: str, rate: float, options: argparse.Namespace) -> tuple[float, float]:
    """The 99th percentile of the delay (s), and the deliveries a second."""
    port = free_port()
    async with running(model, port, rate), asyncio.timeout(60 + options.seconds):
        await asyncio.sleep(0.5)
        audience = Audience("sse", port)
        try:
            await audience.gather(options.clients)
            await asyncio.sleep(2)
            audience.seen, before, begin = [], audience.deliveries, time.perf_counter()
            await asyncio.sleep(options.seconds)
            delivered = (audience.deliveries - before) / (time.perf_counter() - begin)
            seen = audience.seen
            if audience.open < options.clients or len(seen) < 100:
                return float("inf"), delivered
        finally:
            audience.close()
    start = min(published - number / rate for number, published, _ in seen)
    delays = [came - start - number / rate for number, _, came in seen]
    return statistics.quantiles(delays, n=100)[-1], delivered


def capacity(model: str, options: argparse.Namespace) -> float:
    """Deliveries a second at the highest rate whose delays kept the limit."""
    best = 0.0
    rate, low, high = 20.0, 0.0, 0.0
    while not high or high / low > 1.2:
        late, delivered = uvloop.run(trial(model, rate, options))
        kept = late <= options.limit and delivered >= SHARE * rate * options.clients
        verdict = "kept" if kept else "late"
        print(f"{model:13} {rate:7.0f} updates/s: p99 {1000 * late:8.1f} ms, {delivered:9.0f} deliveries/s, {verdict}")
        if kept:
            best, low = max(best, delivered), rate
        else:
            high = rate
            if not low:
                break
        rate = (low * high) ** 0.5 if high else 2 * rate
    return best


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--clients", type=int, default=1000)
    p.add_argument("--limit", type=float, default=0.1, help="seconds")
    p.add_argument("--seconds", type=float, default=4)
    options = p.parse_args()
    found = {model: capacity(model, options) for model in SERVERS}
    for model, deliveries in found.items():
        print(f"{model:13} {deliveries:9.0f} deliveries/s, {deliveries / found['nchan']:.1f} times nchan's")


if __name__ == "__main__":
    main()
