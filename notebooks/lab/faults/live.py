"""Worlds of real sockets: a server in a thread, a wire, perhaps an nginx; all clients in one thread of their own.

server ─▶ (nginx) ─▶ wire ─▶ client, in the thread of all clients, which can be put to sleep
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from lab.faults.subjects import Pace, Subject
from lab.faults.world import Strike, World
from lab.proxies import Wire, intermediary
from servers.background import Server, serve

END = 10.0  # s for the clients to end


class Crowd:
    """The thread in which clients live: one event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.SelectorEventLoop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="clients", daemon=True)
        self.thread.start()

    def freeze(self, seconds: float) -> None:
        """Let nothing run there for so long, counted from now, whoever else asks for the same."""
        until = time.perf_counter() + seconds
        self.loop.call_soon_threadsafe(lambda: time.sleep(max(0.0, until - time.perf_counter())))

    def end(self) -> None:
        """Stop the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(END)
        self.loop.close()


@contextlib.contextmanager
def crowd() -> Iterator[Crowd]:
    """A thread for clients while the block runs."""
    clients = Crowd()
    try:
        yield clients
    finally:
        clients.end()


class LiveWorld(World):
    """A server behind a `Wire`, with `proxy` (nginx's directives, or None) in between."""

    link: Wire

    def __init__(self, clients: Crowd, proxy: str | None, subject: Subject, pace: Pace, **options: Any) -> None:
        super().__init__(subject, pace, **options)
        self.clients, self.proxy = clients, proxy

    @property
    def url(self) -> str:
        """Where clients ask: the wire's end."""
        return self.link.url

    @property
    def server_url(self) -> str:
        """Where the server itself is."""
        return self.server.url

    async def start(self) -> None:
        """Serve, and put between what is to be there."""
        self.server: Server = self.stack.enter_context(serve(self.application()))
        target = self.server.url
        if self.proxy is not None:
            target = self.stack.enter_context(intermediary(target, self.proxy)).url
        self.link = self.stack.enter_context(Wire(target))

    async def stop(self) -> None:
        """End everything, what is nearest to the client first."""
        await self.stack.aclose()

    def pass_by(self) -> None:
        """From here on clients reach the server itself; what goes through the proxy ends."""
        host, _, port = self.server.url.removeprefix("http://").partition(":")
        self.link.target = (host, int(port))
        self.link.cut()

    def freeze(self, seconds: float) -> None:
        """Put the clients' machine to sleep."""
        self.clients.freeze(seconds)

    async def run(self, strike: Strike) -> None:
        """Live through the fault, from the first request on; the server is started already."""
        self.zero = time.perf_counter()
        loop = self.clients.loop
        following = [asyncio.run_coroutine_threadsafe(self.follow(memory), loop) for memory in self.memories]
        try:
            await self.live_through(strike)
        finally:
            for future in following:
                future.cancel()
            self.link.cut()
            await asyncio.sleep(0.1)
        for future in following:
            if not future.cancelled():
                future.result(0)  # raises what ended it
