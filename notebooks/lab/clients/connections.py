"""How a client reaches a server: its addresses, one TLS context for all, and limits on what it takes in.

    URL ─▶ address_below ─▶ http_client ─▶ ask ─────▶ an answer, of so many bytes at most
                       └──▶ open_socket ────────────▶ a WebSocket, of messages of so many bytes at most

Bodies are asked for as they are (Accept-Encoding: identity) and refused otherwise: 3 MiB of a compressed body can be
3 GiB of memory. A redirect is a status like any other, followed by nobody: what a server is trusted with, a token in a
header above all, goes to no other. An answer has the time that a silence has: for its head, whatever comes before that
(RFC 9110, section 15.2), and again for each LEAST bytes a second of its body, whatever comes between them.
"""

import asyncio
import contextlib
import functools
import ssl
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

from lab.clients.answers import BadAnswer, Unavailable, check_identity, of_close, refusal

SILENCE = 2.5  # heartbeats of silence after which a link is dead
CONNECT_LIMIT = 10.0  # seconds to open a connection, at most
MAX_MESSAGE = 2**26 + 2**16  # bytes of an answer, event or message: all that a feed keeps by default, and its envelope
MAX_REASON = 2**16  # bytes read of an answer that says why it is none
LEAST = 1000  # bytes a second, on average; what comes more slowly never ends


def address_below(base: str, path: str) -> httpx.URL:
    """A server's URL with `path` below it; its query stays, its fragment is nobody's. Raises ValueError for no URL."""
    try:
        url = httpx.URL(base)
        url.host.encode("idna")  # as the resolver will
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ValueError(f"{base!r} is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65535:
        raise ValueError(f"a server's URL is http://HOST:PORT or https://HOST, not {base!r}")
    return below(url.copy_with(fragment=None), path)


def below(url: httpx.URL, path: str) -> httpx.URL:
    """The URL with a path below its own, percent-encoded already; its query stays."""
    above = url.raw_path.partition(b"?")[0].decode().rstrip("/")
    return url.copy_with(path=above + path)


@functools.cache
def tls() -> ssl.SSLContext:
    """One for all clients: each would otherwise build its own, 30 to 70 ms at a time."""
    return ssl.create_default_context()


def limits(silence: float) -> httpx.Timeout:
    """Of an HTTP request: `silence` seconds without a byte, and less for a connection."""
    return httpx.Timeout(silence, connect=min(CONNECT_LIMIT, silence))


def http_client(silence: float) -> httpx.AsyncClient:
    """A client whose requests fail after `silence` seconds without a byte; httpx by itself says 5."""
    plain = {"Accept-Encoding": "identity"}
    return httpx.AsyncClient(verify=tls(), trust_env=False, timeout=limits(silence), headers=plain)


@contextlib.asynccontextmanager
async def answer_to(
    http: httpx.AsyncClient, method: str, url: httpx.URL, **asked: Any
) -> AsyncGenerator[httpx.Response, None]:
    """The answer to a request, once its head is there; what is `asked` is httpx's. Raises httpx's errors."""
    within = _silence(asked.get("timeout") or http.timeout)
    async with contextlib.AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(within):
                response = await stack.enter_async_context(http.stream(method, url, **asked))
        except TimeoutError:
            raise httpx.ReadTimeout(f"no answer in {within:g} s") from None
        yield response


async def pieces_of(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The body as it comes; waiting for a piece of it counts, what is done with it does not. Raises httpx's errors."""
    window = response.request.extensions["timeout"]["read"]
    body, left, size = response.aiter_raw(), window, 0
    while True:
        begin = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(left):
                piece = await anext(body, None)
        except TimeoutError:
            raise httpx.ReadTimeout(f"{size} bytes in {window:g} s") from None
        if piece is None:
            return
        left, size = left - (asyncio.get_running_loop().time() - begin), size + len(piece)
        if size >= LEAST * window:
            left, size = window, 0
        yield piece


def _silence(timeout: httpx.Timeout) -> float | None:
    """How long (s) an answer may take that says nothing, its connection included."""
    return None if timeout.read is None else timeout.read + (timeout.connect or 0.0)


async def ask(
    http: httpx.AsyncClient,
    url: httpx.URL,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: httpx.Timeout | None = None,
    most: int | None = None,
) -> tuple[httpx.Response, bytes]:
    """GET an answer and its body, `most` bytes of it (MAX_MESSAGE). Raises as `body_of` does, and httpx's errors."""
    async with answer_to(http, "GET", url, headers=headers, timeout=timeout or http.timeout) as response:
        return response, await body_of(response, MAX_MESSAGE if most is None else most)


async def body_of(response: httpx.Response, most: int) -> bytes:
    """The whole body of a 200 or a 410, of another answer as much as can say why.

    Raises BadAnswer when it is longer than `most` bytes, or encoded, and httpx's errors.
    """
    promised = response.status_code in (200, 410)
    if promised:
        check_identity(response.headers)
    limit, body = most if promised else MAX_REASON, bytearray()
    async for chunk in pieces_of(response):
        body += chunk
        if len(body) > limit:
            if promised:
                raise BadAnswer(f"an answer of more than {limit} bytes")
            break
    return bytes(body)


class _Connect(connect):
    def process_redirect(self, exc: Exception) -> Exception:
        """A redirect is a status like any other, as for httpx and for a browser's WebSocket: not followed."""
        return exc


@contextlib.asynccontextmanager
async def open_socket(address: httpx.URL, heartbeat: float) -> AsyncGenerator[ClientConnection, None]:
    """An open WebSocket, whose every end comes out as a ClientError or an OSError, and which does not linger.

    A ping goes out each heartbeat after the last pong; a link that dies right after a pong is noticed a
    heartbeat, the wait for the pong and the wait for the closing handshake later: 2.5 heartbeats together.
    """
    linger = min(1.0, heartbeat / 10)
    secure = address.scheme == "https"
    try:
        socket = await _Connect(
            str(address.copy_with(scheme="wss" if secure else "ws")),
            ssl=tls() if secure else None,
            proxy=None,
            compression=None,
            max_size=MAX_MESSAGE,
            open_timeout=min(CONNECT_LIMIT, SILENCE * heartbeat),
            ping_interval=heartbeat,
            ping_timeout=(SILENCE - 1) * heartbeat - linger,
            close_timeout=linger,
        )
        try:
            yield socket
        finally:
            try:
                await socket.close()
            finally:
                socket.transport.abort()  # nothing, if it is closed; the end, if even the closing was cancelled
    except InvalidStatus as error:
        answer = error.response
        headers = dict(answer.headers.raw_items())
        raise refusal(answer.status_code, headers, bytes(answer.body or b"")) from error
    except InvalidMessage as error:  # cut before the answer, most often
        raise Unavailable(str(error)) from error
    except InvalidHandshake as error:
        raise BadAnswer(str(error)) from error
    except ConnectionClosed as error:
        raise of_close(error) from error
