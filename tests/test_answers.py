"""Tests of lab.clients.answers: what each status, header, body, event, message and close code means."""

import json
import math
import time
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close

from lab.clients import answers
from lab.clients.answers import (
    Answer,
    BadAnswer,
    BadClose,
    BadCursor,
    BadStatus,
    ClientError,
    GaveUp,
    Refused,
    Renewed,
    Reset,
    Unavailable,
    Update,
)
from lab.clients.event_stream import Event

UPDATE: dict[str, Any] = {
    "seq": 7,
    "path": "a/b.txt",
    "change": "added",
    "size": 3,
    "sha256": "ab",
    "published": 1.5,
}
RESET = {"reason": "expired", "cursor": "e-9", "oldest": "e-4"}


def pull(status: int, body: object = b"", **headers: str) -> Answer | Reset:
    """The meaning of a poll's response; a body that is not bytes goes as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return answers.of_pull(httpx.Response(status, headers=headers), content, "e-1")


# What the server says


def test_updates() -> None:
    """Updates become Updates, each with the cursor after it; the answer has the cursor after them all."""
    body = {"updates": [UPDATE, UPDATE | {"seq": 8, "content": "AGhp"}], "cursor": "e-9"}
    first, second = Update(7, "a/b.txt", "added", 3, "ab", 1.5, None, "e-7"), pull(200, body)
    assert isinstance(second, Answer)
    assert second == Answer((first, Update(8, "a/b.txt", "added", 3, "ab", 1.5, b"\0hi", "e-8")), "e-9")
    assert answers.of_message(json.dumps({"type": "updates"} | body)) == second
    assert answers.of_event(Event("update", json.dumps(UPDATE), "e-7")) == Answer((first,), "e-7")


def test_nothing_new() -> None:
    """An empty answer moves the cursor, 304 leaves it, a hello sets it."""
    assert pull(200, {"updates": [], "cursor": "e-2"}) == Answer((), "e-2")
    assert pull(304) == Answer((), "e-1")
    assert answers.of_message('{"type": "hello", "cursor": "e-0"}') == Answer((), "e-0")


def test_gaps() -> None:
    """410, `event: reset` and {"type": "reset"} are the same Reset."""
    expected = Reset("expired", "e-9", "e-4")
    assert pull(410, RESET) == expected
    assert answers.of_event(Event("reset", json.dumps(RESET), "e-9")) == expected
    assert answers.of_message(json.dumps({"type": "reset"} | RESET)) == expected


def test_deleted() -> None:
    """A deleted file has no size and no hash."""
    gone = UPDATE | {"change": "deleted", "size": None, "sha256": None}
    [update] = pull(200, {"updates": [gone], "cursor": "e-7"}).updates  # type: ignore[union-attr]  # fails for a Reset
    assert (update.change, update.size, update.sha256) == ("deleted", None, None)


def test_what_is_not_known() -> None:
    """Events and messages of kinds that a later server may add are None."""
    assert answers.of_event(Event("message", "x", "")) is None
    assert answers.of_message('{"type": "weather"}') is None
    assert answers.of_message("[1]") is None


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"",
        b"\xff",
        b"[" * 100_000,
        b"9" * 5000,
        [],
        {},
        {"updates": [], "cursor": 7},
        {"updates": [], "cursor": "7"},
        {"updates": [], "cursor": "e-x"},
        {"updates": [], "cursor": "e-" + "9" * 20},
        {"updates": {}, "cursor": "e-1"},
        {"updates": [{}], "cursor": "e-1"},
        {"updates": [7], "cursor": "e-1"},
        {"updates": [UPDATE | {"change": "renamed"}], "cursor": "e-1"},
        {"updates": [UPDATE | {"path": None}], "cursor": "e-1"},
        {"updates": [UPDATE | {"seq": "7"}], "cursor": "e-1"},
        {"updates": [UPDATE | {"content": "?"}], "cursor": "e-1"},
        {"updates": [UPDATE | {"content": "é"}], "cursor": "e-1"},
        {"updates": [UPDATE | {"content": 7}], "cursor": "e-1"},
    ],
)
def test_other_content(body: object) -> None:
    """A complete 200 whose content is not the model's is BadAnswer."""
    with pytest.raises(BadAnswer):
        pull(200, body)


