"""One description of an experiment, run LIVE or VIRTUAL: the same server, clients and schedule, either way.

    Trial(make, client, schedule) ─▶ await .live(delay=...)     real sockets through a Wire, in real time
                                  └▶ .virtual(delay=...)        the same code in virtual time over a Link

Both count the bytes on the wire, and both give a Run. LIVE shows what this machine does; VIRTUAL shows the law.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from lab.bench.experiment import MOST_CLIENTS, Client, experiment
from lab.bench.result import Run
from lab.bench.schedule import Schedule
from lab.proxies.wire import Way, Wire
from lab.virtual import Link, Net, Served, run_virtual
from lab.virtual import serve as serve_virtually
from servers.background import serve
from servers.feed import Feed
from servers.limits import check_finite, check_whole
from servers.service import Service


@dataclass(frozen=True)
class Wired:
    """A server behind a wire, as an experiment wants it."""

    app: Service
    wire: Wire

    @property
    def url(self) -> str:
        """Where the clients ask."""
        return self.wire.url

    @property
    def bytes(self) -> dict[Way, int]:
        """The bytes passed on so far in each direction."""
        return self.wire.bytes


@dataclass(frozen=True)
class Trial:
    """`clients` clients of the server that `make(feed)` gives, while `schedule` is published; see `experiment`.

    Raises ValueError for a number that cannot be.
    """

    make: Callable[[Feed], Service]
    client: Client
    schedule: Schedule
    clients: int = 1
    spread: float = 0.5
    grace: float = 10.0
    seed: int = 1
    label: str | None = None

    def __post_init__(self) -> None:
        check_whole(clients=self.clients, least=1, most=MOST_CLIENTS)
        check_finite(spread=self.spread, grace=self.grace)

    async def live(self, *, delay: float = 0.0, jitter: float = 0.0, rate: float = math.inf) -> Run:
        """Over real sockets: `delay` s one way and up to `jitter` s more, `rate` bytes/s each way."""
        with (
            serve(self.make(Feed())) as server,
            Wire(server.url, delay=delay, jitter=jitter, rate=rate, seed=self.seed) as wire,
        ):
            assert isinstance(server.app, Service)
            return await self._run(Wired(server.app, wire))

    def virtual(
        self,
        *,
        delay: float = 0.0,
        jitter: float = 0.0,
        rate: float = math.inf,
        loss: float = 0.0,
        packets: bool = False,
        tls: bool = False,
    ) -> Run:
        """In virtual time, over a Link of that kind; callable from anywhere, also inside a running event loop."""

        async def main(net: Net) -> Run:
            async with serve_virtually(self.make(Feed())) as server:
                return await self._run(server)

        link = Link(delay=delay, jitter=jitter, rate=rate, loss=loss, packets=packets, tls=tls)
        return run_virtual(main, link=link, seed=self.seed)

    async def _run(self, server: Wired | Served[Service]) -> Run:
        return await experiment(
            server,
            self.client,
            self.schedule,
            clients=self.clients,
            spread=self.spread,
            grace=self.grace,
            seed=self.seed,
            label=self.label,
        )
