"""Parse `text/event-stream`, the format of Server-Sent Events, exactly as the WHATWG HTML Standard says (section 9.2).

    chunks of bytes ──decode──▶ text ──split──▶ lines ──interpret──▶ Events

A network cuts a stream anywhere: inside a character, between CR and LF, in the middle of a field. Each step therefore
keeps what it cannot use yet, and the events that come out do not depend on where the cuts were. An event is returned
by the very `feed` that completes its blank line; a block that the stream leaves unfinished is never returned.
"""

import codecs
import re
from dataclasses import dataclass

END_OF_LINE = re.compile("\r\n|\r|\n")  # not str.splitlines(), which also splits at U+2028, form feed and others
RETRY = re.compile("[0-9]{1,300}")  # the standard sets no limit, but a float ends at 10^308 and int() at 4300 digits


@dataclass(frozen=True, slots=True)
class Event:
    """One dispatched event: its type ("message" unless named), its data, and the last id seen up to its blank line."""

    type: str
    data: str
    last_event_id: str


class EventStreamParser:
    """The parser of one stream, that is, of the body of one response.

    `last_event_id` is what a reconnect sends in `Last-Event-ID`; the parser of the next stream starts with it.
    `reconnection_time` is the delay before a reconnect in milliseconds, None until the stream sends a valid `retry`.
    `latest` is the type of the last event, "" before the first. `unfinished` is how much it keeps (characters) of what
    no blank line has ended yet: the standard sets no limit.
    """

    def __init__(self, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        self.reconnection_time: int | None = None
        self.latest = ""
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")  # strips one byte order mark
        self._after_cr = False
        self._unfinished_line: list[str] = []  # pieces, joined once: a long line costs linear time
        self._line_size = self._data_size = 0
        self._type, self._id = "", last_event_id
        self._data: list[str] = []

    @property
    def unfinished(self) -> int:
        """Characters kept of the unfinished line and of the data before it, and 8 for each line of data."""
        return self._line_size + self._data_size

    def feed(self, chunk: bytes) -> list[Event]:
        """Take the next bytes of the stream and return the events they complete ("Parsing an event stream", 9.2.5)."""
        text = self._decoder.decode(chunk)
        if not text:
            return []
        if self._after_cr:  # that CR has ended its line already; an LF now is the second half of a CRLF
            text = text.removeprefix("\n")
        self._after_cr = text.endswith("\r")
        events = []
        rest, *following = END_OF_LINE.split(text)
        self._unfinished_line.append(rest)
        self._line_size += len(rest)
        for start in following:
            event = self._interpret("".join(self._unfinished_line))
            self._unfinished_line, self._line_size = [start], len(start)
            if event:
                events.append(event)
        return events

    def _interpret(self, line: str) -> Event | None:
        """Take one line; a blank one dispatches ("Interpreting an event stream", 9.2.6)."""
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")  # a comment starts with the colon: its name is empty and matches no field
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._type = value
            case "data":
                self._data.append(value)
                self._data_size += len(value) + 8  # what a list takes for an element, though it be empty
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if RETRY.fullmatch(value):
                self.reconnection_time = int(value)
        return None

    def _dispatch(self) -> Event | None:
        self.last_event_id = self._id
        event = Event(self._type or "message", "\n".join(self._data), self._id) if self._data else None
        self._type, self._data, self._data_size = "", [], 0
        self.latest = event.type if event else self.latest
        return event