@pytest.mark.parametrize("body", [b"gone", {}, RESET | {"reason": "tired"}, RESET | {"cursor": "e"}])
def test_other_gap(body: object) -> None:
    """A 410 that is not this contract's is BadAnswer."""
    with pytest.raises(BadAnswer):
        pull(410, body)


@pytest.mark.parametrize("kind", ["text/event-stream", "Text/Event-Stream; charset=utf-8", "text/event-stream ;x=y"])
def test_event_stream(kind: str) -> None:
    """The type of a stream is compared without case and parameters."""
    answers.check_stream(kind)


@pytest.mark.parametrize("kind", ["text/html", "application/json", "", "text/event-streams", "text/plain"])
def test_other_content_type(kind: str) -> None:
    """A 200 that is not an event stream is not one later: BadAnswer."""
    with pytest.raises(BadAnswer, match="text/event-stream"):
        answers.check_stream(kind)


# Why there is none


@pytest.mark.parametrize("status", [408, 425, 429, 500, 501, 502, 503, 504, 599])
def test_statuses_that_pass(status: int) -> None:
    """5xx and the 4xx that say "again" are Unavailable, with the pause that Retry-After asks for."""
    with pytest.raises(Unavailable, match=f"answered {status}$") as caught:
        pull(status, **{"retry-after": "17"})
    assert caught.value.wait == 17


@pytest.mark.parametrize("status", [201, 204, 206, 301, 307, 400, 401, 403, 404, 405, 412, 422, 499])
def test_statuses_that_stay(status: int) -> None:
    """Any other status is BadStatus, with what the server says about it."""
    with pytest.raises(BadStatus, match=f"answered {status}$"):
        pull(status, b"<html>")
    if status != 400:
        with pytest.raises(BadStatus, match=f"answered {status}: because$"):
            pull(status, {"detail": "because"})


def test_bad_cursor() -> None:
    """A 400 that the service explains is BadCursor; one of something in between is not."""
    with pytest.raises(BadCursor, match=r"answered 400: ahead of this log$"):
        pull(400, {"detail": "ahead of this log"})


def test_long_detail() -> None:
    """A server cannot fill the terminal with its reason."""
    assert len(str(answers.refusal(500, {}, b'{"detail": "%b"}' % (b"x" * 10_000)))) < 300


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", 0),
        ("0", 0),
        ("120", 120),
        ("3601", 3600),
        ("9" * 300, 3600),
        ("9" * 5000, 0),
        ("-5", 0),
        ("1.5", 0),
        ("soon", 0),
        ("²", 0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
        ("Sun, 06 Nov 2994 08:49:37 GMT", 3600),
        ("Mon, 99 Foo 2999 99:99:99 GMT", 0),
        ("Mon, 01 Jan 99999999999 00:00:00 GMT", 0),
    ],
)
def test_retry_after(value: str, seconds: float) -> None:
    """Retry-After asks for an hour at most, and for nothing when it is past or neither digits nor a date."""
    assert answers.retry_after(value) == seconds


