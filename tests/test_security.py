"""What a server and its pages do against those who mean harm; SECURITY.md names the test of each threat."""

import asyncio
import contextlib
import logging
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from servers import file_updates, on_uvicorn, short_polling
from servers.__main__ import build, parser
from servers.background import Server, serve
from servers.feed import Feed
from servers.guard import Doors, is_local, name_in
from servers.service import Service
from servers.tree import Tree
from tests.support import Raw, command, ended, events, http, on_a_loop, unsent, until, url_of
from tests.support_browser import FLAGS

ROOT = Path(__file__).parent.parent
TOKEN = "a-token-of-many-characters"
POINTER = re.compile(r"`(test_\w+)\.py::(test_\w+)`")
PATHS = {
    "short-polling": "/updates?after=e-0",
    "long-polling": "/updates?after=e-0&wait=0",
    "websocket": "/ws",
    "sse": "/events",
    "file-updates": "/files",
    "demo": "/state",
}


def made(model: str, *options: str) -> Service:
    """The application that the command line makes, without news of its own."""
    return build(parser().parse_args([model, "--rate", "0", *options]))


def head(path: str, *fields: str, method: str = "GET") -> bytes:
    """A request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", *fields, "", ""]).encode("latin-1")


async def answer(server: Server, request: bytes) -> bytes:
    """The head of what the server answers, or nothing."""
    with Raw(server) as client:
        client.send(request)
        return (await client.read_until(b"\r\n\r\n")).partition(b"\r\n\r\n")[0]


def status(answer: bytes) -> int:
    """The status of an answer."""
    return int(answer.split(b" ", 2)[1]) if answer else 0


# --- the document ---


def test_every_threat_names_a_test_that_exists() -> None:
    """Each line of the list points to one test at least, and each pointer leads to a test."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| Threat", "|--"))]
    assert len(lines) > 30
    for line in lines:
        pointers = POINTER.findall(line)
        assert pointers, f"no test: {line}"
        for file, name in pointers:
            source = (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
            assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), f"{file}.py has no {name}"


# --- names: DNS rebinding ---


@pytest.mark.parametrize(
    ("host", "name", "local"),
    [
        ("127.0.0.1:8000", "127.0.0.1", True),
        ("[::1]:8000", "::1", True),
        ("[::1]", "::1", True),
        ("LOCALHOST.", "localhost", True),
        ("x.localhost:80", "x.localhost", True),
        ("server:8888", "server", True),
        ("", "", True),
        ("evil.example:8000", "evil.example", False),
        ("127.0.0.1.evil.example", "127.0.0.1.evil.example", False),
        ("127.0.0.1:80@evil.example", "127.0.0.1:80@evil.example", False),
        ("0x7f.1", "0x7f.1", False),
    ],
)
def test_a_name_is_local_if_no_page_from_elsewhere_can_have_it(host: str, name: str, local: bool) -> None:
    """Addresses, localhost and names without a dot are; a name that only looks like an address is not."""
    assert (name_in(host), is_local(name_in(host))) == (name, local)


@pytest.mark.parametrize("fast", [False, True], ids=["readable", "fast"])
@pytest.mark.parametrize("model", PATHS)
@on_a_loop
async def test_a_page_whose_name_was_led_here_is_refused(model: str, fast: bool) -> None:
    """Over loopback a foreign name is 421, whatever is asked for; a browser's page that came by TLS may pass."""
    options = ["--fast"] if fast and model not in ("file-updates", "demo") else []
    with serve(made(model, *options)) as server:
        for path in (PATHS[model], "/", "/healthz", "/metrics"):
            assert status(await answer(server, head(path, "Host: evil.example:8000"))) == 421
        evil = ("Host: evil.example", "Origin: http://evil.example")
        assert status(await answer(server, head(PATHS[model], *evil))) == 421
        upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                   "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")  # fmt: skip
        assert status(await answer(server, head("/ws", *evil, *upgrade))) == 421
        for fields in (
            ("Host: localhost:1",),
            ("Host: [::1]",),
            ("Host: hub.example", "Sec-Fetch-Site: same-origin"),
            ("Host: hub.example", "Origin: https://hub.example"),
        ):
            assert status(await answer(server, head("/healthz", *fields))) == 200


