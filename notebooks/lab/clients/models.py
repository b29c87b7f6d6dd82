"""The client of each model: an attempt, which asks from the cursor and yields what it is answered, until it breaks."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping

import httpx

from lab.clients import answers
from lab.clients.answers import LONGEST_INTERVAL, Answer, BadAnswer, News, Renewed, Reset, Unavailable
from lab.clients.connections import MAX_MESSAGE, SILENCE, answer_to, ask, body_of, http_client, limits, open_socket
from lab.clients.event_stream import EventStreamParser  # not httpx-sse, which invents events and ignores id-only blocks
from lab.clients.follower import RETRY, Follower, Log, Retry, check_positive, now
from servers.feed import BATCH, BATCH_BYTES, HEARTBEAT


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
    check_positive(timeout=timeout, interval=interval)
    here = Follower(url, "/updates", cursor, retry, log)

    async def attempt() -> AsyncGenerator[Answer | Reset, None]:
        etag, due = "", now()
        async with http_client(timeout) as http:
            while True:
                with here.request():
                    known = {"If-None-Match": etag} if etag else {}
                    response, body = await ask(http, here.address(), headers=known)
                    answer = answers.of_pull(response, body, here.cursor)
                yield answer
                if isinstance(answer, Answer) and (len(answer.updates) >= BATCH or len(body) >= BATCH_BYTES):
                    continue  # a full batch: there is more
                etag = response.headers.get("ETag", "")
                pace = interval or answers.poll_interval(response.headers.get("X-Poll-Interval", ""))
                due = max(now(), due + pace)
                await asyncio.sleep(due - now())

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
    check_positive(timeout=timeout, wait=wait)
    here = Follower(url, "/updates", cursor, retry, log)

    async def attempt() -> AsyncGenerator[Answer | Reset, None]:
        async with http_client(timeout) as http:
            while True:
                asked, begun = here.cursor, now()
                hold = max(0.0, min(wait, here.left / 2))  # after a failure: so that the answer comes before giving up
                with here.request():
                    held = here.address(wait=f"{hold:g}")
                    response, body = await ask(http, held, timeout=limits(hold + timeout))
                    answer = answers.of_pull(response, body, here.cursor)
                yield answer
                if answer.cursor == asked:  # nothing new; and if it came at once (the server is closing), do not spin
                    await asyncio.sleep(begun + min(1.0, hold / 2) - now())

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
    check_positive(heartbeat=heartbeat)
    here = Follower(url, "/ws", cursor, retry, log)

    async def attempt() -> AsyncGenerator[Answer | Reset, None]:
        with here.request():
            async with open_socket(here.address(), heartbeat) as socket:
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
    check_positive(heartbeat=heartbeat)
    here = Follower(url, "/events", cursor, retry, log)

    async def attempt() -> AsyncGenerator[Answer | Reset, None]:
        asked = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
        if here.cursor is not None:
            asked["Last-Event-ID"] = here.cursor
        asked.update(headers or {})
        with here.request():
            async with (
                http_client(SILENCE * heartbeat) as http,
                answer_to(http, "GET", here.url, headers=asked) as response,
            ):
                if response.status_code == 204:
                    return
                await _check_stream(response)
                parser = EventStreamParser()
                async for chunk in response.aiter_raw():
                    for answer in _read(parser, chunk):
                        yield answer
                    if parser.reconnection_time is not None:
                        here.floor = min(parser.reconnection_time / 1000, LONGEST_INTERVAL)
                if parser.latest == "renew":
                    raise Renewed("the stream has lived its time", here.floor)
                raise Unavailable("the server ended the stream")

    return here.follow(attempt)


async def _check_stream(response: httpx.Response) -> None:
    """Raise a ClientError unless it is an event stream, as it was asked for."""
    if response.status_code != 200:
        raise answers.refusal(response.status_code, response.headers, await body_of(response, MAX_MESSAGE))
    answers.check_stream(response.headers.get("Content-Type", ""))
    answers.check_identity(response.headers)


def _read(parser: EventStreamParser, chunk: bytes) -> Iterator[Answer | Reset]:
    """What a chunk of a stream brings. Raises BadAnswer."""
    for event in parser.feed(chunk):
        if answer := answers.of_event(event):
            yield answer
    if parser.unfinished > MAX_MESSAGE:
        raise BadAnswer(f"an event of more than {MAX_MESSAGE} characters")
    yield Answer((), parser.last_event_id or None)  # a sign of life, and perhaps a block of only an id


MODELS: dict[str, Callable[..., AsyncGenerator[News, None]]] = {
    "short-polling": short_polling,
    "long-polling": long_polling,
    "websocket": websocket,
    "sse": sse,
}