@pytest.mark.parametrize("text", ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"])
def test_retry_after_dates(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three formats of an HTTP-date are read, in GMT wherever the client is (RFC 9110, section 5.6.7)."""
    now = time.time()
    date = time.strftime(text, time.gmtime(now + 100))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert 90 < answers.retry_after(date) <= 100
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), ("0.25", 0.25), ("1e9", 3600), ("inf", 3600), ("0", 5), ("-1", 5), ("nan", 5), ("x", 5), ("", 5)],
)
def test_poll_interval(value: str, seconds: float) -> None:
    """X-Poll-Interval is a number above 0, an hour at most; otherwise the interval is 5 s."""
    assert answers.poll_interval(value) == seconds


@pytest.mark.parametrize(
    ("code", "meaning"),
    [(code, Unavailable) for code in (1000, 1001, 1005, 1006, 1011, 1013, 1014, 3000, 4000)]
    + [(1012, Renewed)]
    + [(code, BadClose) for code in (1002, 1003, 1007, 1008, 1009, 1010)],
)
def test_close_codes(code: int, meaning: type[ClientError]) -> None:
    """A close for what was sent would come again; 1012 is the end of a lease; all others pass."""
    for received in (True, False):  # the server's code, or what this side found wrong
        close = Close(code, "because")
        error = answers.of_close(ConnectionClosedError(close if received else None, None if received else close))
        assert type(error) is meaning
        assert f"{code} " in str(error)


def test_no_close_frame() -> None:
    """A connection that ends without a close frame passes."""
    assert type(answers.of_close(ConnectionClosedError(None, None))) is Unavailable


def test_the_servers_close_code_counts() -> None:
    """When both sides sent a close frame, the server's says why."""
    error = ConnectionClosedError(Close(1008, "rules"), Close(1000, ""), rcvd_then_sent=True)
    assert type(answers.of_close(error)) is BadClose


def test_exceptions_form_a_hierarchy() -> None:
    """ClientError is above all; what would come again is Refused."""
    tree = {error.__name__: error.__mro__[1] for error in (GaveUp, Unavailable, Refused, ClientError)}
    assert tree == dict.fromkeys(("GaveUp", "Unavailable", "Refused"), ClientError) | {"ClientError": Exception}
    assert all(error.__mro__[1] is Refused for error in (BadCursor, BadStatus, BadAnswer, BadClose))


@pytest.mark.parametrize(
    "cursor", ["e", "-1", "e-", "e-x", "e\r\nX: y-1", "é-1", "e e-1", "e" * 256 + "-1", "e-" + "1" * 19]
)
def test_a_cursor_is_short_plain_ascii(cursor: str) -> None:
    """It goes back in a URL or a header, and into every line of a mirror's state: what does not fit is BadAnswer."""
    with pytest.raises(BadAnswer, match="not a cursor"):
        pull(200, {"updates": [], "cursor": cursor})
    with pytest.raises(BadAnswer, match="not a cursor"):
        pull(410, RESET | {"cursor": cursor})


@pytest.mark.parametrize(("number", "meaning"), [(7, 7), (7.0, 7)])
def test_a_number_is_read_however_it_is_written(number: float, meaning: int) -> None:
    """JSON has one kind of number: a whole one may come with a point, a time without."""
    (update,) = updates_of({"seq": number, "size": number, "published": number})
    assert (update.seq, update.size, update.published, update.cursor) == (meaning, meaning, meaning, f"e-{meaning}")
    assert [type(value) for value in (update.seq, update.size, update.published)] == [int, int, float]


@pytest.mark.parametrize("field", ["seq", "size"])
@pytest.mark.parametrize("number", [1.5, True, math.nan, math.inf, "1", [1]])
def test_a_whole_number_is_one(field: str, number: object) -> None:
    """A part of an update, or of a byte, there is none: BadAnswer."""
    with pytest.raises(BadAnswer):
        updates_of({field: number})


def test_a_time_that_no_clock_shows() -> None:
    """An integer beyond all floats is BadAnswer, not an OverflowError."""
    with pytest.raises(BadAnswer, match="too large"):
        updates_of({"published": 10**400})


def updates_of(fields: dict[str, object]) -> tuple[Update, ...]:
    """The updates of a poll whose only one has these fields."""
    known = {"seq": 1, "path": "a", "change": "added", "size": 1, "sha256": "0", "published": 1.5}
    answer = pull(200, {"updates": [known | fields], "cursor": "e-9"})
    assert isinstance(answer, Answer)
    return answer.updates