@on_a_loop
async def test_names_that_are_allowed_are_the_only_ones() -> None:
    """With --allow-host that name passes, and no other but addresses and localhost, whatever a browser says."""
    app = made("sse", "--allow-host", "Files.Example")
    with serve(app) as server:
        for host, expected in (("files.example:80", 200), ("127.0.0.1", 200), ("other.example", 421)):
            given = head("/healthz", f"Host: {host}", "Sec-Fetch-Site: none")
            assert status(await answer(server, given)) == expected
    doors = Doors()
    assert doors.knows([(b"host", b"files.example")], "192.0.2.1")  # names lead there from outside
    assert not doors.knows([(b"host", b"files.example")], "::ffff:127.0.0.1")
    doors.own = "Files.Example"
    doors.harmless.clear()
    assert doors.knows([(b"host", b"files.example")], "127.0.0.1")


@pytest.fixture
def chromium() -> Iterator[Any]:
    """A Chromium for which rebound.example is this machine."""
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("needs a browser")
    with sync_playwright() as playwright:
        arguments = [*FLAGS.split(), "--host-resolver-rules=MAP rebound.example 127.0.0.1"]
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


def test_in_a_real_browser_a_rebound_name_reads_nothing(chromium: Any) -> None:
    """Chromium, whose resolver leads a foreign name here, gets 421 under it, and the page under localhost."""
    with serve(made("file-updates")) as server:
        page = chromium.new_page()
        assert page.goto(f"http://rebound.example:{server.port}/files").status == 421
        assert page.evaluate("fetch('/files').then((answer) => answer.status)") == 421
        socket_state = """new Promise((resolve) => {
            const socket = new WebSocket(`ws://${location.host}/ws`);
            socket.onopen = () => resolve("open");
            socket.onerror = () => resolve("refused");
        })"""
        assert page.evaluate(socket_state) == "refused"
        assert page.goto(f"http://localhost:{server.port}/files").status == 200
        page.close()


# --- numbers: connections ---


@pytest.mark.parametrize("model", ["short-polling", "long-polling", "sse", "websocket", "demo"])
@pytest.mark.parametrize("fast", [False, True], ids=["readable", "fast"])
@on_a_loop
async def test_every_server_has_a_most_of_connections(model: str, fast: bool) -> None:
    """One more is 503 with Retry-After, health is told all the same, and whoever leaves makes room."""
    options = ["--fast"] if fast and model != "demo" else []
    app = made(model, "--max-connections", "2", *options)
    with serve(app) as server:
        held = [Raw(server) for _ in range(2)]
        await until(lambda: app.doors.held == 2)
        refusal = await answer(server, head(PATHS[model], "Host: x"))
        assert status(refusal) == 503
        assert b"retry-after: 5" in refusal
        assert status(await answer(server, head("/healthz", "Host: x"))) == 200
        held[0].reset()
        await until(lambda: app.doors.held == 1)
        assert status(await answer(server, head("/", "Host: x"))) == 200
        held[1].reset()
        await until(lambda: app.doors.held == app.doors.spare == 0 and not app.doors.inside)


@on_a_loop
async def test_one_address_cannot_take_all_connections() -> None:
    """--max-per-address counts by the connection's own address, whatever a header says, a WebSocket's too."""
    app = made("websocket", "--max-per-address", "2")
    with serve(app) as server:
        forged = head("/", "Host: x", "X-Forwarded-For: 192.0.2.9", "Forwarded: for=192.0.2.9")
        with Raw(server) as first, Raw(server) as second:
            first.send(Raw.HANDSHAKE)
            assert status(await first.read_until(b"\r\n\r\n")) == 101
            await until(lambda: app.doors.held == 2)
            assert status(await answer(server, forged)) == 503
            with socket.create_connection(("127.0.0.1", server.port), source_address=("127.0.0.2", 0)) as other:
                other.sendall(head("/", "Host: x"))
                assert (await asyncio.to_thread(other.recv, 100)).startswith(b"HTTP/1.1 200")
            assert second
        await until(lambda: app.doors.held == 0 and not app.doors.inside)


