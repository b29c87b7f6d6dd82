"""CPU per delivery and memory per connection of each server, beside a tutorial's recipe, nchan, websockets or node.

    python tests/benchmarks/fan_out.py [--clients 500] [--rate 10] [--seconds 8] [--rounds 3] [--poisson] [PAIR ...]

A pair is OURS/THEIRS. Every server runs in a process of its own; the load is made here, by raw asyncio protocols. The
two sides of a pair take turns within one run, and only their ratio is worth quoting: absolute times are the machine's.
How busy others kept it meanwhile is printed as well, and the least and greatest ratio of a round.
Both publish the same edits at the same times, evenly spaced or, with --poisson, at random. The times matter: after a
gap of more than its retransmission timeout (0.2 s) a receiver's TCP acknowledges each segment at once, and on
loopback the sender's `write` does that work, too.
"""

import argparse
import asyncio
import re
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import psutil
import uvloop

from tests.benchmarks.nchan import nchan

MARK = b'"seq":'
HERE = Path(__file__).parent
RECIPE = {"sse": "sse", "file-updates": "sse", "websocket": "ws", "long-polling": "long", "short-polling": "short"}
ALL = {  # the pairs, and the most that ours may cost of theirs
    "sse/recipe": 0.33,
    "file-updates/recipe": 0.083,
    "websocket/recipe": 1.0,
    "long-polling/recipe": 1.0,
    "short-polling/recipe": 1.0,
    "file-updates/nchan": 0.8,
    "fast-sse/nchan": 0.8,
    "fast-websocket/nchan": 1.0,
    "fast-websocket/broadcast": 0.7,
    "fast-long-polling/nchan": 1.2,
    "fast-short-polling/recipe": 0.25,
    "fast-short-polling/node": 1.0,
}
POLL_EVERY = 0.25  # seconds


class Client(asyncio.Protocol):
    """A connection that asks once (a stream) or again after every answer (a poll), and counts what it gets."""

    def __init__(self, load: "Load") -> None:
        self.load, self.tail, self.answer, self.cursor = load, b"", b"", "0"
        self.validators = b""  # where nchan's long polling has its cursor

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by name
        self.load.open += 1
        self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        self.load.open -= 1

    def ask(self) -> None:
        if not self.transport.is_closing():
            self.load.requests += 1
            self.transport.write(self.load.request(self.cursor, self.validators))

    def data_received(self, data: bytes) -> None:
        seen = self.tail + data
        self.load.deliveries += seen.count(MARK)
        self.tail = seen[-len(MARK) + 1 :]
        if self.load.polls:
            self.answer += data
            self.take_answer()

    def take_answer(self) -> None:
        head, found, body = self.answer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if not found or (length and len(body) < int(length[1])):
            return
        self.answer = b""
        if cursor := re.search(rb'"cursor":"?([0-9a-z-]+)', body):
            self.cursor = cursor[1].decode()
        if (since := re.search(rb"Last-Modified: ([^\r]+)", head)) and (tag := re.search(rb"Etag: ([^\r]+)", head)):
            self.validators = b"If-Modified-Since: %b\r\nIf-None-Match: %b\r\n" % (since[1], tag[1])
        if self.load.model == "long-polling":
            self.ask()
        else:
            asyncio.get_running_loop().call_later(POLL_EVERY, self.ask)


