"""The event stream parser against the WHATWG HTML Standard, sections 9.2.5 and 9.2.6."""

import time
from dataclasses import FrozenInstanceError
from itertools import pairwise

import httpx
import httpx_sse
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.clients.event_stream import Event, EventStreamParser

BOM = b"\xef\xbb\xbf"


def parse(*chunks: bytes) -> list[Event]:
    parser = EventStreamParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def message(data: str, last_event_id: str = "") -> Event:
    return Event("message", data, last_event_id)


def reference(stream: bytes) -> tuple[list[Event], str, int | None]:
    """The standard's steps, one by one, on a whole stream: events, last event ID, reconnection time."""
    text = stream.decode("utf-8", "replace")
    if text.startswith("\ufeff"):
        text = text[1:]
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    del lines[-1]  # not ended, or the nothing after the last end of line

    events: list[Event] = []
    last_event_id_string, reconnection_time = "", None
    data_buffer = event_type_buffer = last_event_id_buffer = ""
    for line in lines:
        if line == "":
            last_event_id_string = last_event_id_buffer
            if data_buffer != "":
                if data_buffer[-1] == "\n":
                    data_buffer = data_buffer[:-1]
                event_type = "message" if event_type_buffer == "" else event_type_buffer
                events.append(Event(event_type, data_buffer, last_event_id_string))
            data_buffer = event_type_buffer = ""
        elif line[0] == ":":
            continue
        else:
            if ":" in line:
                field, value = line[: line.index(":")], line[line.index(":") + 1 :]
                if value[:1] == " ":
                    value = value[1:]
            else:
                field, value = line, ""
            if field == "event":
                event_type_buffer = value
            elif field == "data":
                data_buffer = data_buffer + value + "\n"
            elif field == "id":
                if "\x00" not in value:
                    last_event_id_buffer = value
            elif field == "retry" and value != "" and all(c in "0123456789" for c in value) and len(value) <= 300:
                reconnection_time = int(value)
    return events, last_event_id_string, reconnection_time


# --- the standard's own examples ---


def test_the_stock_ticker_of_the_standard_is_one_event_of_three_lines() -> None:
    """Several data lines are one event, joined by newlines."""
    assert parse(b"data: YHOO\ndata: +2\ndata: 10\n\n") == [message("YHOO\n+2\n10")]


FOUR_BLOCKS = b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event"


def test_the_four_blocks_of_the_standard_give_two_events_until_the_last_block_is_ended() -> None:
    """A comment gives nothing, an empty id resets the id, the end of the stream does not dispatch the last block."""
    expected = [message("first event", "1"), message("second event")]
    assert parse(FOUR_BLOCKS) == parse(FOUR_BLOCKS + b"\n") == expected
    assert parse(FOUR_BLOCKS + b"\n\n") == [*expected, message(" third event")]


def test_the_empty_data_blocks_of_the_standard_give_an_empty_event_and_a_single_newline() -> None:
    """A data field without a value is still data; the unfinished third block is discarded."""
    assert parse(b"data\n\ndata\ndata\n\ndata:") == [message(""), message("\n")]


def test_the_two_identical_events_of_the_standard_ignore_the_space_after_the_colon() -> None:
    """The space after the colon is optional."""
    assert parse(b"data:test\n\ndata: test\n\n") == [message("test"), message("test")]


def test_the_typed_events_of_the_introduction_carry_their_types() -> None:
    """The event field names the type of its own block only (the example of section 9.2.1)."""
    stream = b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\nevent: add\ndata: 113411\n\ndata: x\n\n"
    assert parse(stream) == [
        Event("add", "73857293", ""),
        Event("remove", "2153", ""),
        Event("add", "113411", ""),
        message("x"),
    ]