@on_a_loop
async def test_who_has_no_room_and_says_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit a silent connection lasts a moment, and of very many some are not heard at all."""
    monkeypatch.setattr(on_uvicorn, "SHORTEST", 0.2)
    monkeypatch.setattr(on_uvicorn, "SPARE", 3)
    app = made("sse", "--max-connections", "1")
    with serve(app) as server, contextlib.ExitStack() as clients:
        first = clients.enter_context(Raw(server))
        await until(lambda: app.doors.held == 1)
        silent = [clients.enter_context(Raw(server)) for _ in range(10)]
        for client in silent:
            with contextlib.suppress(ConnectionResetError):
                assert await client.read_all() == b""
        await until(lambda: app.doors.spare == 0)
        first.send(head("/", "Host: x", "Connection: close"))
        assert status(await first.read_all()) == 200


# --- time: who reads nothing, who sends slowly ---


@pytest.mark.parametrize("model", ["sse", "sse --fast", "file-updates"])
@on_a_loop
async def test_who_reads_nothing_is_cut_off_in_time(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream whose client reads none of what waits for it ends after UNREAD seconds; one that is read goes on."""
    monkeypatch.setattr(on_uvicorn, "UNREAD", 3.0)
    app = made(*model.split())
    with serve(app) as server, Raw(server) as deaf:
        deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.send(head("/events", "Host: x"))
        async with events(server) as stream:
            await until(lambda: app.traffic.held == 2)
            written = 0
            while not unsent(server) and written < 400:
                written += 1
                app.feed.publish("a", content=bytes(100_000))
                await asyncio.wait_for(stream._chunks.__anext__(), 20)
            while app.traffic.held == 2:
                app.feed.publish("a", content=bytes(1000))
                await asyncio.wait_for(stream._chunks.__anext__(), 20)
            assert app.traffic.held == 1


@on_a_loop
async def test_slow_heads_and_bodies_end_and_keep_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred requests that come by drops are told so (408) when their time is up, and others are answered."""
    monkeypatch.setattr(on_uvicorn, "SLOWEST", 3.0)
    body = b"POST /bundle HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    with serve(made("file-updates")) as server, contextlib.ExitStack() as clients:
        slow = []
        for number in range(100):
            slow.append(clients.enter_context(Raw(server)))
            slow[-1].send(body if number % 2 else b"GET /fi")
        assert status(await answer(server, head("/files", "Host: x"))) == 200
        for client in slow:
            assert status(await client.read_all()) == 408


# --- what a request may be ---

SMUGGLED = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {400}),
        (b"POST /bundle HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", {400}),
        (b"POST /bundle HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n", {400}),
        (b"POST /bundle HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", {400}),
        (b"POST /bundle HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", {400}),
        (b"POST /bundle HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", {400}),
        (b"POST /bundle HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", {400}),
        (b"POST /bundle HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"e" * 70_000, {413}),
        (b"POST /bundle HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", {400, 413}),
        (b"GET /files HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n", {400}),
        (b"GET /files HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", {400}),
        (b"GET /files HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n", {400}),
        (b"GET /files HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n", {400}),
        (b"GET /files\r\n\r\n", {400, 505}),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}),
        (b"TRACE /files HTTP/1.1\r\nHost: x\r\nX: secret\r\n\r\n", {405}),
        (b"BREW /files HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
        (b"PUT /files/a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", {405}),
        (b"GET //evil.example/%2e%2e HTTP/1.1\r\nHost: x\r\n\r\n", {404}),
        (b"GET /files HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
         b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n", {200}),
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_read_in_none(
    request_: bytes, expected: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Ambiguous framing is refused and hangs up, other protocols and methods get a status, nothing is echoed."""

    @on_a_loop
    async def body() -> None:
        with serve(made("file-updates"), quiet=False) as server, Raw(server) as client:
            client.send(request_ + SMUGGLED)
            first = await client.read_until(b"\r\n\r\n")
            assert status(first) in expected
            assert b"secret" not in first
            if expected & {400, 413, 505}:
                assert len(re.findall(rb"HTTP/1\.1 \d", first + await client.read_all())) == 1

    body()
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


# --- what an answer says ---


@pytest.mark.parametrize("model", PATHS)
@on_a_loop
async def test_pages_say_what_they_may_do_and_who_may_frame_them(model: str) -> None:
    """No inline script in a live page, no sniffing, no referrer, frames of this machine and this origin only."""
    with serve(made(model)) as server:
        async with http(server) as client:
            for path in ("/", "/docs"):
                page = await client.get(path)
                policy = page.headers["content-security-policy"]
                assert "frame-ancestors 'self' http://localhost:* http://127.0.0.1:*" in policy
                assert ("default-src 'self'" in policy) == (path == "/")
                assert page.headers["x-content-type-options"] == "nosniff"
                assert page.headers["referrer-policy"] == "no-referrer"
            assert (await client.get("/pages/page.js")).headers["x-content-type-options"] == "nosniff"


