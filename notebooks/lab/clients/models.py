"""The client of each model, and what they share: an attempt, and who follows attempt after attempt."""

import argparse
import asyncio
import contextlib
import functools
import io
import math
import os
import random
import re
import ssl
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn, Protocol

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

from lab.clients import answers
from lab.clients.answers import (
    LONGEST_INTERVAL,
    Answer,
    BadAnswer,
    BadCursor,
    ClientError,
    GaveUp,
    News,
    Reset,
    Unavailable,
)
from lab.clients.event_stream import EventStreamParser  # not httpx-sse, which invents events and ignores id-only blocks
from servers.arguments import number
from servers.feed import BATCH, BATCH_BYTES, HEARTBEAT

SILENCE = 2.5  # heartbeats of silence after which a link is dead
CONNECT_LIMIT = 10.0  # seconds to open a connection, at most
MAX_MESSAGE = 2**26 + 2**16  # bytes of a WebSocket message: all that a feed keeps by default, and its envelope
PASSING = (Unavailable, httpx.RequestError, OSError)  # OSError: refused, reset, timed out, no such host

Attempt = Callable[[], AsyncGenerator[Answer | Reset, None]]


@dataclass(frozen=True, slots=True)
class Retry:
    """How long to pause after failure number n (from 0), and when to stop trying.

    The pause is what the server asks for (Retry-After, `retry:`) and, on top, a number of seconds drawn from
    [0, min(cap, base 2^n)]: "full jitter" (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015), so that
    clients that broke together do not come back together. `rng` draws; without one, the `random` module.
    """

    base: float = 1.0
    cap: float = 30.0
    give_up_after: float | None = None
    rng: random.Random | None = None

    def __post_init__(self) -> None:
        if not (self.base >= 0 and self.cap >= 0 and (self.give_up_after is None or self.give_up_after > 0)):
            raise ValueError(f"pauses are 0 s or more, and giving up takes more than 0 s, not {self}")

    def ceiling(self, failures: int) -> float:
        """The most that jitter adds after this many failures (s)."""
        return min(self.cap, self.base * 2.0 ** min(failures, 100))  # 2.0 ** 1024, hours later, is an OverflowError

    def jitter(self, failures: int) -> float:
        """What it adds (s)."""
        return (self.rng or random).uniform(0, self.ceiling(failures))


class Log(Protocol):
    """What counts requests; `lab.bench.experiment.ClientLog` is one."""

    def request(self) -> contextlib.AbstractContextManager[object]:
        """The context of one handshake, poll or reconnect, until its answer or its stream is over."""


RETRY = Retry()


def short_polling(
    url: str,
    cursor: str | None = None,
    *,
    interval: float | None = None,
    timeout: float = 10.0,
    retry: Retry = RETRY,
    log: Log | None = None,
) -> AsyncGenerator[News, None]:
    """Ask on a grid of `interval` seconds; without one, as often as the server's X-Poll-Interval says.

    `timeout` is the silence (s) after which a request has failed.
    """
    _check_positive(timeout=timeout, interval=interval)
    here = _Follower(url, "/updates", cursor, retry, log)

    async def attempt() -> AsyncGenerator[Answer | Reset, None]:
        etag, due = "", _now()
        async with http_client(timeout) as http:
            while True:
                with here.request():
                    response = await http.get(here.address(), headers={"If-None-Match": etag} if etag else {})
                    answer = answers.of_pull(response, here.cursor)
                yield answer
                if isinstance(answer, Answer) and (
                    len(answer.updates) >= BATCH or len(response.content) >= BATCH_BYTES
                ):
                    continue  # a full batch: there is more
                etag = response.headers.get("ETag", "")
                pace = interval or answers.poll_interval(response.headers.get("X-Poll-Interval", ""))
                due = max(_now(), due + pace)
                await asyncio.sleep(due - _now())

    return here.follow(attempt)


