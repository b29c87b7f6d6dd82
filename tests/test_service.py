"""What every server has: live page, health, metrics, documentation, refusals, and a source that may fail."""

import asyncio
import gc
import re
import time
import weakref
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from prometheus_client.parser import text_string_to_metric_families

from servers import demo, file_updates, long_polling, short_polling, sse, websocket
from servers.background import Server, ServerError, serve
from servers.feed import Batch, Feed, Gap
from servers.models import MODELS, model
from servers.service import PAGES, Service
from tests.support import PATIENCE, Events, events, http, loop_of, on_a_loop, received, socket_to, until, virtual_get


@pytest.fixture(scope="module", params=[model.name for model in MODELS])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of each model; its feed has three updates."""
    feed = Feed(epoch="e0e0")
    for number in range(3):
        feed.publish(f"{number}")
    with serve(model(request.param).create_app(feed)) as server:
        yield server


async def get(server: Server, path: str) -> httpx.Response:
    async with http(server) as client:
        return await client.get(path)


async def metrics(server: Server) -> dict[str, float]:
    """The samples of one scrape by name."""
    answer = await get(server, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        sample.name: sample.value for family in text_string_to_metric_families(answer.text) for sample in family.samples
    }


@on_a_loop
async def test_health_says_the_model_and_where_the_log_stands(server: Server) -> None:
    """GET /healthz is the answer of a server that works."""
    answer = await get(server, "/healthz")
    assert answer.status_code == 200
    name = answer.json().pop("model")
    assert name in [model.name for model in MODELS]
    assert answer.json() == {"status": "ok", "model": name, "cursor": "e0e0-3"}


@on_a_loop
async def test_metrics_are_labelled_with_the_model_and_describe_themselves(server: Server) -> None:
    """Every sample of the scrape has its model, its help text and a type that fits its name."""
    text = (await get(server, "/metrics")).text
    model = (await get(server, "/healthz")).json()["model"]
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {name: family.type for name, family in families.items()} == {
        "updates_requests": "counter",
        "updates_delivered": "counter",
        "updates_resets": "counter",
        "updates_published": "counter",
        "updates_held": "gauge",
        "updates_skipped": "gauge",
        "updates_history": "gauge",
    }
    for family in families.values():
        assert family.documentation.endswith(".")
        assert [sample.labels for sample in family.samples] == [{"model": model}]


@on_a_loop
async def test_the_documentation_answers_and_says_400_where_a_request_is_refused(server: Server) -> None:
    """/docs is a page on /openapi.json, which names the model's path and none of FastAPI's 422."""
    assert "openapi.json" in (await get(server, "/docs")).text
    description = (await get(server, "/openapi.json")).json()
    for path in description["paths"].values():
        assert "4XX" in path["get"]["responses"]
        assert "422" not in path["get"]["responses"]


@on_a_loop
async def test_an_unknown_path_is_404_and_another_method_405(server: Server) -> None:
    """Nothing else is served, and neither is counted as a request of the model."""
    before = (await metrics(server))["updates_requests_total"]
    for path in ("/nothing", "/updates/x", "/x/updates", "/x/ws", "/x/events", "/pages/", "/pages/../service.py"):
        assert (await get(server, path)).status_code == 404, path
    async with http(server) as client:
        assert (await client.post("/healthz")).status_code == 405
    assert (await metrics(server))["updates_requests_total"] == before


class Links(HTMLParser):
    """What a page refers to, and what it should not have."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.inline: list[str] = []
        self._within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect one element."""
        self._within = tag
        for name, value in attrs:
            if name in ("href", "src", "action", "data", "poster", "srcset"):
                self.links.append(value or "")
            if name.startswith("on") or name == "style":
                self.inline.append(f"{tag} {name}")
        if tag == "script":
            self.scripts.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        """Leave it."""
        self._within = ""

    def handle_data(self, data: str) -> None:
        """Text within a script or style element is inline code."""
        if self._within in ("script", "style") and data.strip():
            self.inline.append(f"{self._within}: {data.strip()}")


@on_a_loop
async def test_the_live_page_runs_under_a_policy_without_inline_code_below_any_prefix(server: Server) -> None:
    """The page has no inline script, handler or style, and refers only to what lies beside it, which is there."""
    answer = await get(server, "/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy.partition("frame-ancestors")[0]
    page = Links()
    page.feed(answer.text)
    assert page.inline == []
    assert page.scripts
    assert all(script["src"] for script in page.scripts)
    for link in page.links:
        assert not re.match(r"/|[a-z]+:|\.\.", link), link
        assert (await get(server, f"/{link}")).status_code == 200, link


def test_no_script_of_the_pages_names_an_absolute_url() -> None:
    """A page works behind a proxy that adds a prefix: no script has a host, a port or a path from the root."""
    scripts = sorted(PAGES.glob("*.js"))
    assert len(scripts) >= 4
    for script in scripts:
        text = script.read_text()
        assert not re.search(r"(https?|wss?)://|localhost|127\.0\.0\.1", text), script
        assert not re.search(r"""(fetch|EventSource|WebSocket|URL|from|import)\s*\(?\s*["'`]/""", text), script


# --- the numbers of /metrics are those that the clients saw ---


@on_a_loop
async def test_the_metrics_of_short_polling_are_what_its_client_saw() -> None:
    """Polls with and without news, a 304, a gap and three refusals are requests; health, page and scrapes are none."""
    feed = Feed(epoch="e0e0", history=2)
    with serve(short_polling.create_app(feed)) as server:
        seen = 0
        async with http(server) as client:
            for number in range(4):
                feed.publish(f"{number}")
            for query in ("", "?after=0", "?after=e0e0-3", "?after=e0e0-1", "?after=x", "?after=e0e0-9"):
                answer = await client.get(f"/updates{query}")
                seen += len(answer.json().get("updates", []))
            same = {"If-None-Match": '"e0e0-4"'}
            assert (await client.get("/updates?after=e0e0-4", headers=same)).status_code == 304
            assert (await client.put("/updates")).status_code == 405
            await client.get("/healthz")
            await client.get("/")
        assert seen == 3
        assert await metrics(server) == {
            "updates_requests_total": 8,
            "updates_delivered_total": seen,
            "updates_resets_total": 1,
            "updates_published_total": 4,
            "updates_held": 0,
            "updates_skipped": 0,
            "updates_history": 2,
        }


@on_a_loop
async def test_the_metrics_of_long_polling_count_who_is_held() -> None:
    """Three held polls are three requests in progress, and afterwards three deliveries and none in progress."""
    feed = Feed()
    with serve(long_polling.create_app(feed)) as server:
        async with http(server) as client, asyncio.TaskGroup() as polls:
            for _ in range(3):
                polls.create_task(client.get("/updates", params={"after": feed.cursor, "wait": 60}))
            app = server.app
            assert isinstance(app, Service)
            await until(lambda: app.traffic.held == 3)
            held = await metrics(server)
            assert (held["updates_held"], held["updates_requests_total"], held["updates_delivered_total"]) == (3, 3, 0)
            feed.publish("news")
        after = await metrics(server)
        assert (after["updates_held"], after["updates_requests_total"], after["updates_delivered_total"]) == (0, 3, 3)


@on_a_loop
async def test_the_metrics_of_a_websocket_count_connections_refusals_and_deliveries() -> None:
    """Two connections and a refused one are three requests; a filtered-out update is not a delivery."""
    feed = Feed(epoch="e0e0", history=2)
    for number in range(4):
        feed.publish(f"{number}")
    with serve(websocket.create_app(feed)) as server:
        async with socket_to(server, "after=e0e0-0") as late, socket_to(server) as now:
            assert (await received(late))["type"] == "reset"
            await received(now)
            async with http(server) as client:  # refused: its origin is foreign
                upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Origin": "null"}
                key = {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
                assert (await client.get("/ws", headers=upgrade | key)).status_code == 403
            await late.send('{"type": "filter", "id": 1, "paths": ["other"]}')
            await received(late)
            feed.publish("one")
            assert len((await received(now))["updates"]) == 1
            held = await metrics(server)
            assert (held["updates_held"], held["updates_requests_total"]) == (2, 3)
            assert (held["updates_resets_total"], held["updates_delivered_total"]) == (1, 1)


@on_a_loop
async def test_the_metrics_of_sse_count_streams_reconnects_and_deliveries() -> None:
    """A stream and its reconnect are two requests; every update is counted for every stream."""
    feed = Feed()
    with serve(sse.create_app(feed)) as server:
        async with events(server) as first, events(server) as second:
            for stream in first, second:
                await stream.block(), await stream.block()
            feed.publish("one")
            cursor = str((await first.update())["seq"])
            await second.update()
            assert (await metrics(server))["updates_held"] == 2
        async with events(server, {"Last-Event-ID": f"{feed.epoch}-{cursor}"}) as again:
            await again.block(), await again.block()
            feed.publish("two")
            assert (await again.update())["path"] == "two"
            app = server.app
            assert isinstance(app, Service)
            await until(lambda: app.traffic.held == 1)
            held = await metrics(server)
    assert (held["updates_requests_total"], held["updates_delivered_total"], held["updates_held"]) == (3, 3, 1)


@pytest.mark.parametrize("fast", [False, True], ids=["as taught", "fast"])
@pytest.mark.parametrize("name", ["websocket", "sse"])
@on_a_loop
async def test_whoever_sees_a_stream_held_may_publish_and_it_hears_of_it(name: str, fast: bool) -> None:
    """A stream is held from when its cursor is known: one published into the moment before is older than the stream."""

    class Watched(Feed):
        def opening(self, *cursors: str | None) -> Batch | Gap:
            before.append(app.traffic.held)
            time.sleep(0.05)  # whoever looks from another thread has the time for it
            return super().opening(*cursors)

    feed, before = Watched(), list[int]()
    app = model(name).create_app(feed, fast=fast)
    with serve(app) as server:
        connection = socket_to(server) if name == "websocket" else events(server)
        opened = asyncio.create_task(connection.__aenter__())
        await until(lambda: app.traffic.held == 1)
        feed.publish("news")
        stream = await opened
        if isinstance(stream, Events):
            await stream.block(), await stream.block()
            assert (await stream.update())["path"] == "news"
        else:
            assert isinstance(stream, websockets.ClientConnection)
            assert (await received(stream))["type"] == "hello"
            assert (await received(stream))["updates"][0]["path"] == "news"
        await connection.__aexit__(None, None, None)
        await until(lambda: app.traffic.held == 0)
    assert before == [0]


# --- the source ---


@on_a_loop
async def test_a_source_runs_while_the_server_does() -> None:
    """It is started with the server, feeds its clients, and is cancelled at the stop."""
    feed = Feed()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def source() -> None:
        feed.publish("from the source")
        try:
            await asyncio.Event().wait()
        finally:
            loop.call_soon_threadsafe(ended.set)

    with serve(short_polling.create_app(feed, source=source)) as server:
        await until(lambda: feed.head)
        assert "from the source" in (await get(server, "/updates?after=0")).text
        assert not ended.is_set()
    await asyncio.wait_for(ended.wait(), 10)


@on_a_loop
async def test_a_source_that_fails_is_reported_by_stop_and_the_server_serves_on_and_says_that_it_is_not_well() -> None:
    """What there is can still be read; /healthz is 503, so nobody takes silence for "nothing has changed"."""
    feed = Feed()

    async def source() -> None:
        feed.publish("the last")
        raise OSError("the disk is gone")

    app = short_polling.create_app(feed, source=source)
    server = serve(app)
    await until(lambda: server.errors)
    assert "the last" in (await get(server, "/updates?after=0")).text
    health = await get(server, "/healthz")
    assert health.status_code == 503
    assert health.json()["status"] == "the source of updates failed: the disk is gone"
    with pytest.raises(ServerError, match="the source of updates failed: the disk is gone") as failure:
        server.stop()
    assert isinstance(failure.value.__cause__, OSError)


def test_a_service_that_has_not_begun_is_not_well_yet() -> None:
    """Until its source has been started it can tell nobody what changes."""

    async def source() -> None:
        await asyncio.Event().wait()

    app = short_polling.create_app(Feed(), source=source)
    assert app.status == "starting"
    assert virtual_get(app, "/healthz")[1] == 503
    with serve(app):
        assert app.status == "ok"


@on_a_loop
async def test_a_source_that_fails_while_it_is_cancelled_is_reported_too() -> None:
    """An error in the source's clean-up is not lost in the stop."""

    async def source() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("cannot unwatch")

    server = serve(short_polling.create_app(Feed(), source=source))
    await until(lambda: "source" in {task.get_name() for task in asyncio.all_tasks(loop_of(server))})
    with pytest.raises(ServerError, match="cannot unwatch"):
        server.stop()


# --- methods, caches, and what is left ---


@on_a_loop
async def test_head_is_answered_wherever_get_is_and_begins_no_stream(server: Server) -> None:
    """HEAD has the status and the headers of GET, no body, and ends at once (RFC 9110, section 9.3.2)."""
    app = server.app
    assert isinstance(app, Service)
    path = "/events" if app.title.endswith("SSE") else "/updates?after=0"
    paths = ["/", "/healthz", "/metrics", "/docs", "/openapi.json", "/pages/icon.svg"]
    async with http(server) as client:
        for each in paths if app.title.endswith("WebSocket") else [*paths, path]:
            async with asyncio.timeout(PATIENCE):
                head = await client.head(each)
            assert (head.status_code, head.content) == (200, b""), each
            if each != "/events":
                assert head.headers["content-type"] == (await client.get(each)).headers["content-type"]
        refused = await client.put("/healthz")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
        assert (await client.put("/pages/icon.svg")).headers["allow"] == "GET, HEAD"
    await until(lambda: app.traffic.held == 0)


@on_a_loop
async def test_what_is_asked_for_again_says_how_long_it_may_be_kept(server: Server) -> None:
    """The page is asked about each time, and is 304 while it is the same; health and metrics are never kept."""
    async with http(server) as client:
        page = await client.get("/")
        again = await client.get("/", headers={"If-None-Match": page.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert page.headers["cache-control"] == again.headers["cache-control"] == "no-cache"
        assert (await client.get("/docs")).headers["cache-control"] == "no-cache"
        for path in ("/healthz", "/metrics"):
            assert (await client.get(path)).headers["cache-control"] == "no-store"
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert list(paths["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]
        assert "503" in paths["/healthz"]["get"]["responses"]


@on_a_loop
async def test_a_service_without_a_page_has_none() -> None:
    """GET / is 404 and the stop is clean."""
    with serve(Service("HTTP streaming", Feed(), path="/stream")) as server:
        assert (await get(server, "/")).status_code == 404


@pytest.mark.parametrize("module", [short_polling, long_polling, websocket, sse, file_updates, demo])
def test_a_server_that_is_stopped_and_forgotten_leaves_nothing_in_memory(module: Any) -> None:
    """Neither its feed nor its application is kept by a cache of anybody's."""

    def work() -> list["weakref.ref[Any]"]:
        feed = Feed()
        feed.publish("a")
        app = module.create_app(feed)
        with serve(app) as server:
            for path in ("/healthz", "/docs", "/openapi.json", "/", "/metrics", "/updates?after=0", "/files"):
                httpx.get(f"{server.url}{path}")
        return [weakref.ref(feed), weakref.ref(app)]

    left = work()
    gc.collect()
    assert [reference() for reference in left] == [None, None]


def test_every_page_of_a_model_is_there() -> None:
    """The file names follow from the models' names."""
    assert {"short-polling", "long-polling", "websocket", "sse"} <= {Path(page).stem for page in PAGES.glob("*.html")}