def test_in_a_real_browser_only_a_page_of_this_machine_may_frame_a_page(chromium: Any) -> None:
    """Another port of this machine, as a notebook is, frames a live page; a page from elsewhere does not."""
    with serve(made("demo")) as server, serve(made("sse")) as around:
        page = chromium.new_page()
        frame = f"""new Promise((resolve) => {{
            const frame = document.createElement("iframe");
            frame.src = "{server.url}/";
            frame.onload = () => resolve();
            document.body.append(frame);
        }})"""
        page.route("http://evil.example/*", lambda route: route.fulfill(body="<body>", content_type="text/html"))
        for url, framed in ((f"{around.url}/healthz", True), ("http://evil.example/around", False)):
            page.goto(url)
            page.evaluate(frame)
            inner = page.main_frame.child_frames[-1]  # the browser may have put its own error page beside it
            assert inner.url.startswith(server.url) == framed
        page.close()


@pytest.mark.parametrize("model", PATHS)
@on_a_loop
async def test_no_answer_leads_elsewhere(model: str) -> None:
    """There is no redirect, which would be made of the client's own Host and take a token to plain HTTP."""
    with serve(made(model)) as server:
        for path in ("/healthz/", "/events/", "/updates/", "/pages", "/docs/", "/sse", "//", "/files"):
            got = await answer(server, head(path, "Host: x"))
            assert b"location:" not in got.lower()
            assert not 300 <= status(got) < 400


