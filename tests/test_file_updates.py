"""The capstone service: the listing and its cursor, what is left out, whom it refuses, and its page."""

import asyncio
import base64
import contextlib
import os
import random
import threading
from pathlib import Path

import pytest
from playwright.sync_api import expect

from servers.arguments import checked_token
from servers.background import serve
from servers.feed import Feed
from servers.file_updates import FEW, create_app
from servers.tree import Tree
from tests.support import events, http, on_a_loop, until
from tests.support_browser import Tab, browser, tab
from tests.support_files import directory, rescan, served, sha256

__all__ = ["browser", "directory", "tab"]  # fixtures

TOKEN = "a-token-of-many-characters"


# --- the listing ---


@on_a_loop
async def test_the_listing_is_what_stands_at_its_cursor(directory: Path) -> None:
    """It has every file in the order of paths, changes with the published updates and not before, and has an ETag."""
    os.utime(directory / "a" / "b.csv", (1, 1732305600.25))
    os.utime(directory / "empty", (1, 1732305600))
    (directory / "empty").chmod(0o755)
    feed, tree = Feed(epoch="e"), Tree(directory)
    with serve(create_app(feed, tree)) as server:
        async with http(server) as client:
            first = await client.get("/files")
            assert first.json() == {
                "cursor": "e-0",
                "directory": tree.tag(),
                "files": [
                    {"path": "a/b.csv", "size": 5, "sha256": sha256(b"hello"), "mtime": 1732305600.25}
                    | {"executable": False},
                    {"path": "empty", "size": 0, "sha256": sha256(b""), "mtime": 1732305600.0, "executable": True},
                ],
            }
            assert first.headers["etag"] == '"e-0"'
            assert (await client.get("/files", headers={"If-None-Match": '"e-0"'})).status_code == 304
            await asyncio.to_thread((directory / "new").write_text, "x")
            await asyncio.to_thread((directory / "empty").unlink)
            tree.scan()  # what a scan has found is not in the listing before it is published
            assert (await client.get("/files")).json() == first.json()
            feed.publish("empty", "deleted")
            feed.publish("new", "added", size=1, sha256="5")
            second = await client.get("/files", headers={"If-None-Match": '"e-0"'})
            assert second.json()["cursor"] == "e-2"
            assert [file["path"] for file in second.json()["files"]] == ["a/b.csv", "new"]


@on_a_loop
async def test_the_listing_names_its_source_if_that_is_kept(directory: Path) -> None:
    """With an index there is a name that outlives the server; a file that may be run from now on is announced."""
    tree, feed = Tree(directory), Feed(epoch="e")
    tree.source = "0123456789abcdef"
    with serve(create_app(feed, tree)) as server:
        async with http(server) as client:
            assert list((await client.get("/files")).json().items())[:2] == [("cursor", "e-0"), ("source", tree.source)]
            (directory / "empty").chmod(0o755)
            rescan(feed, tree)
            (update,) = feed.read(0).updates
            assert (update.path, update.change, update.executable) == ("empty", "modified", True)
            assert (await client.get("/files")).json()["files"][1]["executable"] is True


@pytest.mark.parametrize("files", [3, FEW + 1])
def test_a_listing_and_the_events_after_its_cursor_lead_to_the_same_files(files: int) -> None:
    """At any moment of a busy log, also a short one, listing plus later events equals what stands there at the end."""

    @on_a_loop
    async def body() -> None:
        feed, rng = Feed(epoch="e", history=10**6), random.Random(1)
        feed.adopt({f"{number}": (number, "0") for number in range(files)})
        stop = threading.Event()

        def publish() -> None:
            while not stop.wait(0.0005):
                path = f"{rng.randrange(files)}"
                if rng.random() < 0.3:
                    feed.publish(path, "deleted")
                else:
                    feed.publish(path, size=rng.randrange(9), sha256="1")

        thread = threading.Thread(target=publish)
        with serve(create_app(feed)) as server:
            async with http(server) as client:
                thread.start()
                try:
                    answers = [await client.get("/files") for _ in range(10)]
                    answers += await asyncio.gather(*(client.get("/files") for _ in range(10)))
                finally:
                    stop.set()
                    thread.join()
                final = (await client.get("/files")).json()
                expected = {file["path"]: file["size"] for file in final["files"]}
                for answer in answers:
                    assert answer.headers["etag"] == f'"{answer.json()["cursor"]}"'
                    state = {file["path"]: file["size"] for file in answer.json()["files"]}
                    position = feed.position(answer.json()["cursor"])
                    while position < feed.head:
                        batch = feed.read(position)
                        position = batch.position
                        for update in batch.updates:
                            if update.change == "deleted":
                                state.pop(update.path, None)
                            else:
                                state[update.path] = update.size
                    assert state == expected

    body()


