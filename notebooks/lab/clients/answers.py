"""What a server's answer means: the updates in it, the gap it reports, or why there is none.

    a pull's response        ─▶ of_pull ────┐
    an event of a stream     ─▶ of_event ───┼─▶ Answer (updates, cursor) | Reset | a ClientError, raised
    a WebSocket's message    ─▶ of_message ─┘

    another HTTP status, a close code ─▶ refusal, of_close ─▶ a ClientError: Unavailable (try again) | Refused

Nothing here waits or remembers: `lab.clients` asks, and keeps the cursor.
"""

import base64
import contextlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import httpx
from websockets.exceptions import ConnectionClosed

from lab.clients.event_stream import Event
from servers.feed import Change, Reason

TRY_AGAIN = (408, 425, 429)  # the 4xx that say so (RFC 9110, section 15.5.9; RFC 8470; RFC 6585)
PERMANENT_CLOSES = (1002, 1003, 1007, 1008, 1009, 1010)  # RFC 6455, section 7.4.1
RENEW = 1012  # IANA, WebSocket Close Code Number Registry
CURSOR = re.compile("([!-~]+)-([0-9]{1,18})")
LONGEST_CURSOR = 256  # characters; it goes out in a URL or a header, and is kept in every line of a mirror's state
LATEST = 2.0**34  # s; of the Unix times that file systems hold: ext4 ends in the year 2446, XFS in 2486
POLL_INTERVAL = 5.0  # seconds, when the server does not say
LONGEST_INTERVAL = 3600.0  # seconds; a slip in a server's header must not switch a client off for years


class ClientError(Exception):
    """What can end an iterator."""


class GaveUp(ClientError):
    """The server has not answered for `Retry.give_up_after` seconds."""


class Unavailable(ClientError):
    """A failure that may pass. `wait` is the pause the server asks for (s)."""

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.wait = wait


class Renewed(Unavailable):
    """No failure: the stream has lived its time, and the server wants its client back, `wait` seconds from now."""


class Refused(ClientError):
    """A failure that would come again."""


class BadCursor(Refused):
    """The server never handed out this cursor, or it lies in the future of its log."""


class BadStatus(Refused):
    """An HTTP status that is not of the model."""


class BadAnswer(Refused):
    """Content that is not of the model: its type, its JSON, or cursors that jump without a reset."""


class BadClose(Refused):
    """A close code that names a fault in what was sent."""


@dataclass(frozen=True, slots=True)
class Update:
    """One change of one file. `size` in bytes, `published` in Unix time (s), `cursor` what resumes after it.

    `mtime`, when the file itself was changed (Unix time, s), and whether its owner may run it: None when not said.
    """

    seq: int
    path: str
    change: Change
    size: int | None
    sha256: str | None
    published: float
    content: bytes | None
    cursor: str
    mtime: float | None = None
    executable: bool | None = None


@dataclass(frozen=True, slots=True)
class Reset:
    """Some updates are gone for this client ("expired"), or all it knew ("epoch"); it goes on from `cursor`."""

    reason: Reason
    cursor: str
    oldest: str


News = Update | Reset


class Answer(NamedTuple):
    """What an attempt got: updates, perhaps none, and the cursor after them (None: the server has not said yet)."""

    updates: tuple[Update, ...]
    cursor: str | None


def of_pull(response: httpx.Response, body: bytes, cursor: str | None) -> Answer | Reset:
    """What a poll from `cursor` was answered. Raises a ClientError for what is neither updates nor a gap."""
    match response.status_code:
        case 200:
            return _answer(parsed(body))
        case 304:
            return Answer((), cursor)
        case 410:
            return _reset(parsed(body))
        case status:
            raise refusal(status, response.headers, body)


def of_event(event: Event) -> Answer | Reset | None:
    """What an event of a stream says; None when it is of a type this client does not know."""
    match event.type:
        case "update":
            return _answer({"updates": [parsed(event.data)], "cursor": event.last_event_id})
        case "reset":
            return _reset(parsed(event.data))
    return None


def of_message(text: str | bytes) -> Answer | Reset | None:
    """What a WebSocket's message says; None when it is of a type this client does not know."""
    match message := parsed(text):
        case {"type": "hello", "cursor": str(cursor)}:
            return Answer((), cursor)
        case {"type": "updates"}:
            return _answer(message)
        case {"type": "reset"}:
            return _reset(message)
    return None


def of_close(closed: ConnectionClosed) -> ClientError:
    """What a WebSocket's close code means (RFC 6455, section 7.4): whether to come back, and how soon."""
    close = closed.rcvd or closed.sent  # sent: what this side found wrong; neither (1006): the link broke
    code = close.code if close else 1006
    if code in PERMANENT_CLOSES:
        return BadClose(str(closed))
    return Renewed(str(closed)) if code == RENEW else Unavailable(str(closed))