def long_polling(
    url: str,
    cursor: str | None = None,
    *,
    wait: float = 30.0,
    timeout: float = 10.0,
    retry: Retry = RETRY,
    log: Log | None = None,
) -> AsyncGenerator[News, None]:
    """Ask the server to hold each request until there is news, `wait` seconds at most, and ask again at once.

    `timeout` is the margin: a request has failed after `wait + timeout` seconds of silence.
    """
    _check_positive(timeout=timeout, wait=wait)
    here = _Follower(url, "/updates", cursor, retry, log)

    async def attempt() -> AsyncGenerator[Answer | Reset, None]:
        async with http_client(timeout) as http:
            while True:
                asked, begun = here.cursor, _now()
                hold = max(0.0, min(wait, here.left / 2))  # after a failure: so that the answer comes before giving up
                with here.request():
                    response = await http.get(here.address(wait=f"{hold:g}"), timeout=_limits(hold + timeout))
                    answer = answers.of_pull(response, here.cursor)
                yield answer
                if answer.cursor == asked:  # nothing new; and if it came at once (the server is closing), do not spin
                    await asyncio.sleep(begun + min(1.0, hold / 2) - _now())

    return here.follow(attempt)


def websocket(
    url: str,
    cursor: str | None = None,
    *,
    heartbeat: float = HEARTBEAT,
    retry: Retry = RETRY,
    log: Log | None = None,
) -> AsyncGenerator[News, None]:
    """Keep a WebSocket open; ping each `heartbeat` (s), and take 2.5 of them without a pong for a dead link.

    Pongs wait behind messages: a caller that takes none for so long is connected anew, and misses nothing.
    """
    _check_positive(heartbeat=heartbeat)
    here = _Follower(url, "/ws", cursor, retry, log)

    async def attempt() -> AsyncGenerator[Answer | Reset, None]:
        with here.request():
            async with _socket(here.address(), heartbeat) as socket:
                while True:
                    if answer := answers.of_message(await socket.recv()):
                        yield answer

    return here.follow(attempt)


def sse(
    url: str,
    cursor: str | None = None,
    *,
    heartbeat: float = HEARTBEAT,
    retry: Retry = RETRY,
    log: Log | None = None,
    headers: Mapping[str, str] | None = None,
) -> AsyncGenerator[News, None]:
    """Read an event stream; 2.5 `heartbeat`s (s) without a byte, comments included, are a dead link.

    It goes on where a browser's EventSource gives up: at 429 and 5xx. At 204, "stop", the iterator ends. `headers` go
    out with every request, such as Authorization.
    """
    _check_positive(heartbeat=heartbeat)
    here = _Follower(url, "/events", cursor, retry, log)

    async def attempt() -> AsyncGenerator[Answer | Reset, None]:
        asked = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Cache-Control": "no-cache"}
        if here.cursor is not None:
            asked["Last-Event-ID"] = here.cursor
        asked.update(headers or {})
        with here.request():
            async with (
                http_client(SILENCE * heartbeat) as http,
                http.stream("GET", here.url, headers=asked) as response,
            ):
                if response.status_code == 204:
                    return
                if response.status_code != 200:
                    raise answers.refusal(response.status_code, response.headers, await response.aread())
                answers.check_stream(response.headers.get("Content-Type", ""))
                parser = EventStreamParser()
                async for chunk in response.aiter_bytes():
                    for event in parser.feed(chunk):
                        if answer := answers.of_event(event):
                            yield answer
                    yield Answer((), parser.last_event_id or None)  # a sign of life, and perhaps a block of only an id
                    if parser.reconnection_time is not None:
                        here.floor = min(parser.reconnection_time / 1000, LONGEST_INTERVAL)
                raise Unavailable("the server ended the stream")

    return here.follow(attempt)