@on_a_loop
async def test_a_listing_is_not_older_than_its_question() -> None:
    """Who asks after an update was published finds it, also while an older listing is still being encoded."""
    feed = Feed(epoch="e")
    feed.adopt({f"{number}": (number, "0") for number in range(3 * FEW)})
    app = create_app(feed)
    with serve(app) as server:
        async with http(server) as client:

            async def ask() -> None:
                for _ in range(10):
                    head = feed.publish("a").seq
                    assert int((await client.get("/files")).json()["cursor"].removeprefix("e-")) >= head

            await asyncio.gather(*(ask() for _ in range(4)))


# --- what is left out ---


@on_a_loop
async def test_listing_events_and_files_agree_on_what_is_left_out(directory: Path) -> None:
    """What is ignored or too large is in none of the three; a file that grows too large is deleted."""
    files = {".git/config": 1, "x.tmp": 1, "deep/down/y.tmp": 1, "build/z.o": 1, "src/z.o": 1, "big": 11, "just": 10}
    for name, size in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(bytes(size))
    feed, tree = Feed(epoch="e"), Tree(directory, limit=10, ignore=[".git", "*.tmp", "build/*.o"])
    assert set(tree.skipped) == {"'big'"}
    assert not any(".git" in name for name in tree.folders)
    with serve(create_app(feed, tree)) as server:
        async with http(server) as client:
            listed = [file["path"] for file in (await client.get("/files")).json()["files"]]
            assert listed == ["a/b.csv", "empty", "just", "src/z.o"]
            for name in files:
                assert (await client.get(f"/files/{name}")).status_code == (200 if name in listed else 404), name
            (directory / "just").write_bytes(bytes(11))
            assert (await client.get("/files/just")).status_code == 404
            rescan(feed, tree)
            assert [(u.path, u.change) for u in feed.read(0).updates] == [("just", "deleted")]


@on_a_loop
async def test_a_schedule_has_a_listing_and_no_files() -> None:
    """Without a directory the listing follows the schedule, and every file is 404."""
    feed = Feed(epoch="e")
    with serve(create_app(feed)) as server:
        async with http(server) as client:
            feed.publish("a", "added", size=3, sha256="0")
            assert (await client.get("/files")).json()["files"] == [{"path": "a", "size": 3, "sha256": "0"}]
            assert (await client.get("/files/a")).status_code == 404


# --- who may come ---


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


@on_a_loop
async def test_with_a_token_only_health_is_free(directory: Path) -> None:
    """Everything else wants the token, as Bearer or as a Basic password; in a URL it does not count."""
    async with served(directory, token=TOKEN) as client:
        for path in (
            "/",
            "/files",
            "/files/a/b.csv",
            "/events",
            "/metrics",
            "/docs",
            "/openapi.json",
            "/pages/live.js",
        ):
            for authorization in (
                None,
                "",
                "Bearer",
                f"Bearer {TOKEN}x",
                f"Bearer {TOKEN[:-1]}",
                TOKEN,
                f"Digest {TOKEN}",
                "Basic %%%",
                "Bearer \xff",
                basic("wrong"),
                basic(""),
            ):
                headers = {} if authorization is None else {b"Authorization": authorization.encode("latin-1")}
                answer = await client.get(path, headers=headers)
                assert answer.status_code == 401, (path, authorization)
                assert [c.split()[0] for c in answer.headers.get_list("www-authenticate")] == ["Bearer", "Basic"]
                assert "hello" not in answer.text
        assert (await client.get("/healthz")).status_code == 200
        for authorization in (f"Bearer {TOKEN}", f"bearer {TOKEN}", basic(TOKEN)):
            answer = await client.get("/files/a/b.csv", headers={"Authorization": authorization})
            assert answer.text == "hello"
        assert (await client.get("/files", params={"access_token": TOKEN, "token": TOKEN})).status_code == 401


@pytest.mark.parametrize("text", ["", "short", "fifteen-letters", "a token with a space", "ü" * 20, "a" * 20 + "\nb"])
def test_what_is_no_token_is_refused(text: str) -> None:
    """A token is long enough, and printable ASCII without a space; space around it is not part of it."""
    with pytest.raises(ValueError, match="a token is at least 16 printable ASCII characters"):
        checked_token(text)
    assert checked_token(f" {TOKEN}\n") == TOKEN


