"""httptools for a Python without compiled modules: the part that uvicorn and the course ask for, by h11's parser.

Handed what a client sends, it calls back as httptools does: on_message_begin, on_url, on_header, on_headers_complete,
on_body, on_message_complete. What a callback raises comes out as HttpParserCallbackError, with it as its context.
"""

from typing import Any, NamedTuple
from urllib.parse import urlsplit

import h11


class HttpParserError(Exception):
    """The base of what goes wrong."""


class HttpParserCallbackError(HttpParserError):
    """A callback raised."""


class HttpParserInvalidURLError(HttpParserError):
    """This is no URL."""


class HttpParserUpgrade(Exception):
    """The message asked for another protocol; the bytes behind it are that protocol's."""


class URL(NamedTuple):
    """The parts of a request's target, as bytes."""

    path: bytes
    query: bytes | None


def parse_url(url: bytes) -> URL:
    """Split a request's target. Raises HttpParserInvalidURLError."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise HttpParserInvalidURLError(str(error)) from None
    return URL(parts.path, parts.query or None)


class HttpRequestParser:
    """Parses requests, one after the other, and calls `protocol` back."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self._begin(b"")

    def _begin(self, early: bytes) -> None:
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=2**17)
        self._request: h11.Request | None = None
        if early:
            self._connection.receive_data(early)

    def get_method(self) -> bytes:
        """The method of the request, or of the one before."""
        return self._last.method

    def get_http_version(self) -> str:
        """ "1.1" or "1.0"."""
        return self._last.http_version.decode()

    def should_keep_alive(self) -> bool:
        """Whether the connection lasts beyond the answer (RFC 9112, section 9.3)."""
        tokens = self._tokens(b"connection")
        return b"close" not in tokens and (self.get_http_version() == "1.1" or b"keep-alive" in tokens)

    def should_upgrade(self) -> bool:
        """Whether it asks for another protocol."""
        asks = b"upgrade" in self._tokens(b"connection") and bool(self._tokens(b"upgrade"))
        return asks or self.get_method() == b"CONNECT"

    def _tokens(self, name: bytes) -> set[bytes]:
        lines = (value for key, value in self._last.headers if key == name)
        return {token.strip().lower() for line in lines for token in line.split(b",")}

    def set_dangerous_leniencies(self, **_: bool) -> None:
        """There are none."""

    def feed_data(self, data: bytes) -> None:
        """Take more of what was sent. Raises HttpParserError; HttpParserUpgrade behind a message that asks for one."""
        self._connection.receive_data(data)
        try:
            while self._step():
                pass
        except h11.ProtocolError as error:
            raise HttpParserError(str(error)) from None

    def _step(self) -> bool:
        event = self._connection.next_event()
        if event is h11.NEED_DATA:
            return False
        if event is h11.PAUSED:  # behind a message whose answer h11 waits for; it is not h11 that answers
            early, _ = self._connection.trailing_data
            self._begin(bytes(early))
            return bool(early)
        if isinstance(event, h11.Request):
            self._last = self._request = event
            self._call("on_message_begin")
            self._call("on_url", event.target)
            for name, value in event.headers.raw_items():
                self._call("on_header", name, value)
            self._call("on_headers_complete")
        elif isinstance(event, h11.Data):
            self._call("on_body", bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            upgrade = self.should_upgrade()
            self._call("on_message_complete")
            if upgrade:
                raise HttpParserUpgrade
        elif isinstance(event, h11.ConnectionClosed):
            return False
        return True

    def _call(self, name: str, *arguments: Any) -> None:
        callback = getattr(self.protocol, name, None)
        if callback is None:
            return
        try:
            callback(*arguments)
        except Exception as error:
            raise HttpParserCallbackError(f"{name} failed") from error
