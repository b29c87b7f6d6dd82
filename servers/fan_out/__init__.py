"""The fast path of a stream: encode once, one write for each client and batch, no task woken for any of them.

    feed ─▶ FanOut.run(), one task ─▶ Batch ─▶ one chunk of bytes ─▶ transport.write() of every client at the head
                                                                 └▶ a client that reads too slowly leaves:
    catch_up(), a task of its own ─▶ feed.read(its cursor) ─▶ send(), with flow control ─▶ at the head: back again

sse.py serves the same stream, readably; what it pays for that is a coroutine woken, an ASGI message and a cancel
scope for each client and update. Here four fifths of what is left is the kernel's own write, so the only lever
beyond that is to write less often: what arrives within WINDOW of the last round is joined, and of several updates
of one path only the last goes out (its id is its cursor, so a skipped number is no gap).

Here is what all streams have in common, and the event stream. sockets.py is the WebSocket on the same design, polls.py
both kinds of polling: there an answer is made once, and written to everybody who is held, or asks for it.
"""

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from servers.feed import BATCH, HEARTBEAT, Batch, Gap
from servers.lease import Lease
from servers.on_uvicorn import TRANSPORT, find_transport, socket_of, write_all
from servers.service import Service
from servers.sse import RENEW, reset_block, update_blocks

WINDOW = 0.005  # seconds from one round to the next: what is published meanwhile is joined
BACKLOG = 64 * 1024  # bytes unsent beyond which a client leaves the fast path; uvicorn's flow control begins there too
TURN = 250  # clients written to before others get the loop
HEARTBEAT_BLOCK = b": heartbeat\n\n"
LAST_CHUNK = b"0\r\n\r\n"  # the end of a chunked body (RFC 9112, section 7.1)

log = logging.getLogger("servers")


class Client:
    """One open event stream: everything up to `position` has been written to it. It is made in its response's task."""

    __slots__ = ("lease", "position", "response", "send", "socket", "task", "transport")

    def __init__(self, transport: asyncio.Transport | None, send: Send, position: int, lease: Lease) -> None:
        self.transport, self.send, self.position, self.lease = transport, send, position, lease
        self.socket = -1 if transport is None else socket_of(transport)
        self.task: asyncio.Task[None] | None = None  # while it is not on the fast path
        self.response = asyncio.current_task()

    def break_off(self) -> None:
        """End the stream where it is, so that the client sees it, and comes back for what it does not know."""
        if self.transport:
            self.transport.abort()
        elif self.response:
            self.response.cancel()

    async def write(self, block: bytes, *, more: bool = True) -> None:
        """Send by ASGI, which waits first until the client has read most of what it was sent before."""
        await self.send({"type": "http.response.body", "body": block, "more_body": more})

    async def finish(self) -> None:
        """End the stream behind all that was written, also if that takes its time."""
        await self.write(RENEW if self.lease.over else b"", more=False)

    def end(self) -> None:
        """End the stream by one write."""
        if self.transport and not self.transport.is_closing():
            renew = _chunk(RENEW) if self.lease.over else b""
            self.transport.write(renew + LAST_CHUNK)
            self.transport.close()