class _Follower:
    """What all models share: where a client stands in the log, and how it fails and recovers."""

    def __init__(self, url: str, path: str, cursor: str | None, retry: Retry, log: Log | None) -> None:
        if cursor is not None and not re.fullmatch("[!-~]*", cursor):
            raise BadCursor(f"a cursor is plain ASCII without spaces, not {cursor!r}")
        self.url = address_below(url, path)
        self.cursor = "0" if cursor == "" else cursor  # both are the oldest kept; only this one fits in a header
        self.retry, self.log = retry, log
        self.floor = 0.0  # the pause after a failure that the server has asked for (s)
        self.failures = self.failures_before = 0  # since the last answer; before it
        self.cause: BaseException | None = None
        self.deadline = math.inf  # loop time; finite while there has been no answer since a failure, or since the start

    @property
    def left(self) -> float:
        """Seconds until it gives up; infinite while all is well."""
        return self.deadline - _now()

    def address(self, **parameters: str) -> httpx.URL:
        """Where to ask for what is later than the cursor."""
        after = {} if self.cursor is None else {"after": self.cursor}
        return self.url.copy_merge_params(after | parameters)

    def request(self) -> contextlib.AbstractContextManager[object]:
        """The context of one request, counted."""
        return self.log.request() if self.log else contextlib.nullcontext()

    async def follow(self, attempt: Attempt) -> AsyncGenerator[News, None]:
        """Attempt after attempt until the server says stop, refuses, or has not answered for too long."""
        self.start_clock()
        while True:
            try:
                async with contextlib.aclosing(attempt()) as answers:
                    while (answer := await self.next(answers)) is not None:
                        for news in self.take(answer):
                            yield news
                return
            except PASSING as error:
                await self.pause(error)

    def start_clock(self) -> None:
        if self.retry.give_up_after is not None and self.deadline == math.inf:
            self.deadline = _now() + self.retry.give_up_after

    async def next(self, answers: AsyncGenerator[Answer | Reset, None]) -> Answer | Reset | None:
        """The next answer, None at the end. Raises GaveUp at the deadline, and what the attempt raises."""
        limit = asyncio.timeout_at(None if self.deadline == math.inf else self.deadline)
        try:
            async with limit:
                answer = await anext(answers)
        except StopAsyncIteration:
            return None
        except TimeoutError as error:
            if limit.expired():
                raise self.gave_up(error) from self.cause or error
            raise
        if self.failures:
            self.failures, self.failures_before = 0, self.failures
        self.deadline = math.inf
        return answer

    def take(self, answer: Answer | Reset) -> Iterator[News]:
        """What of an answer is news, and the cursor moved past it."""
        if isinstance(answer, Reset):
            self.cursor = answer.cursor
            yield answer
            return
        for update in answer.updates:
            if self.moves_to(update.cursor):
                yield update
        if answer.cursor is not None:
            self.moves_to(answer.cursor)

    def moves_to(self, cursor: str) -> bool:
        """Go forward to a cursor of the server's; say no, and stay, if it does not lie ahead."""
        epoch, seq = answers.split(cursor)
        if self.cursor not in (None, "0"):
            known_epoch, known_seq = answers.split(self.cursor)
            if epoch != known_epoch:
                raise BadAnswer(f"the log changed from {self.cursor} to {cursor} without a reset")
            if seq <= known_seq:
                return False
        self.cursor = cursor
        return True

    async def pause(self, error: Exception) -> None:
        """Wait until the next attempt may begin. Raises GaveUp when the time is over before that."""
        self.cause = error
        self.start_clock()
        asked, busy = (error.wait, error.busy) if isinstance(error, Unavailable) else (0.0, False)
        if busy:  # it let us in, and then out again: that was no recovery
            self.failures = max(self.failures, self.failures_before)
        pause = max(asked, self.floor) + self.retry.jitter(self.failures)
        self.failures += 1
        await asyncio.sleep(min(pause, self.left))
        if self.left <= 0:
            raise self.gave_up(error) from error

    def gave_up(self, error: BaseException) -> GaveUp:
        cause = named(self.cause or error)
        return GaveUp(f"no answer from {self.url} for {self.retry.give_up_after:g} s ({cause})")


def named(error: BaseException) -> str:
    """What kind of failure it was, and what it says."""
    if isinstance(error, httpx.ConnectError):  # says "All connection attempts failed"; the innermost cause says why
        while inner := error.__cause__ or error.__context__:
            error = inner
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _check_positive(**seconds: float | None) -> None:
    for name, value in seconds.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is a number of seconds above 0, not {value!r}")