def check_stream(content_type: str) -> None:
    """Raise BadAnswer unless a 200 is an event stream (WHATWG HTML, section 9.2.2, "process response")."""
    if content_type.partition(";")[0].strip().lower() != "text/event-stream":
        raise BadAnswer(f"an event stream is text/event-stream, not {content_type!r}")


def check_identity(headers: Mapping[str, str]) -> None:
    """Raise BadAnswer for a body that is encoded (RFC 9110, section 8.4): what it takes in memory has no limit."""
    if (coding := headers.get("Content-Encoding", "identity")) != "identity":
        raise BadAnswer(f"asked for as it is, but the answer is encoded ({coding[:64]!r})")


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> ClientError:
    """What an HTTP status means that is not of the model."""
    try:
        detail = str(json.loads(body)["detail"])
    except (ValueError, TypeError, LookupError, RecursionError):
        detail = ""
    text = f"the server answered {status}{': ' if detail else ''}{detail[:200]}"
    if status >= 500 or status in TRY_AGAIN:
        return Unavailable(text, wait=retry_after(httpx.Headers(headers).get("Retry-After", "")))
    return BadCursor(text) if status == 400 and detail else BadStatus(text)


def retry_after(value: str) -> float:
    """Seconds from now, an hour at most, of a Retry-After header: digits or a date (RFC 9110, 10.2.3); else 0."""
    if re.fullmatch("[0-9]{1,300}", value):  # int() ends at 4300 digits, float() at 10^308
        return min(float(value), LONGEST_INTERVAL)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return 0.0
    seconds = date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time()
    return min(max(0.0, seconds), LONGEST_INTERVAL)


def poll_interval(value: str) -> float:
    """Seconds, of an X-Poll-Interval header; 5 when it is absent or makes no sense."""
    with contextlib.suppress(ValueError):
        if float(value) > 0:  # not NaN
            return min(float(value), LONGEST_INTERVAL)
    return POLL_INTERVAL


def parsed(text: str | bytes) -> Any:
    """What JSON says. Raises BadAnswer."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"not JSON: {error}") from None


def _answer(body: Any) -> Answer:
    """{"updates": [...], "cursor": C} as an Answer."""
    match body:
        case {"updates": list(updates), "cursor": str(cursor)}:
            epoch, _ = split(cursor)
            return Answer(tuple(_update(update, epoch) for update in updates), cursor)
    raise BadAnswer('an answer has "updates" and "cursor"')


def _update(fields: Any, epoch: str) -> Update:
    match fields:
        case {
            "seq": int() | float() as seq,
            "path": str(path),
            "change": "added" | "modified" | "deleted" as change,
            "size": int() | float() | None as size,
            "sha256": str() | None as sha256,
            "published": int() | float() as published,
        }:
            number, content = whole(seq), _content(fields.get("content"))
            size = None if size is None else whole(size)
            said = moment(fields.get("mtime")), flag(fields.get("executable"))
            return Update(number, path, change, size, sha256, _real(published), content, f"{epoch}-{number}", *said)
    raise BadAnswer("an update lacks a field, or has one of another type")


def whole(number: float) -> int:
    """A number of JSON that is to be a whole one, however it is written. Raises BadAnswer."""
    if isinstance(number, bool) or not (isinstance(number, int) or number.is_integer()):
        raise BadAnswer(f"not a whole number: {str(number)[:64]}")
    return int(number)


def moment(value: Any) -> float | None:
    """A Unix time (s) that a file can have; None for anything else."""
    possible = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LATEST
    return float(value) if possible else None


def flag(value: Any) -> bool | None:
    """True or false; None for anything else."""
    return value if isinstance(value, bool) else None


def _real(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        raise BadAnswer("a number that is too large") from None


def _content(text: Any) -> bytes | None:
    try:
        return None if text is None else base64.b64decode(text, validate=True)
    except (ValueError, TypeError):
        raise BadAnswer("the content of an update is not base64") from None


def _reset(body: Any) -> Reset:
    match body:
        case {"reason": "expired" | "epoch" as reason, "cursor": str(cursor), "oldest": str(oldest)}:
            split(cursor)
            return Reset(reason, cursor, oldest)
    raise BadAnswer('a reset has "reason", "cursor" and "oldest"')


def split(cursor: str) -> tuple[str, int]:
    """Epoch and number of a cursor of the server's, "<epoch>-<number>"."""
    match = CURSOR.fullmatch(cursor) if len(cursor) <= LONGEST_CURSOR else None
    if match is None:
        raise BadAnswer(f"not a cursor: {cursor[:64]!r}")
    return match[1], int(match[2])