class FanOut:
    """All open streams of one server. `heartbeat` in seconds, `retry` in ms as in sse.py.

    Without `coalesce` every update goes out. All clients in `fast` stand at `position`.
    """

    def __init__(self, app: Service, *, heartbeat: float = HEARTBEAT, retry: int = 2000, coalesce: bool = True) -> None:
        self.feed, self.closing, self.traffic, self.leases = app.feed, app.closing, app.traffic, app.leases
        self.heartbeat, self.retry, self.coalesce = heartbeat, retry, coalesce
        self.fast: dict[asyncio.Transport, Client] = {}  # by what they are written to
        self.beat: bytes | None = _chunk(HEARTBEAT_BLOCK)  # what is written after a heartbeat of silence
        self.position = 0
        self.turn = asyncio.Lock()  # while a round is under way, some clients have been told and some not
        self.spoke = 0.0  # when all on the fast path were last written to (loop time, s)
        self.task: asyncio.Task[None] | None = None
        self._latest = (0, 0), Batch((), 0, "")  # the last stretch that was read

    def stands_before(self, app: Service) -> None:
        """Find each connection's transport, before anything wraps `send`."""
        behind = app.gate

        async def gate(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                find_transport(scope, send)
            await behind(scope, receive, send)

        app.gate = gate

    def encoded(self, news: Batch | Gap) -> bytes:
        """The news as one client's stream has them."""
        return reset_block(news) if isinstance(news, Gap) else news.encoded(update_blocks)

    def framed(self, news: Batch | Gap) -> bytes:
        """The news as they go to a transport."""
        return _chunk(self.encoded(news))

    def stream(self, opening: Batch | Gap) -> Response:
        """The response that follows the feed from there."""
        return EventStream(self, opening)

    def admit(self, client: Client) -> None:
        """Serve a client whose response has begun."""
        if client.transport is None:
            client.task = start(self.serve_alone(client), client.break_off)
            return
        client.lease.end = functools.partial(self.retire, client)
        if client.lease.over:
            client.end()
            return
        self.revive()
        if client.position == self.position and not self.closing.is_set():
            self.fast[client.transport] = client
        else:
            client.task = start(self.catch_up(client), client.break_off)

    def retire(self, client: Client) -> None:
        """A lease is over: end its stream behind what was written, which is whole blocks, however slowly it is read."""
        if client.transport:
            self.fast.pop(client.transport, None)
        if client.task:
            client.task.cancel()
        client.end()

    def dismiss(self, client: Client) -> None:
        """Forget a client that has left."""
        if client.transport:
            self.fast.pop(client.transport, None)
        if client.task:
            client.task.cancel()

    # The fast path

    def revive(self) -> None:
        """Have the feed followed for the fast path, from its head on, if nobody does."""
        if self.task is None or self.task.done():
            self.position = self.feed.head
            self.task = start(self.run(), self.break_off)

    def break_off(self) -> None:
        """The fast path has failed: no stream on it may stay open, and silent."""
        broken, self.fast = self.fast, {}
        for client in broken.values():
            client.break_off()

    async def run(self) -> None:
        """Follow the feed for all clients on the fast path, until the server closes."""
        loop = asyncio.get_running_loop()
        self.spoke = loop.time()
        while not self.closing.is_set():
            try:
                async with asyncio.timeout_at(self.spoke + self.heartbeat if self.beat else None):
                    await self.feed.wait(self.position, self.closing)
            except TimeoutError:
                await self.write(self.beat or b"", self.position)
                continue
            if self.feed.head == self.position:
                continue  # it was woken because the server is closing
            pause = self.spoke + WINDOW - loop.time()
            if pause > 0 and self.feed.head - self.position < BATCH:
                await asyncio.sleep(pause)
            await self.round()
        for transport, client in tuple(self.fast.items()):
            if transport.get_write_buffer_size() > BACKLOG:
                self.leave(transport, self.position)  # to end it takes a send that may have to wait
            else:
                del self.fast[transport]
                client.end()

    async def round(self) -> None:
        """Write what is new, once for all."""
        before = self.position
        try:
            news = self.read(before, self.feed.head)
        except Gap as gap:
            self.position = gap.position  # who comes while this round is under way stands behind it
            self.traffic.resets += await self.write(self.framed(gap), before)
        else:
            self.position = news.position
            self.traffic.delivered += len(news.updates) * await self.write(self.framed(news), before)

    async def write(self, chunk: bytes, before: int) -> int:
        """Write to every client on the fast path, and say to how many; a slow one goes on by itself from `before`."""
        self.spoke = asyncio.get_running_loop().time()
        written, clients = 0, tuple(self.fast.values())
        async with self.turn:
            for first in range(0, len(clients), TURN):
                if first:
                    await asyncio.sleep(0)
                told, slow = write_all(clients[first : first + TURN], chunk, BACKLOG)
                written += told
                for client in slow:
                    self.leave(client.transport, before)
        return written

    def leave(self, transport: asyncio.Transport | None, position: int) -> None:
        """Let a client go on by itself, unless it was dismissed while others had the loop."""
        if transport and (client := self.fast.pop(transport, None)):
            client.position = position
            client.task = start(self.catch_up(client), client.break_off)

    def read(self, position: int, until: int) -> Batch:
        """What is later than `position`, `until` included, as far as one round goes. Raises Gap."""
        stretch, news = self._latest
        if stretch != (position, until):
            news = self.feed.read(position)
            if news.position > until:
                news = Batch(news.updates[: until - position], until, self.feed.cursor_at(until))
            if self.coalesce:
                news = latest(news)
            self._latest = (position, until), news
        return news

    # Beside it

    async def catch_up(self, client: Client) -> None:
        """Bring one client to where the others are, at its own pace, and back to them; or end its stream."""
        assert client.transport is not None
        while not (self.closing.is_set() or client.transport.is_closing()):
            await client.write(b"")  # returns when there is room
            if client.transport.is_closing():
                break
            self.revive()
            if client.position == self.position:
                client.task = None
                self.fast[client.transport] = client
                return
            if client.position > self.position:  # it knows what the others are about to be told
                await asyncio.sleep(WINDOW)
            else:
                await self.tell(client, self.position)
        if not client.transport.is_closing():
            await client.finish()

    async def serve_alone(self, client: Client) -> None:
        """Serve a client whose transport is out of reach: behind another server, or by HTTP/1.0."""
        while not client.lease.is_set():
            try:
                async with asyncio.timeout(self.heartbeat):
                    await self.feed.wait(client.position, client.lease)
            except TimeoutError:
                await client.write(HEARTBEAT_BLOCK)
            else:
                await self.tell(client, self.feed.head)
        await client.finish()

    async def tell(self, client: Client, until: int) -> None:
        """Send one client what it does not know yet, as far as one round goes."""
        if client.position == until:
            return  # it was woken because the server is closing
        news: Batch | Gap
        try:
            news = self.read(client.position, until)
        except Gap as gap:
            news = gap
        await client.write(self.encoded(news))
        client.position = news.position  # last: who is called off while the client reads nothing has not been told
        if isinstance(news, Gap):
            self.traffic.resets += 1
        else:
            self.traffic.delivered += len(news.updates)


class EventStream(Response):
    """The response to GET /events.

    A class of its own, because sse-starlette's and Starlette's streaming responses pull each client's data out of an
    iterator of its own, and so have to wake a coroutine for every client and update. This one only opens the
    stream, hands it to the FanOut, and then waits for the client to leave.
    """

    media_type = "text/event-stream"

    def __init__(self, fan_out: FanOut, opening: Batch | Gap) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.fan_out, self.opening = fan_out, opening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one client until it leaves or the server closes."""
        fan_out, opening = self.fan_out, self.opening
        first = f"retry: {fan_out.retry}\n\n".encode()
        if isinstance(opening, Gap):
            first += reset_block(opening)
            fan_out.traffic.resets += 1
        else:
            first += update_blocks(opening)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        chunked = scope["http_version"] == "1.1"
        with fan_out.leases.begin() as lease:
            client = Client(scope.get(TRANSPORT) if chunked else None, send, opening.position, lease)
            await client.write(first)  # what others write to the transport comes after the headers
            fan_out.admit(client)
            try:
                while (await receive())["type"] != "http.disconnect":
                    pass
            finally:
                fan_out.dismiss(client)


def latest(batch: Batch) -> Batch:
    """The batch with the last update of each path only, in the order of the log."""
    last = {update.path: update.seq for update in batch.updates}
    if len(last) == len(batch.updates):
        return batch
    return Batch(tuple(u for u in batch.updates if last[u.path] == u.seq), batch.position, batch.cursor)


def _chunk(data: bytes) -> bytes:
    """A chunk of a chunked body (RFC 9112, section 7.1), as uvicorn would write it."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def start(coroutine: Coroutine[Any, Any, None], failed: Callable[[], None]) -> asyncio.Task[None]:
    """Run a task whose failure is logged, and breaks off what depends on it."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            log.error("a stream of events failed: %s", error, exc_info=error)
            failed()

    task = asyncio.create_task(coroutine)
    task.add_done_callback(ended)
    return task