def _now() -> float:
    return asyncio.get_running_loop().time()


def address_below(base: str, path: str) -> httpx.URL:
    """A server's URL with `path` below it. Raises ValueError for what cannot be one."""
    try:
        url = httpx.URL(base)
        url.host.encode("idna")  # as the resolver will
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ValueError(f"{base!r} is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65535:
        raise ValueError(f"a server's URL is http://HOST:PORT or https://HOST, not {base!r}")
    return url.copy_with(path=url.path.rstrip("/") + path)


@functools.cache
def tls() -> ssl.SSLContext:
    """One for all clients: each would otherwise build its own, 30 to 70 ms at a time."""
    return ssl.create_default_context()


def _limits(silence: float) -> httpx.Timeout:
    return httpx.Timeout(silence, connect=min(CONNECT_LIMIT, silence))


def http_client(silence: float) -> httpx.AsyncClient:
    """A client whose requests fail after `silence` seconds without a byte; httpx by itself says 5."""
    return httpx.AsyncClient(verify=tls(), trust_env=False, timeout=_limits(silence))


class _Connect(connect):
    def process_redirect(self, exc: Exception) -> Exception:
        """A redirect is a status like any other, as for httpx and for a browser's WebSocket: not followed."""
        return exc


@contextlib.asynccontextmanager
async def _socket(address: httpx.URL, heartbeat: float) -> AsyncGenerator[ClientConnection, None]:
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
        raise answers.refusal(answer.status_code, headers, bytes(answer.body or b"")) from error
    except InvalidMessage as error:  # cut before the answer, most often
        raise Unavailable(str(error)) from error
    except InvalidHandshake as error:
        raise BadAnswer(str(error)) from error
    except ConnectionClosed as error:
        raise answers.of_close(error) from error


MODELS: dict[str, Callable[..., AsyncGenerator[News, None]]] = {
    "short-polling": short_polling,
    "long-polling": long_polling,
    "websocket": websocket,
    "sse": sse,
}


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake gets one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)}\n")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    p = _Parser(prog="python -m lab.clients", description="Print the updates of a server as they arrive.")
    p.add_argument("model", choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    p.add_argument("url", metavar="URL", help="what the server printed: http://HOST:PORT")
    p.add_argument("--after", metavar="CURSOR", help="begin after this cursor; 0: with the oldest (default: now)")
    p.add_argument("--interval", type=number, metavar="S", help="of short polling (default: what the server asks)")
    p.add_argument("--give-up-after", type=number, default=10, metavar="S", help="without an answer (10)")
    options = p.parse_args(arguments)
    if options.interval and options.model != "short-polling":
        p.error("--interval is for short-polling")
    return options


async def _show(options: argparse.Namespace) -> None:
    pace = {"interval": options.interval} if options.interval else {}
    retry = Retry(give_up_after=options.give_up_after)
    stream = MODELS[options.model](options.url, options.after, retry=retry, **pace)
    async with contextlib.aclosing(stream):
        async for news in stream:
            print(_line(news), flush=True)


def _line(news: News) -> str:
    """A line of the command line: time, delay, number, change, path; nothing a terminal would obey."""
    now = time.time()
    if isinstance(news, Reset):
        what = f"reset ({news.reason}): list again; it goes on from {news.cursor}"
    else:
        what = f"{1000 * (now - news.published):9.1f} ms  #{news.seq}  {news.change:8}  {news.path}"
    return f"{datetime.fromtimestamp(now):%H:%M:%S.%f}"[:-3] + "  " + printable(what)


def printable(text: str) -> str:
    """The text, with escapes for what a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def main(arguments: list[str] | None = None) -> int:
    """Run until Ctrl-C or the stream's end; return the exit status."""
    options = _options(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have characters that this terminal has not
    try:
        asyncio.run(_show(options))
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # what read our lines has seen enough; the interpreter's last flush must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ClientError, ValueError) as error:
        print(f"python -m lab.clients: {printable(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