# --- each rule ---


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"\n\r\n\r", [], id="blank lines dispatch nothing"),
        pytest.param(b"data: a\rdata: b\r\ndata: c\n\r\n", [message("a\nb\nc")], id="CR, CRLF and LF end a line"),
        pytest.param(b"data: a\n\rdata: b\n\n", [message("a"), message("b")], id="LF CR is two ends of line"),
        pytest.param(
            "data: a\u2028b\x0bc\x0cd\x85\n\n".encode(), [message("a\u2028b\x0bc\x0cd\x85")], id="no other ends"
        ),
        pytest.param(BOM + b"data: a\n\n", [message("a")], id="one leading BOM is stripped"),
        pytest.param(BOM + BOM + b"data: a\n\n", [], id="a second BOM belongs to the name of the field"),
        pytest.param(b"\n" + BOM + b"data: a\n\n", [], id="a BOM elsewhere too"),
        pytest.param(b"data: " + BOM + b"a\n\n", [message("\ufeffa")], id="a BOM in a value stays"),
        pytest.param(b":data: a\n: b\n:\n\n", [], id="a line that starts with a colon is a comment"),
        pytest.param(b"data: a\n: note\ndata: b\n\n", [message("a\nb")], id="a comment does not end a block"),
        pytest.param(b"data:\ta\n\ndata:  a \n\n", [message("\ta"), message(" a ")], id="one space is removed, no tab"),
        pytest.param(b"data: a:b: c\n\n", [message("a:b: c")], id="the first colon ends the name"),
        pytest.param(b"Data: a\n data: b\ndata : c\nfoo: d\nfoo\n\n", [], id="unknown fields are ignored"),
        pytest.param(b"event: a\nevent: b\ndata: x\n\n", [Event("b", "x", "")], id="the last event field counts"),
        pytest.param(b"event: a\nevent\ndata: x\n\n", [message("x")], id="an empty type is message"),
        pytest.param(b"event: a\n\ndata: x\n\n", [message("x")], id="a type without data dies with its block"),
        pytest.param(b"id: 1\n\ndata: x\n\n", [message("x", "1")], id="an id alone dispatches nothing but stays"),
        pytest.param(b"id: 1\ndata: x\n\ndata: y\n\n", [message("x", "1"), message("y", "1")], id="an id stays"),
        pytest.param(b"id: 1\nid: 2\0\ndata: x\n\n", [message("x", "1")], id="an id with NUL is ignored"),
        pytest.param(b"data: a\0b\nevent: c\0\n\n", [Event("c\0", "a\0b", "")], id="NUL elsewhere stays"),
        pytest.param(b"data: a\n\ndata: b\n", [message("a")], id="an unfinished block is discarded"),
        pytest.param("data: zażółć 🦉\n\n".encode(), [message("zażółć 🦉")], id="UTF-8"),
        pytest.param("data: ü\n\n".encode("latin-1"), [message("\ufffd")], id="always UTF-8, whatever was meant"),
    ],
)
def test_rule(stream: bytes, events: list[Event]) -> None:
    """Each rule of the standard holds in one piece, byte by byte, and in the reference."""
    assert parse(stream) == events
    assert parse(*(bytes([byte]) for byte in stream)) == events
    assert reference(stream)[0] == events


@pytest.mark.parametrize(
    ("malformed", "text"),
    [
        (b"\xc0\xaf", "\ufffd" * 2),  # overlong
        (b"\xe0\x80\xaf", "\ufffd" * 3),
        (b"\xed\xa0\x80", "\ufffd" * 3),  # a surrogate
        (b"\xf4\x90\x80\x80", "\ufffd" * 4),  # beyond U+10FFFF
        (b"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", "\ufffd" * 4 + "A"),  # the Unicode Standard's own, table 3-11
        (b"\xf0\x9f\xa6", "\ufffd"),  # cut short by the end of the line
    ],
)
def test_malformed_utf8_becomes_one_replacement_character_for_each_maximal_subpart(malformed: bytes, text: str) -> None:
    """Bytes that are not UTF-8 are replaced as the WHATWG Encoding Standard says, however they are cut."""
    stream = b"data: " + malformed + b"\n\n"
    assert parse(stream) == parse(*(bytes([byte]) for byte in stream)) == [message(text)]


