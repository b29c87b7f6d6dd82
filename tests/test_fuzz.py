"""Whatever comes over a socket: no 500, no hang, nothing left behind, and not a line in the server's log.

hypothesis ─▶ bytes, heads, frames ─▶ a real socket ─▶ every server       schemathesis ─▶ each OpenAPI document
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok

from servers.__main__ import build, parser
from servers.background import Server, serve
from tests.support import Raw, frame, http, tasks_of, until

LIMIT = 10.0  # seconds until an answer that does not come is a hang
EXAMPLES = settings(
    max_examples=25,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
SERVERS = ("short-polling", "short-polling --fast", "long-polling", "long-polling --fast", "websocket",
           "websocket --fast", "sse", "sse --fast", "file-updates", "demo")  # fmt: skip
ENDPOINTS = ("/", "/healthz", "/metrics", "/docs", "/openapi.json", "/updates", "/events", "/ws", "/files", "/files/a",
             "/bundle", "/state", "/controls", "/connections", "/leave", "/pages/page.js", "/sse/events")  # fmt: skip


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Server]:
    """Each server in turn; when it has been asked all, it holds nothing, and has said nothing."""
    (tmp_path / "a").write_text("hello")
    model, *options = request.param.split()
    options += ["--watch", str(tmp_path)] if model == "file-updates" else ["--rate", "5"]
    app = build(parser().parse_args([model, *options]))
    with serve(app, quiet=False) as server:
        tasks, descriptors = asyncio.run(settled(server))
        yield server
        asyncio.run(left_behind(server, tasks, descriptors))
        assert server.errors == []
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []


async def settled(server: Server) -> tuple[list[str], int]:
    """Once it is well: its tasks, and how many descriptors there are."""
    async with http(server) as client:
        while (await client.get("/healthz")).status_code != 200:  # noqa: ASYNC110  # it says it by that only
            await asyncio.sleep(0.05)
    await until(lambda: not server._uvicorn.server_state.connections)
    return tasks_of(server), open_descriptors()


async def left_behind(server: Server, tasks: list[str], descriptors: int) -> None:
    """Return once there is nothing that was not there before."""
    await until(lambda: not server._uvicorn.server_state.connections)
    traffics = [lane.app.traffic for lane in getattr(server.app, "lanes", {}).values()] or [server.app.traffic]  # type: ignore[attr-defined]
    await until(lambda: all(traffic.held == 0 for traffic in traffics))
    await until(lambda: server.app.doors.held == server.app.doors.spare == 0)  # type: ignore[attr-defined]
    await until(lambda: not {*tasks_of(server)} - {*tasks} - {"FanOut.run", "SocketFanOut.run", "HeldPolls.run"})
    await until(lambda: open_descriptors() <= descriptors)


def open_descriptors() -> int:
    """How many descriptors this process has; where that cannot be told, 0."""
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0  # noqa: PTH208


def tell(server: Server, *pieces: bytes) -> bytes:
    """Send, end the sending, and read what comes for a moment, or to the end; never an error of the server's."""
    answer = b""
    with Raw(server) as client:
        try:
            for piece in pieces:
                client.send(piece)
            client.socket.shutdown(socket.SHUT_WR)
            client.socket.settimeout(0.05)
            while more := client.socket.recv(65536):
                answer += more
        except (TimeoutError, ConnectionError, BrokenPipeError, OSError):
            pass  # a stream, a held poll; or it hung up
    assert b"HTTP/1.1 500" not in answer
    return answer


def alive(server: Server) -> None:
    """It answers others."""
    with Raw(server) as client:
        client.socket.settimeout(LIMIT)
        client.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.socket.recv(100).startswith(b"HTTP/1.1 200")


words = st.text(st.characters(max_codepoint=0x17F, exclude_characters="\r\n"), max_size=30).map(
    lambda text: text.encode(errors="replace")
)
values = st.one_of(words, st.sampled_from([b"", b"0", b"-1", b"chunked", b"close", b"upgrade", b"h2c",
                   b"100-continue", b"bytes=0-", b"bytes=-1", b"*", b'"e-0"', b"text/plain", b"e-0"]))  # fmt: skip