@on_a_loop
async def test_only_listed_origins_may_read(directory: Path) -> None:
    """CORS names the listed origin and no other; its pages may send the token; a preflight needs none."""
    ours, theirs = "https://hub.example", "https://elsewhere.example"
    async with served(directory, allow_origins=[ours], token=TOKEN) as client:
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization,range"}
        allowed = await client.options("/files/a/b.csv", headers={"Origin": ours} | asked)
        assert allowed.status_code == 200
        assert (await client.options("/files/a/b.csv", headers={"Origin": theirs} | asked)).status_code == 400
        answer = await client.get("/files/a/b.csv", headers={"Origin": ours} | bearer)
        assert answer.headers["access-control-allow-origin"] == ours
        assert "etag" in answer.headers["access-control-expose-headers"].lower()
        assert answer.headers["access-control-allow-credentials"] == "true"
        other = await client.get("/files/a/b.csv", headers={"Origin": theirs} | bearer)
        assert "access-control-allow-origin" not in other.headers
        refused = await client.get("/files", headers={"Origin": ours})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ours)
    async with served(directory) as client:
        answer = await client.get("/files", headers={"Origin": ours})
        assert "access-control-allow-origin" not in answer.headers


@on_a_loop
async def test_beyond_the_limit_is_503_until_somebody_leaves(directory: Path) -> None:
    """Open streams count; health and metrics are always answered; whoever leaves makes room at once."""
    app = create_app(Feed(epoch="e"), Tree(directory), max_connections=2)
    with serve(app) as server:
        async with http(server) as client, contextlib.AsyncExitStack() as streams:
            held = [await streams.enter_async_context(events(server)) for _ in range(2)]
            assert [await stream.block() for stream in held] == 2 * ["retry: 2000"]
            for path in ("/files", "/files/a/b.csv", "/events", "/"):
                answer = await client.get(path)
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) > 0
            assert (await client.get("/healthz")).status_code == 200
            assert 'updates_held{model="file updates"} 2.0' in (await client.get("/metrics")).text
            await streams.aclose()
            await until(lambda: app.traffic.held == 0)
            assert (await client.get("/files/a/b.csv")).text == "hello"
            assert (await client.get("/none")).status_code == 404
            assert (await client.get("/files/a/b.csv")).text == "hello"


# --- the page ---


def test_the_page_lists_watches_and_links(tab: Tab, directory: Path) -> None:
    """What stands there is listed, what changes is shown, a link leads to the bytes, and a name is only a name."""
    markup = "<img src=x onerror=alert(1)>"
    (directory / markup).write_text("here")
    (directory / "two\nlines").write_text("lines")
    feed, tree = Feed(epoch="e"), Tree(directory)
    server = tab.serve(create_app(feed, tree, retry=50))
    tab.page.goto(server.url)
    tab.shows("known", 4)
    expect(tab.page.locator("#files a")).to_have_text([markup, "a/b.csv", "empty", r"two\nlines"])
    assert tab.page.locator("#files img").count() == 0
    expect(tab.page.locator("#state")).to_have_text("readyState 1 (open)")
    (directory / "new").write_text("x")
    (directory / "empty").unlink()
    rescan(feed, tree)
    tab.shows("updates", 2)
    tab.shows("known", 4)
    assert tab.seqs() == [1, 2]
    links = tab.page.locator("#files a")
    expect(links).to_have_text([markup, "a/b.csv", "new", r"two\nlines"])
    for number, content in enumerate(["here", "hello", "x", "lines"]):
        with tab.page.expect_download() as download:
            links.nth(number).click()
        assert Path(download.value.path()).read_text() == content


def test_the_page_lists_again_after_a_reset(tab: Tab) -> None:
    """When the log is another after a restart, the page shows that one's files, and follows it."""
    tab.allow(r"net::ERR_CONNECTION_REFUSED")
    old, new = Feed(epoch="f001"), Feed(epoch="f002")
    old.adopt({"old": (1, "0")})
    new.adopt({"new": (1, "0"), "newer": (1, "0")})
    server = tab.serve(create_app(old, retry=50))
    tab.page.goto(server.url)
    tab.shows("known", 1)
    expect(tab.page.locator("#state")).to_have_text("readyState 1 (open)")
    server.stop()
    tab.serve(create_app(new, retry=50), port=server.port)
    tab.shows("known", 2)
    tab.shows("resets", 1)
    new.publish("third", "added", size=1, sha256="0")
    tab.shows("known", 3)
    expect(tab.page.locator("#files a")).to_have_text(["new", "newer", "third"])


def test_a_browser_asks_for_the_token_once(tab: Tab, directory: Path) -> None:
    """With the token as a password, page, listing, stream and downloads work: the browser sends it by itself."""
    feed = Feed(epoch="e")
    server = tab.serve(create_app(feed, Tree(directory), token=TOKEN))
    context = tab.page.context.browser
    assert context is not None
    with contextlib.closing(context.new_context(http_credentials={"username": "me", "password": TOKEN})) as admitted:
        page = admitted.new_page()
        page.goto(server.url)
        expect(page.locator("#known")).to_have_text("2")
        expect(page.locator("#state")).to_have_text("readyState 1 (open)")
        feed.publish("new", size=1, sha256="0")
        expect(page.locator("#updates")).to_have_text("1")
        with page.expect_download() as download:
            page.get_by_role("link", name="a/b.csv").click()
        assert Path(download.value.path()).read_text() == "hello"
