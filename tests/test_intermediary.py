"""nginx as a plain process, and its imitation: what either does to an event stream, and that nothing of them stays."""

import asyncio
import contextlib
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from lab.proxies import nginx
from lab.proxies.intermediary import Between, intermediary
from servers.background import serve
from servers.feed import Feed
from servers.service import Service
from servers.sse import create_app
from tests.support import PATIENCE, Events, on_a_loop, until

COLLECTS = "gzip on; gzip_types text/event-stream; "
DEAF = "proxy_ignore_headers X-Accel-Buffering; "
CHUNKS = "proxy_http_version 1.1; "
OLD = "proxy_http_version 1.0; "  # the default before nginx 1.29.7

needs_nginx = pytest.mark.skipif(not nginx.installed(), reason="needs nginx: apt-get install nginx")
both = pytest.mark.parametrize("imitate", [pytest.param(False, marks=needs_nginx), True], ids=["nginx", "imitation"])


@contextlib.contextmanager
def served(heartbeat: float = 15.0) -> Iterator[tuple[Service, str]]:
    app = create_app(Feed(), heartbeat=heartbeat)
    with serve(app) as server:
        yield app, server.url


@contextlib.asynccontextmanager
async def stream(
    url: str, encoding: str = "gzip", verify: ssl.SSLContext | bool = False
) -> AsyncIterator[httpx.Response]:
    timeout = httpx.Timeout(PATIENCE, read=None)
    async with (
        httpx.AsyncClient(trust_env=False, verify=verify, timeout=timeout) as http,
        http.stream("GET", f"{url}/events", headers={"Accept-Encoding": encoding}) as response,
    ):
        yield response


@needs_nginx
def test_nginx_answers_as_soon_as_it_is_made_and_leaves_nothing_behind() -> None:
    """The port is its own from the first moment; after the stop, process, port and files are gone."""
    with nginx.Nginx('location / { return 200 "hello"; }') as server:
        folder = Path(server._files.name)
        assert (folder / "nginx.conf").exists()
        assert httpx.get(server.url, trust_env=False).text == "hello"
        assert "running" in repr(server)
    assert "stopped" in repr(server)
    server.stop()
    assert not folder.exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url, trust_env=False)


@needs_nginx
def test_an_nginx_that_does_not_start_says_why() -> None:
    """A mistake in the directives comes as an exception with nginx's own words."""
    with pytest.raises(nginx.NginxError, match='unknown directive "nonsense"'):
        nginx.Nginx("nonsense;")


def test_a_missing_nginx_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for a real one where there is none is told; who asks for any gets the imitation."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(nginx, "SYSTEM_FOLDERS", "")
    with pytest.raises(nginx.NginxError, match="not installed"):
        nginx.Nginx("")
    with served() as (_, url), intermediary(url) as between:
        assert between.name == "imitation"
        assert httpx.get(f"{between.url}/healthz", trust_env=False).status_code == 200


@needs_nginx
def test_a_real_intermediary_says_its_version() -> None:
    """Where nginx is installed, it is nginx, and the name says which."""
    with served() as (_, url), intermediary(url) as between:
        assert between.name.startswith("nginx/")
        said = subprocess.run([nginx.installed() or "", "-v"], capture_output=True, text=True, check=True).stderr
        assert between.name in said


def test_the_imitation_refuses_what_it_does_not_know() -> None:
    """A directive without effect would show something false."""
    with (
        pytest.raises(ValueError, match="does not know 'proxy_cache on'"),
        intermediary("http://127.0.0.1:1", "gzip on; proxy_cache on;", imitate=True),
    ):
        pass


@both
def test_behind_it_nobody_is_a_bad_gateway(imitate: bool) -> None:
    """A request for a server that is not there is answered by 502."""
    with serve(create_app(Feed())) as server:
        url = server.url
    with intermediary(url, imitate=imitate) as between:
        assert httpx.get(between.url, trust_env=False).status_code == 502


ENDED_EARLY = """
import asyncio
import httpx
from lab.proxies import intermediary
from servers import sse
from servers.background import serve
from servers.feed import Feed

async def leave_while_it_streams():
    async with httpx.AsyncClient(trust_env=False) as http:
        with serve(sse.create_app(Feed())) as server, intermediary(server.url, imitate=True) as between:
            request = http.build_request("GET", f"{between.url}/events")
            streams = [await http.send(request, stream=True) for _ in range(3)]
        for stream in streams:
            await stream.aclose()

asyncio.run(leave_while_it_streams())
"""