names = st.one_of(words, st.sampled_from([b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Upgrade",
                  b"Expect", b"Range", b"If-Range", b"If-None-Match", b"If-Match", b"Last-Event-ID", b"Origin",
                  b"Authorization", b"Content-Type", b"Sec-WebSocket-Key", b"Sec-WebSocket-Version"]))  # fmt: skip
queries = st.one_of(st.just(b""), st.builds(lambda name, value: b"?" + name + b"=" + value,
                    st.sampled_from([b"after", b"wait", b"viewer"]), values))  # fmt: skip
methods = st.sampled_from([b"GET", b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"X"])
heads = st.builds(
    lambda method, path, query, fields, body: (
        b"%b %b%b HTTP/1.1\r\nHost: x\r\n%b\r\n%b"
        % (method, path, query, b"".join(b"%b: %b\r\n" % field for field in fields), body)
    ),
    methods,
    st.sampled_from([path.encode() for path in ENDPOINTS]),
    queries,
    st.lists(st.tuples(names, values), max_size=4),
    st.one_of(st.just(b""), words, st.just(b'{"paths": [1]}'), st.binary(max_size=50)),
)


def test_any_bytes_and_any_head_are_answered_or_hung_up_on(server: Server) -> None:
    """Raw bytes, heads of any fields at each endpoint, and pieces of them leave the server as it was."""

    @EXAMPLES
    @given(st.one_of(st.binary(max_size=300), heads, st.builds(lambda a, b: a + b, heads, heads)), st.integers(0, 300))
    def send(data: bytes, cut: int) -> None:
        tell(server, data[:cut], data[cut:])

    send()
    alive(server)


@pytest.mark.parametrize("server", ["websocket", "websocket --fast"], indirect=True)
def test_any_frames_are_obeyed_or_end_their_connection(server: Server) -> None:
    """Frames of any opcode, flags, length and content, whole or cut, leave the server as it was."""
    filters = st.recursive(st.none() | st.integers() | st.text(max_size=9), lambda inner: st.lists(inner, max_size=3))
    texts = st.one_of(
        st.binary(max_size=200),
        filters.map(lambda value: repr(value).encode(errors="replace")),
        st.just(b'{"type": "filter", "id": 1, "paths": ["a"]}'),
        st.just(b'{"type": "filter", "id": 1e400, "paths": []}'),
        st.just(b"[" * 50_000),
    )
    good = st.builds(frame, texts, st.integers(0, 15))
    bent = st.builds(lambda data, at, bit: bytes([*data[:at], data[at] ^ 1 << bit, *data[at + 1 :]]) if at < len(data)
                     else data, good, st.integers(0, 9), st.integers(0, 7))  # fmt: skip

    @EXAMPLES
    @given(st.lists(st.one_of(good, bent, st.binary(max_size=40)), max_size=4))
    def send(frames: list[bytes]) -> None:
        tell(server, Raw.HANDSHAKE, *frames)

    send()
    alive(server)


def test_what_each_document_describes_is_what_is_answered(server: Server) -> None:
    """Requests made from the server's own OpenAPI document, valid ones and others, get no 500 and no silence."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    events = {"/events", "/sse/events"}  # streams: their answers have no end, and the first test asks for them
    for operation in schema.get_all_operations():
        assert isinstance(operation, Ok)
        found = operation.ok()
        if found.path in events:
            continue

        @EXAMPLES
        @given(case=found.as_strategy())
        def ask(case: Any) -> None:
            if "wait" in (case.query or {}):
                case.query["wait"] = 0 if isinstance(case.query["wait"], int | float) else case.query["wait"]
            answer = case.call(timeout=LIMIT, headers={"Connection": "close"})
            case.validate_response(answer, checks=[not_a_server_error])

        ask()
    alive(server)