@on_a_loop
async def test_what_needed_a_token_is_for_one_reader(tmp_path: Path) -> None:
    """Answers to who has the token are private and vary with it, refusals are not kept; without a token neither."""
    (tmp_path / "a").write_text("hello")
    with serve(file_updates.create_app(Feed(), Tree(tmp_path), token=TOKEN)) as server:
        async with http(server, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
            for path in ("/files", "/files/a", "/", "/metrics", "/none"):
                got = await client.get(path)
                assert "private" in got.headers["cache-control"] or got.headers["cache-control"] == "no-store"
                assert "Authorization" in got.headers["vary"]
        async with http(server) as client:
            assert (await client.get("/files")).headers["cache-control"] == "no-store"


@pytest.mark.parametrize("fast", [False, True], ids=["readable", "fast"])
@on_a_loop
async def test_a_polled_answer_is_that_of_its_own_cursor(fast: bool) -> None:
    """No tag, range or other question's answer is given for another: 304 only to who is at the head by both."""
    feed = Feed(epoch="e")
    for name in "abc":
        feed.publish(name)
    with serve(short_polling.create_app(feed, fast=fast)) as server:
        async with http(server) as client:
            for _ in range(2):
                for after in range(4):
                    for tag in ('"e-3"', '"e-0"', "*", 'W/"e-3", "x"'):
                        got = await client.get(f"/updates?after=e-{after}", headers={"If-None-Match": tag})
                        if after == 3 and tag != '"e-0"':
                            assert (got.status_code, got.content) == (304, b"")
                        else:
                            assert [update["seq"] for update in got.json()["updates"]] == [*range(after + 1, 4)]
                        assert got.headers["cache-control"] == "no-cache"
            ranged = await client.get("/updates?after=e-0", headers={"Range": "bytes=0-3"})
            assert (ranged.status_code, len(ranged.json()["updates"])) == (200, 3)


@on_a_loop
async def test_a_cursor_opens_no_door(tmp_path: Path) -> None:
    """Whoever has another's cursor, tag or stream position and no token gets 401, over every way to present it."""
    (tmp_path / "a").write_text("hello")
    feed = Feed(epoch="e")
    with serve(file_updates.create_app(feed, Tree(tmp_path), token=TOKEN)) as server:
        async with http(server) as client:
            headers = {"Last-Event-ID": feed.cursor, "If-None-Match": f'"{feed.cursor}"', "Cookie": f"token={TOKEN}"}
            for path in ("/events", f"/events?after={feed.cursor}", "/files", "/files/a", f"/files?token={TOKEN}"):
                assert (await client.get(path, headers=headers)).status_code == 401


@pytest.mark.parametrize("model", ["sse", "sse --fast", "file-updates"])
@on_a_loop
async def test_nothing_that_is_sent_comes_back_as_a_line_of_the_answer(model: str) -> None:
    """A cursor or Last-Event-ID with line breaks, and a name with them, add no header and no field to a stream."""
    app = made(*model.split())
    with serve(app) as server:
        async with http(server) as client:
            bad = await client.get("/events", params={"after": "e-0\r\nX-Evil: 1\r\n\r\nid: 9"})
            assert bad.status_code == 400
            assert "x-evil" not in bad.headers
        async with events(server, {"Last-Event-ID": "e-0\tx"}) as stream:
            assert await stream.block() == "retry: 2000"
            assert (await stream.block()).startswith("event: reset\nid: ")
            name = "a\r\nid: 9\r\n\r\nevent: reset\ndata: {}\u2028\x85"
            app.feed.publish(name)
            assert (await stream.update())["path"] == name


# --- who asks: pages from elsewhere ---


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
@on_a_loop
async def test_a_form_from_elsewhere_asks_for_no_bundle(tmp_path: Path, content_type: str) -> None:
    """What a page can post without asking first (Fetch, CORS-safelisted) is 400, and nothing lets it read answers."""
    (tmp_path / "a").write_text("hello")
    with serve(file_updates.create_app(Feed(), Tree(tmp_path))) as server:
        async with http(server) as client:
            headers = {"Origin": "https://evil.example", "Content-Type": content_type, "Sec-Fetch-Site": "cross-site"}
            got = await client.post("/bundle", content=b'{"paths": ["a"]}', headers=headers)
            assert got.status_code == 400
            assert "access-control-allow-origin" not in got.headers
            asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
            assert "access-control-allow-origin" not in (await client.options("/bundle", headers=asked)).headers


# --- logs ---


def test_a_token_is_nowhere_but_in_its_file(tmp_path: Path) -> None:
    """Given rightly, wrongly, in a URL, in a broken head: it is in no output, answer, metric or state file."""
    directory, state, secret = tmp_path / "dir", tmp_path / "state", tmp_path / "token"
    directory.mkdir()
    (directory / "a").write_text("hello")
    secret.write_text(TOKEN)

    @on_a_loop
    async def body() -> None:
        options = ("--watch", directory, "--state", state, "--token-file", secret, "--port", 0)
        async with command("servers", "file-updates", *options) as process:
            url = await url_of(process, "file-updates")
            seen = b""
            for request in (
                head("/files", "Host: x", f"Authorization: Bearer {TOKEN}"),
                head("/metrics", "Host: x", f"Authorization: Bearer {TOKEN}"),
                head("/openapi.json", "Host: x", f"Authorization: Bearer {TOKEN}"),
                head("/files", "Host: x", f"Authorization: Bearer {TOKEN}x"),
                head(f"/files/{TOKEN}?token={TOKEN}", "Host: x"),
                head("/events?after=x", "Host: x", f"Authorization: Basic {TOKEN}"),
                head("/healthz", "Host: x", f"Authorization: Bearer {TOKEN}"),
                head("/files", "Host: evil.example", f"Authorization: Bearer {TOKEN}"),
                f"GET /files HTTP/1.1\r\nHost: x\r\nAuthorization: {TOKEN}\r\nbroken\r\n\r\n".encode(),
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
                writer.write(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                seen += await asyncio.wait_for(reader.read(), 20)
                writer.close()
            assert seen.count(b"HTTP/1.1 ") == 9
            process.terminate()
            code, out, err = await ended(process)
            assert (code, out, err) == (0, "", "")
            assert TOKEN.encode() not in seen

    body()
    assert TOKEN.encode() not in b"".join(file.read_bytes() for file in tmp_path.glob("state*"))


@pytest.mark.skipif(sys.platform == "win32", reason="such a name cannot be")
def test_a_name_writes_no_line_into_a_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file whose name has line breaks and terminal codes is named in one printable line."""
    name = b"a\nERROR forged \x1b[2J\xff"
    (tmp_path / "b").write_text("fine")
    with open(tmp_path.joinpath(name.decode(errors="surrogateescape")), "wb"):  # noqa: PTH123  # no str has it
        pass
    tree = Tree(tmp_path)
    list(tree.scan())
    lines = [record.getMessage() for record in caplog.records]
    assert all(line.isprintable() for line in lines)
    assert list(tree.files) == ["b"]


# --- a rate of nothing ---


@on_a_loop
async def test_a_rate_of_0_is_a_server_without_news() -> None:
    """--rate 0 makes no updates up, and the server is well."""
    for model in PATHS:
        with serve(made(model)) as server:
            async with http(server) as client:
                await asyncio.sleep(0)
                assert (await client.get("/healthz")).json()["status"] == "ok"
                assert "updates_published_total" in (await client.get("/metrics")).text
        assert server.app.feed.head == 0  # type: ignore[attr-defined]