def test_an_imitation_that_ends_with_streams_open_says_nothing() -> None:
    """Connections that are open when the block ends are closed without a word on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", ENDED_EARLY], capture_output=True, text=True, timeout=3 * PATIENCE, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@both
@on_a_loop
async def test_a_silent_stream_is_cut_and_a_heartbeat_keeps_it(imitate: bool) -> None:
    """After proxy_read_timeout without a byte the body is broken off; with a byte in time it goes on."""
    limit = "proxy_read_timeout 3s;"  # no machine stands still for so long
    with (
        served() as (_, silent),
        served(heartbeat=0.1) as (_, beating),
        intermediary(silent, limit, imitate=imitate) as cuts,
        intermediary(beating, limit, imitate=imitate) as keeps,
    ):
        async with asyncio.timeout(PATIENCE), stream(keeps.url) as kept, stream(cuts.url) as cut:
            broken_off = asyncio.create_task(cut.aread())
            events = Events(kept)
            while not broken_off.done():
                await events.block()
            with pytest.raises(httpx.RemoteProtocolError):
                await broken_off
            await events.block()


@both
@pytest.mark.parametrize(
    "directives",
    [
        pytest.param("", id="default"),
        pytest.param(OLD, id="HTTP/1.0, header heeded"),
        pytest.param(CHUNKS + DEAF, id="header ignored"),
        pytest.param(COLLECTS, id="header heeded"),
        pytest.param(COLLECTS + DEAF + "proxy_buffering off;", id="buffering off"),
    ],
)
@on_a_loop
async def test_small_events_pass_at_once(imitate: bool, directives: str) -> None:
    """Over HTTP/1.1 nothing holds them back, nor does a compressor, or HTTP/1.0, where the server asks for it."""
    with served() as (app, url), intermediary(url, directives, imitate=imitate) as between:
        await each_comes_before_the_next(app.feed, between, "gzip")


@both
@pytest.mark.parametrize("directives", ["", DEAF + "proxy_buffering off;"], ids=["header heeded", "buffering off"])
@on_a_loop
async def test_small_events_pass_through_tls_when_asked_to(imitate: bool, directives: str) -> None:
    """Where TLS ends, the header or the directive lets each event go as it comes."""
    with served() as (app, url), intermediary(url, directives, tls=True, imitate=imitate) as between:
        await each_comes_before_the_next(app.feed, between, "identity")


@needs_nginx
@on_a_loop
async def test_nginx_does_not_compress_for_a_client_that_accepts_no_gzip() -> None:
    """The client's own cure: Accept-Encoding: identity, which the course's robust client sends."""
    with served() as (app, url), intermediary(url, CHUNKS + COLLECTS + DEAF) as between:
        await each_comes_before_the_next(app.feed, between, "identity")


async def each_comes_before_the_next(feed: Feed, between: Between, encoding: str) -> None:
    async with asyncio.timeout(PATIENCE), stream(between.url, encoding, between.verify) as response:
        seen = b""
        chunks = response.aiter_bytes()
        for number in range(3):
            feed.publish(f"file-{number}")
            while f"file-{number}".encode() not in seen:
                seen += await anext(chunks)


@both
@pytest.mark.parametrize(
    ("directives", "tls"),
    [(CHUNKS + COLLECTS + DEAF, False), (CHUNKS + DEAF, True), (OLD + DEAF, False)],
    ids=["gzip", "TLS", "HTTP/1.0"],
)
@on_a_loop
async def test_gzip_tls_or_http_1_0_holds_everything_back_until_the_end(
    imitate: bool, directives: str, tls: bool
) -> None:
    """Without a word from the server nothing comes, not even the head; at the end of the stream, all of it."""
    with served() as (app, url), intermediary(url, directives, tls=tls, imitate=imitate) as between:
        seen = list[bytes]()

        async def read() -> None:
            async with stream(between.url, verify=between.verify) as response:
                seen.append(b"the head")
                async for chunk in response.aiter_bytes():
                    seen.append(chunk)

        reading = asyncio.create_task(read())
        await until(lambda: app.traffic.held)
        for number in range(3):
            app.feed.publish(f"file-{number}")
        await until(lambda: app.traffic.delivered == 3)
        await asyncio.wait({reading}, timeout=0.5)  # small events that are not held back take a millisecond
        assert seen == []
        app.closing.close()
        async with asyncio.timeout(PATIENCE):
            await reading
        assert b"".join(seen).count(b"event: update") == 3


@both
@on_a_loop
async def test_a_client_that_leaves_is_gone_for_the_server_too(imitate: bool) -> None:
    """The server's slot is free although its own connection is with the intermediary."""
    with served() as (app, url), intermediary(url, imitate=imitate) as between:
        async with stream(between.url):
            await until(lambda: app.traffic.held == 1)
        await until(lambda: app.traffic.held == 0)
