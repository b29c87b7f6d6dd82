"""What stands between a client and a server without being asked: a real nginx where there is one, else an imitation.

    with intermediary(server.url, "proxy_read_timeout 2s;") as between:     # between.url, between.name

The directives are nginx's. The imitation is a relay of a few lines that knows a few of them, and what TLS does to a
stream (it does not speak TLS), so that a notebook shows the same thing on a machine without nginx; which of the two it
was is in `name`.
"""

import asyncio
import contextlib
import itertools
import math
import re
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from lab.proxies import nginx

BUFFER = 64 * 1024  # bytes that the imitation collects before it lets go of them
LAST_CHUNK = b"\r\n0\r\n\r\n"  # the end of a body (RFC 9112, section 7.1); the connection stays open for the next one
BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
IDLE = 60.0  # seconds, proxy_read_timeout's default
LIMIT = 10.0  # seconds for its thread to start or to end
KNOWN = re.compile(
    r"proxy_read_timeout (?P<idle>[0-9.]+)s|(?P<gzip>gzip on)|gzip_types text/event-stream"
    r"|(?P<direct>proxy_buffering off)|(?P<deaf>proxy_ignore_headers X-Accel-Buffering)"
    r"|(?P<chunks>proxy_http_version 1\.1)|proxy_http_version 1\.0"
    r"|proxy_set_header (?:Upgrade \$http_upgrade|Connection upgrade)"  # a relay of bytes does so by itself
)


@dataclass(frozen=True)
class Between:
    """An intermediary that runs: where clients ask, and which program it is ("nginx/1.22.1", "imitation")."""

    url: str
    name: str
    verify: ssl.SSLContext | bool = False  # httpx's option of that name; over plain HTTP there is nothing to verify


@contextlib.contextmanager
def intermediary(target: str, directives: str = "", *, tls: bool = False, imitate: bool = False) -> Iterator[Between]:
    """A reverse proxy before the server at `target` (its URL) while the block runs.

    `directives` stand in nginx's `location` block. With `tls` clients reach it by https, with a certificate that
    `verify` trusts and nothing else does. Without nginx, or with `imitate`, a relay does what the directives say; it
    raises ValueError for one that it does not know.
    """
    if nginx.installed() and not imitate:
        location = f"location / {{ proxy_pass {target}; {directives} }}"
        if not tls:
            with nginx.Nginx(location) as server:
                yield Between(server.url, nginx.version())
            return
        files = nginx.certificate()
        lines = f"ssl_certificate cert.pem; ssl_certificate_key key.pem; {location}"
        with nginx.Nginx(lines, options="ssl", files=files) as server:
            trust = ssl.create_default_context(cadata=files["cert.pem"].decode())
            yield Between(server.url, nginx.version(), trust)
    else:
        with _relay(_Imitation(target, directives, tls)) as port:
            yield Between(f"http://127.0.0.1:{port}", "imitation")


@contextlib.contextmanager
def balancer(urls: Sequence[str], *, imitate: bool = False) -> Iterator[Between]:
    """A proxy before several servers, which hands each connection to the next of them, round robin.

    A real nginx where there is one, which passes over a server that is gone; else, or with `imitate`, a relay that
    answers 502 for it.
    """
    if nginx.installed() and not imitate:
        with nginx.balancer(urls) as server:
            yield Between(server.url, nginx.version())
    else:
        with _relay(_Dealer(urls)) as port:
            yield Between(f"http://127.0.0.1:{port}", "imitation")


class _Dealer:
    """Relays each connection to the next server."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.turn = itertools.cycle([_Imitation(url, "proxy_buffering off", False) for url in urls])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection."""
        await next(self.turn).serve(reader, writer)


class _Imitation:
    """What of nginx matters to a stream: it ends one that is silent for too long; a compressor, and TLS, collect.

    So does it all by itself where it asks the server by HTTP/1.0, its default before 1.29.7, and the imitation's: a
    stream has no chunks there.
    """

    def __init__(self, target: str, directives: str, tls: bool) -> None:
        self.target, self.tls = urlsplit(target), tls
        self.idle, self.gzip, self.direct, self.deaf, self.chunks = IDLE, False, False, False, False
        for directive in filter(None, map(str.strip, directives.split(";"))):
            known = KNOWN.fullmatch(directive)
            if not known:
                raise ValueError(f"the imitation of nginx does not know {directive!r}")
            self.idle = float(known["idle"] or self.idle)
            self.gzip |= bool(known["gzip"])
            self.direct |= bool(known["direct"])
            self.deaf |= bool(known["deaf"])
            self.chunks |= bool(known["chunks"])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection until one of its ends, or the relay itself, goes."""
        # asyncio of Python 3.11 takes a handler that was cancelled for a fault, and prints its traceback
        with contextlib.suppress(asyncio.CancelledError, ConnectionError), contextlib.closing(writer):
            await self.relay(reader, writer)

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what the client sends at once, what the server sends as the directives say."""
        try:
            from_server, to_server = await asyncio.open_connection(self.target.hostname, self.target.port)
        except OSError:
            if await reader.read(BUFFER):  # a connection that closes with something unread loses what it was sent
                writer.write(BAD_GATEWAY)
            return
        upward = asyncio.create_task(_copy(reader, to_server))
        downward = asyncio.create_task(self.answer(from_server, writer))
        with contextlib.closing(to_server):
            try:
                await asyncio.wait({upward, downward}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                upward.cancel()
                downward.cancel()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay what the server sends, until it ends or is silent for too long."""
        held = head = b""
        with contextlib.suppress(TimeoutError, OSError):
            while True:
                async with asyncio.timeout(self.idle):
                    data = await reader.read(BUFFER)
                head = head if b"\r\n\r\n" in head else head + data
                held += data
                if not data or held.endswith(LAST_CHUNK) or len(held) >= BUFFER or not self.collects(head):
                    writer.write(held)
                    await writer.drain()
                    held = b""
                if not data:
                    return

    def collects(self, head: bytes) -> bool:
        """Whether bytes wait for more of them; a server asks for the contrary in a header."""
        asked = re.search(rb"x-accel-buffering: *no\r", head, re.IGNORECASE) and not self.deaf
        endless = not self.chunks and b"content-length:" not in head.lower()
        return (self.gzip or self.tls or endless) and not self.direct and not asked


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(BUFFER):
            writer.write(data)
            await writer.drain()


@contextlib.contextmanager
def _relay(imitation: _Imitation | _Dealer) -> Iterator[int]:
    """Run it in a thread; give the port where it listens."""
    port = math.nan
    started = threading.Event()
    loop, stop = asyncio.SelectorEventLoop(), asyncio.Event()

    async def work() -> None:
        nonlocal port
        server = await asyncio.start_server(imitation.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        started.set()
        await stop.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    thread = threading.Thread(target=loop.run_until_complete, args=[work()], name="imitation of nginx", daemon=True)
    thread.start()
    try:
        if not started.wait(LIMIT):
            raise RuntimeError(f"the relay did not start within {LIMIT:g} s")
        yield int(port)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(LIMIT)
        loop.close()