@dataclass
class Load:
    """All clients of one server, and what they counted together."""

    model: str
    port: int
    open: int = 0
    requests: int = 0
    deliveries: int = 0
    transports: list[asyncio.BaseTransport] = field(default_factory=list)

    @property
    def polls(self) -> bool:
        return self.model.endswith("polling")

    def request(self, cursor: str, validators: bytes = b"") -> bytes:
        lines = [b"Host: 127.0.0.1"]
        if self.model in ("sse", "file-updates"):
            target = "/events"
            lines += [b"Accept: text/event-stream"]
        elif self.model == "websocket":
            target = "/ws"
            lines += [b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13"]
            lines += [b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
            lines += [b"Sec-WebSocket-Extensions: permessage-deflate"]  # as browsers offer
        else:
            target = f"/updates?after={cursor}" + ("&wait=30" if self.model == "long-polling" else "")
        return f"GET {target} HTTP/1.1\r\n".encode() + b"\r\n".join(lines) + b"\r\n" + validators + b"\r\n"

    async def connect(self, clients: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(clients):
            transport, _ = await loop.create_connection(lambda: Client(self), "127.0.0.1", self.port)
            self.transports.append(transport)

    def close(self) -> None:
        for transport in self.transports:
            transport.close()


@dataclass
class Result:
    """Of one server in one round."""

    cpu_per_million: float  # CPU seconds per million deliveries (per million requests for the polls)
    kib_per_connection: float
    others: float  # the share of the machine that neither the server nor its load took


async def measure(model: str, server: str, options: argparse.Namespace) -> Result:
    """One server under load; `server` is "ours", "fast", "nchan", "node", or a recipe's name."""
    port = free_port()
    load = Load(model, port)
    if server == "nchan":
        async with nchan(port, options.rate, regular=not options.poisson) as nginx:
            return await under_load(psutil.Process(nginx.pid), load, options)
    if server in ("ours", "fast"):
        command = [sys.executable, "-m", "servers", model, "--port", str(port), "--rate", str(options.rate)]
        command += [] if options.poisson else ["--regular"]
        command += ["--fast"] if server == "fast" else []
    elif server == "node":
        command = ["node", str(HERE / "recipes.js"), str(port), str(options.rate)]
    else:
        arrivals = "poisson" if options.poisson else "regular"
        command = [sys.executable, str(HERE / "recipes.py"), server, str(port), str(options.rate), arrivals]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
    try:
        return await under_load(psutil.Process(process.pid), load, options)
    finally:
        process.kill()
        await process.wait()


async def under_load(server: psutil.Process, load: Load, options: argparse.Namespace) -> Result:
    async with asyncio.timeout(20):
        while True:
            try:
                await load.connect(1)
                break
            except OSError:
                await asyncio.sleep(0.1)
    await asyncio.sleep(1)
    empty = server.memory_info().rss
    await load.connect(options.clients - 1)
    await asyncio.sleep(2)  # the handshakes are over; the first updates went through
    memory = (server.memory_info().rss - empty) / 1024 / options.clients
    machine, here = psutil.cpu_times(), psutil.Process()
    before, units = sum(server.cpu_times()[:2]), load.requests if load.polls else load.deliveries
    made, start = sum(here.cpu_times()[:2]), time.perf_counter()
    await asyncio.sleep(options.seconds)
    used, made = sum(server.cpu_times()[:2]) - before, sum(here.cpu_times()[:2]) - made
    passed = (psutil.cpu_count() or 1) * (time.perf_counter() - start)
    others = max(0.0, 1 - (psutil.cpu_times().idle - machine.idle + used + made) / passed)
    units = (load.requests if load.polls else load.deliveries) - units
    if load.open < options.clients:
        raise RuntimeError(f"{load.model}: only {load.open} of {options.clients} connections are open")
    load.close()
    return Result(used / units * 1e6, memory, others)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("pairs", nargs="*", default=list(ALL), metavar="PAIR", help=", ".join(ALL))
    p.add_argument("--clients", type=int, default=500)
    p.add_argument("--rate", type=float, default=10)
    p.add_argument("--seconds", type=float, default=8)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--poisson", action="store_true", help="updates at random times, not evenly spaced")
    options = p.parse_args()
    arrivals = "Poisson" if options.poisson else "regular"
    print(f"{options.clients} clients, {options.rate:g} updates/s ({arrivals}), medians of {options.rounds} rounds")
    print(f"{'ours/theirs':27}{'CPU µs per':12}{'ours':>6}{'theirs':>8}{'ratio':>7}{'from':>6}{'to':>6}{'goal':>6}"
          f"{'KiB ours':>10}{'theirs':>8}{'others':>8}")  # fmt: skip
    for pair in options.pairs:
        name, _, other = pair.partition("/")
        model = name.removeprefix("fast-")
        ours, theirs = [], []
        for _ in range(options.rounds):
            theirs.append(uvloop.run(measure(model, RECIPE[model] if other == "recipe" else other, options)))
            ours.append(uvloop.run(measure(model, "ours" if name == model else "fast", options)))
        ratios = [o.cpu_per_million / t.cpu_per_million for t, o in zip(theirs, ours, strict=True)]
        cpu = [statistics.median(r.cpu_per_million for r in side) for side in (ours, theirs)]
        kib = [statistics.median(r.kib_per_connection for r in side) for side in (ours, theirs)]
        unit = "request" if model.endswith("polling") else "delivery"
        others = statistics.median(r.others for r in ours + theirs)
        print(f"{pair:27}{unit:12}{cpu[0]:6.1f}{cpu[1]:8.1f}{statistics.median(ratios):7.2f}{min(ratios):6.2f}"
              f"{max(ratios):6.2f}{ALL[pair]:6.2f}{kib[0]:10.1f}{kib[1]:8.1f}{others:8.0%}", flush=True)  # fmt: skip
        time.sleep(1)


if __name__ == "__main__":
    main()