@pytest.mark.parametrize("blank_line", [b"\n", b"\r", b"\r\n"])
def test_an_event_is_dispatched_by_the_first_byte_that_ends_its_blank_line(blank_line: bytes) -> None:
    """A CR dispatches at once, without waiting for an LF that may never come; the LF then adds nothing."""
    parser = EventStreamParser()
    assert parser.feed(b"data: a\r\n") == []
    assert parser.feed(blank_line[:1]) == [message("a")]
    assert parser.feed(blank_line[1:]) == []
    assert parser.feed(b"data: b\n\n") == [message("b")]


def test_a_crlf_cut_in_two_is_one_end_of_line_even_around_an_empty_chunk() -> None:
    """An LF that follows a CR over a chunk's edge is no blank line."""
    assert parse(b"data: a\r", b"", b"\ndata: b\r", b"\n\r", b"\n\ndata: c\n\n") == [message("a\nb"), message("c")]


def test_last_event_id_moves_at_the_blank_line_and_not_before() -> None:
    """A stream cut inside a block resumes after the last block that was whole."""
    parser = EventStreamParser()
    assert parser.last_event_id == ""
    parser.feed(b"id: 1\ndata: a\n")
    assert parser.last_event_id == ""
    parser.feed(b"\nid: 2\n\nid: 3\n")
    assert parser.last_event_id == "2"
    parser.feed(b"\nid\n\n")
    assert parser.last_event_id == ""


def test_a_parser_takes_over_the_last_event_id_of_the_stream_before() -> None:
    """A reconnected stream that sends no id of its own keeps the one the reconnect sent."""
    parser = EventStreamParser(last_event_id="7")
    assert parser.last_event_id == "7"
    assert parser.feed(b"data: a\n\nid\ndata: b\n\n") == [message("a", "7"), message("b")]
    assert parser.last_event_id == ""


@pytest.mark.parametrize(
    ("value", "milliseconds"),
    [
        (b"3000", 3000),
        (b"0", 0),
        (b"007", 7),
        (b"9" * 300, int("9" * 300)),
        (b"", None),
        (b"-1", None),
        (b"+1", None),
        (b"1.5", None),
        (b"1_000", None),
        (b" 1", None),
        (b"1 ", None),
        (b"1000 ms", None),
        ("٣".encode(), None),  # a digit, but not an ASCII digit
        ("²".encode(), None),
        (b"9" * 301, None),
        (b"9" * 5000, None),
    ],
)
def test_retry_takes_ascii_digits_only_and_at_once(value: bytes, milliseconds: int | None) -> None:
    """A retry of ASCII digits sets the reconnection time as soon as its line ends; any other value changes nothing."""
    parser = EventStreamParser()
    assert parser.reconnection_time is None
    assert parser.feed(b"retry: " + value + b"\n") == []
    assert parser.reconnection_time == milliseconds
    parser.feed(b"retry: 5\nretry: x\n\n")
    assert parser.reconnection_time == 5


def test_an_event_cannot_be_changed() -> None:
    """An Event is a value: frozen, without a dictionary of its own."""
    event = message("a")
    with pytest.raises(FrozenInstanceError):
        event.data = "b"  # type: ignore[misc]  # the point of the test
    assert not hasattr(event, "__dict__")


# --- any bytes, any chunking ---

names = st.sampled_from([b"data", b"data", b"event", b"id", b"retry", b"", b"x"])
separators = st.sampled_from([b":", b": ", b":  ", b""])
bits = [
    b"12",
    b"7",
    b" ",
    b"\0",
    "ü".encode(),
    "🦉".encode(),
    b"\xe2\x80\xa8",
    BOM,
    b"\xef",
    b"\xf0\x9f",
    b"\x80",
    b"\xff",
]
values = st.lists(st.sampled_from(bits) | st.binary(max_size=2), max_size=2).map(b"".join)
ends = st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b"\n\r", b"\r\r\n"])
lines = st.tuples(names, separators, values, ends).map(b"".join)
streams = st.tuples(st.sampled_from([b"", BOM, BOM[:2]]), st.lists(lines, max_size=12), values).map(
    lambda parts: b"".join([parts[0], *parts[1], parts[2]])
)


@settings(max_examples=500, deadline=None)
@given(streams | st.binary(max_size=60), st.sets(st.integers(1, 150)) | st.just(set(range(1, 300))))
def test_after_every_chunk_the_parser_knows_all_that_the_reference_knows(stream: bytes, cuts: set[int]) -> None:
    """Any bytes in any chunking give, chunk after chunk, what the naive reference gives for the bytes so far."""
    parser, events = EventStreamParser(), []
    for start, end in pairwise(sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})):
        events += parser.feed(stream[start:end])
        assert (events, parser.last_event_id, parser.reconnection_time) == reference(stream[:end])


# --- cost ---


def seconds_for_one_line(length: int, chunk_size: int) -> float:
    """The CPU time of this thread for one line of `length` bytes: the shortest of three runs."""
    stream = b"data:" + b"x" * length + b"\n\n"
    chunks = [stream[i : i + chunk_size] for i in range(0, len(stream), chunk_size)]
    times = []
    for _ in range(3):
        start = time.thread_time()
        (event,) = parse(*chunks)
        times.append(time.thread_time() - start)
        assert len(event.data) == length
    return min(times)


@pytest.mark.parametrize(("length", "chunk_size"), [(640_000, 4), (10_000_000, 4096)])
def test_a_long_line_costs_linear_time(length: int, chunk_size: int) -> None:
    """A line 16 times as long takes about 16 times as long (quadratic: 256), so the factor stays under 64."""
    assert seconds_for_one_line(length, chunk_size) < 64 * seconds_for_one_line(length // 16, chunk_size)


# --- contrast ---


@pytest.mark.skipif(httpx_sse.__version__ != "0.4.3", reason="describes the deviations of httpx-sse 0.4.3")
@pytest.mark.parametrize(
    ("stream", "theirs", "ours"),
    [
        pytest.param(b"id: 1\ndata: a\n\n: ping\n\n", ["a", ""], ["a"], id="a comment after an id becomes an event"),
        pytest.param(b"retry: 5\n\n", [""], [], id="a retry becomes an event"),
        pytest.param(BOM + b"data: a\n\n", [], ["a"], id="a BOM hides the first field"),
    ],
)
def test_httpx_sse_differs_from_the_standard(stream: bytes, theirs: list[str], ours: list[str]) -> None:
    """httpx-sse 0.4.3 dispatches phantom events and keeps a BOM; this parser and the standard do not."""
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=stream)
    assert [event.data for event in httpx_sse.EventSource(response).iter_sse()] == theirs
    assert [event.data for event in parse(stream)] == ours == [event.data for event in reference(stream)[0]]


def test_unfinished_is_what_no_blank_line_has_ended() -> None:
    """The unfinished line and the data before it count, comments and other fields do not; an event ends the count."""
    parser = EventStreamParser()
    for chunk, kept in [
        (b"da", 2), (b"ta: abc", 9), (b"\n", 11), (b"data\n", 19), (b": comment\nid: 7\n", 19), (b"da", 21),
        (b"ta: x\n\n", 0), (b": comment", 9), (b"\n", 0), (b"\r\n\r\n", 0), (b"data: y\n\ndata: z\n\nda", 2),
    ]:  # fmt: skip
        parser.feed(chunk)
        assert parser.unfinished == kept, chunk


@given(st.binary(max_size=200), st.integers(1, 7))
@settings(deadline=None)
def test_unfinished_does_not_depend_on_the_cuts(data: bytes, step: int) -> None:
    """Whatever the stream, the count is that of one feed of all of it."""
    whole, cut = EventStreamParser(), EventStreamParser()
    whole.feed(data)
    for start in range(0, len(data), step):
        cut.feed(data[start : start + step])
    assert cut.unfinished == whole.unfinished
