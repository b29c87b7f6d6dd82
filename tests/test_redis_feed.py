"""The feed on a real Redis: all that tests/test_feed.py asks of a feed, and what may become of Redis or a process."""

import asyncio
import contextlib
import functools
import itertools
import multiprocessing
import re
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import trustme

from lab.bench import HTTP
from lab.proxies import RedisServer
from lab.proxies.redis_server import RedisServerError
from servers import redis_feed, serve, shared, sse
from servers.feed import Batch, Feed, FutureCursor, Gap, Known, Unavailable, Update
from servers.redis_feed import SKIP, Fenced, RedisFeed, parsed
from servers.service import Closing
from servers.shared import SharedTree, lead, watch_shared
from tests import test_feed
from tests.support import PATIENCE, Raw, on_a_loop
from tests.support import until as soon

# The same tests, on this feed: `feeds` below puts it in the place of the other one.
from tests.test_feed import (
    TestLog,  # noqa: F401
    eager_threads,  # noqa: F401
    numbers,
    test_a_change_of_no_known_kind_is_refused,  # noqa: F401
    test_a_closed_loop_is_forgotten,  # noqa: F401
    test_a_cursor_from_the_future_is_refused_by_a_pull_and_a_gap_for_a_stream,  # noqa: F401
    test_a_cursor_of_another_epoch_is_a_gap,  # noqa: F401
    test_a_cursor_that_fell_out_of_the_history_is_a_gap,  # noqa: F401
    test_a_cursor_that_was_never_handed_out_is_refused,  # noqa: F401
    test_a_feed_that_could_not_keep_its_promises_is_refused,  # noqa: F401
    test_a_path_that_no_client_should_see_is_refused,  # noqa: F401
    test_a_stream_opens_with_an_empty_batch_that_says_where_it_stands,  # noqa: F401
    test_an_answer_has_a_fixed_number_of_bytes_at_most,  # noqa: F401
    test_an_answer_has_a_fixed_number_of_updates_at_most,  # noqa: F401
    test_an_update_larger_than_the_whole_bound_is_still_delivered,  # noqa: F401
    test_an_update_of_a_real_file_has_its_time_and_executable_bit,  # noqa: F401
    test_any_path_that_is_accepted_survives_the_wire_on_one_line,  # noqa: F401
    test_content_travels_inline_as_base64,  # noqa: F401
    test_following_gives_everything_once_while_threads_publish,  # noqa: F401
    test_no_cursor_is_from_now_on_and_zero_is_the_oldest_kept,  # noqa: F401
    test_only_what_was_handed_out_is_a_position,  # noqa: F401
    test_published_is_stamped_once_between_the_call_and_its_return,  # noqa: F401
    test_publishing_from_many_threads_gives_every_update_its_own_number,  # noqa: F401
    test_readers_of_one_stretch_share_one_batch_and_one_encoding,  # noqa: F401
    test_reading_on_from_any_cursor_in_any_batches_gives_the_rest_of_the_log,  # noqa: F401
    test_the_history_is_bounded_by_bytes_too,  # noqa: F401
)

LIKE_OURS = "3-0 previous 2 at 1.5 path ../up change added known [null,null,null,null]"  # but for its path
KEPT = 4  # feeds of one test that are open at once
keys = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def feeds() -> Iterator[None]:
    """Have the tests of the feed make feeds in a Redis, each with a key of its own."""
    opened = deque[RedisFeed]()

    def make(**options: Any) -> RedisFeed:
        while len(opened) >= KEPT:
            opened.popleft().close()
        opened.append(RedisFeed(f"redis://127.0.0.1:{its.port}/0?key=feed-{next(keys)}", **options))
        return opened[-1]

    with RedisServer() as its, pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_feed, "Feed", make)
        yield
        for each in opened:
            each.close()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis of its own, whose file keeps what it has acknowledged."""
    with RedisServer() as running:
        yield running


def until(condition: Callable[[], object]) -> None:
    """Return once the condition holds."""
    asyncio.run(soon(condition))


def seen(feed: Feed, cursor: str) -> list[int]:
    """The numbers of all updates from a cursor on."""
    found, position = list[int](), feed.position(cursor)
    while position < feed.head:
        batch = feed.read(position)
        found += [update.seq for update in batch.updates]
        position = batch.position
    return found


def reached(feed: Feed, head: int) -> None:
    """Return once its newest update is that one, and nothing troubles it."""
    until(lambda: feed.head == head and not feed.trouble)


def reads(feed: Feed, cursor: str) -> None:
    """Return once its newest update is the one with that cursor."""
    until(lambda: feed.cursor == cursor)


def gap(feed: Feed, cursor: str) -> str:
    with pytest.raises(Gap) as caught:
        feed.position(cursor)
    assert caught.value.cursor == feed.cursor
    return caught.value.reason


# --- several processes ---


def publish_some(url: str, name: str, count: int) -> None:
    with RedisFeed(url) as feed:
        for number in range(count):
            feed.publish(f"{name}/{number}")


def test_what_four_processes_publish_at_once_is_numbered_without_a_hole(server: RedisServer) -> None:
    """Every update of each is in the log once, in its publisher's order, and every replica has the same log."""
    with RedisFeed(server.url, epoch="e") as one, RedisFeed(server.url) as other:
        context = multiprocessing.get_context("spawn")
        publishers = [context.Process(target=publish_some, args=(server.url, f"{n}", 50)) for n in range(4)]
        for each in publishers:
            each.start()
        for each in publishers:
            each.join(60)
        assert [each.exitcode for each in publishers] == [0] * 4
        for feed in (one, other):
            reached(feed, 200)
            assert seen(feed, "e-0") == list(range(1, 201))
            paths = [update.path for update in feed.read(0).updates]
            for n in range(4):
                assert [path for path in paths if path.startswith(f"{n}/")] == [f"{n}/{k}" for k in range(50)]
        assert [u.json for u in one.read(0).updates] == [u.json for u in other.read(0).updates]


def test_a_cursor_that_another_process_gave_out_is_known_at_once(server: RedisServer) -> None:
    """Who is told of an update by one process and asks the next is never told that it does not exist."""
    with RedisFeed(server.url, epoch="e") as one, RedisFeed(server.url) as other:
        for number in range(1, 101):
            cursor = one.publish("a").cursor
            assert other.position(cursor) == other.head == number
        with pytest.raises(FutureCursor, match="ahead of this log, whose newest is e-100"):
            other.position("e-101")


def test_a_replica_begins_with_the_log_and_the_listing_as_they_stand(server: RedisServer) -> None:
    """Whoever comes later has the same history, bounded the same way, and the files that stand at its head."""
    with RedisFeed(server.url, epoch="e", history=50) as one:
        for number in range(1200):
            one.publish(f"{number % 70}", size=number)
        one.publish("0", "deleted")
        with RedisFeed(server.url, history=50) as other:
            assert (other.cursor, len(other)) == ("e-1201", 50)
            assert other.listing() == one.listing()
            assert len(other.listing()[1]) == 69
            assert gap(other, "e-1150") == "expired"
            assert seen(other, "e-1151") == list(range(1152, 1202))


def test_large_entries_are_read_a_few_at_a_time(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis answers nobody else meanwhile; a replica begins even where entries come as fast as it reads them."""
    monkeypatch.setattr(redis_feed, "PAGE_BYTES", 3000)
    look, found = RedisFeed._look, list[int]()

    def counting(feed: RedisFeed, after: int, *, files: bool = False) -> redis_feed.View:
        view = look(feed, after, files=files)
        found.append(len(view.entries))
        return view

    monkeypatch.setattr(RedisFeed, "_look", counting)
    enough = threading.Event()
    with RedisFeed(server.url) as one, ThreadPoolExecutor(1) as pool:

        def publish() -> None:
            while not enough.is_set():
                one.publish("a", content=bytes(600))

        publishing = pool.submit(publish)
        until(lambda: one.head > 100)
        with RedisFeed(server.url) as other:
            enough.set()
            publishing.result()
            reached(other, one.head)
            assert seen(other, "0") == list(range(1, one.head + 1))
        assert 1 < max(found) < 6


def test_a_replica_that_was_away_too_long_says_so(server: RedisServer) -> None:
    """What was trimmed before a replica read it is a gap, "expired", for those who had not got it; others go on."""
    with RedisFeed(server.url, epoch="e", history=5) as one, RedisFeed(server.url, history=5) as late:
        one.publish("a")
        until(lambda: late.head == 1)
        with late._reading:  # it is held up
            for _ in range(20):
                RedisFeed.publish(one, "a")
        until(lambda: late.cursor == "e-21")
        assert [gap(late, f"e-{n}") for n in (0, 1, 7, 15)] == ["expired"] * 4
        assert seen(late, "e-16") == [17, 18, 19, 20, 21]
        with pytest.raises(Gap, match="expired"):
            late.read(1)


# --- what becomes of Redis ---


@pytest.mark.parametrize("crash", [False, True])
def test_a_restart_of_redis_loses_nothing_and_changes_no_epoch(
    server: RedisServer, crash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its append-only file cursors stay good, and what is published meanwhile is in the log once."""
    monkeypatch.setattr(redis_feed, "PATIENCE", PATIENCE)
    with RedisFeed(server.url, epoch="e") as one, RedisFeed(server.url) as other:
        for _ in range(10):
            one.publish("a")
        until(lambda: other.head == 10)
        published: list[Update] = []
        publisher = threading.Thread(target=lambda: published.append(one.publish("meanwhile")))
        if crash:
            server.kill()
        else:
            server.end()
        publisher.start()
        server.start()
        publisher.join(PATIENCE)
        assert [update.path for update in published] == ["meanwhile"]
        for feed in (one, other):
            reached(feed, 11)
            assert [u.path for u in feed.read(feed.position("e-9")).updates] == ["a", "meanwhile"]
            assert feed.cursor == published[0].cursor == f"e-{11 + SKIP}"


def test_numbers_that_redis_may_have_lost_are_never_given_again(server: RedisServer) -> None:
    """When the end of the log is gone after a restart, who knows of it is told "epoch", and who does not goes on."""
    with RedisFeed(server.url, epoch="e") as one:
        for _ in range(10):
            one.publish("a", size=1)
        client = redis.Redis(port=server.port)
        client.xtrim("updates", maxlen=5)  # then as if the last four had not been written to the disk
        for seq in range(7, 11):
            client.xdel("updates", f"{seq}-0")
        client.hset("updates:log", mapping={"last": 6, "next": 7})
        client.execute_command("XSETID", "updates", "6-0")  # type: ignore[no-untyped-call]
        client.close()
        server.restart()
        with RedisFeed(server.url) as fresh:
            until(lambda: one.cursor == "e-6" and not one.away)
            for feed in (one, fresh):
                assert gap(feed, "e-7") == gap(feed, "e-10") == "epoch"
            with pytest.raises(Gap, match="epoch"):
                one.read(10)  # a stream that stood there
            after = fresh.publish("b").cursor
            for feed in (one, fresh):
                reads(feed, after)
                assert seen(feed, "e-6") == [7 + SKIP]
                assert gap(feed, "e-8") == "epoch"


def fail_over(server: RedisServer, replica: RedisServer, lagging: Callable[[], object]) -> None:
    """Let another Redis take over, at the same address, without the last of what the first one has acknowledged."""
    with (
        contextlib.closing(redis.Redis(port=server.port)) as old,
        contextlib.closing(redis.Redis(port=replica.port)) as new,
    ):
        deadline = time.monotonic() + 4 * PATIENCE  # a first synchronisation that fails is begun again a second later
        while new.xlen("updates") != old.xlen("updates"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        new.replicaof("NO", "ONE")
        lagging()
        server.kill()
        new.config_set("port", str(server.port))


def test_a_replica_that_takes_over_keeps_the_epoch_and_what_it_had_not_got_is_told(server: RedisServer) -> None:
    """A failover: cursors stay good behind the same address; whoever knows of an update that lagged is told "epoch"."""
    with contextlib.closing(redis.Redis(port=server.port)) as old:
        old.config_set("repl-diskless-sync-delay", "0")
        replicates = "--replicaof", "127.0.0.1", str(server.port)
        with RedisServer(*replicates) as replica, RedisFeed(server.url, epoch="e") as one:
            one.publish("a", size=1, sha256="00")
            one.publish("b")
            fail_over(server, replica, lambda: one.publish("lagging"))
            with RedisFeed(server.url) as fresh:
                until(lambda: one.cursor == "e-2" and not one.away)
                assert set(fresh.listing()[1]) == set(one.listing()[1]) == {"a", "b"}
                for feed in (one, fresh):
                    assert gap(feed, "e-3") == "epoch"
                after = fresh.publish("c").cursor
                assert after == f"e-{3 + SKIP}"
                for feed in (one, fresh):
                    reads(feed, after)
                    assert seen(feed, "e-1") == [2, 3 + SKIP]


@pytest.mark.parametrize("lost", ["FLUSHALL", "DEL updates:log", "DEL updates:files", "HDEL updates:files a"])
def test_a_log_that_is_lost_is_another_epoch_for_everybody(server: RedisServer, lost: str) -> None:
    """A stream that follows is told by a reset, an old cursor is a gap, and all processes agree on the new epoch."""

    async def body() -> None:
        with RedisFeed(server.url, epoch="e") as one, RedisFeed(server.url) as other:
            one.publish("a", size=1, sha256="00")
            await soon(lambda: other.head == 1)
            closing, news = Closing(other), list[Batch | Gap]()

            async def follow() -> None:
                async for each in other.follow(1, closing):
                    news.append(each)

            following = asyncio.create_task(follow())
            client = redis.Redis(port=server.port)
            await asyncio.to_thread(client.execute_command, *lost.split())
            client.close()
            await soon(lambda: one.epoch == other.epoch != "e" and news)
            await asyncio.to_thread(one.publish, "b")
            await soon(lambda: len(news) == 2)
            assert isinstance(news[0], Gap)
            assert news[0].as_dict() == {"reason": "epoch", "cursor": f"{one.epoch}-0", "oldest": f"{one.epoch}-0"}
            assert numbers(news[1]) == [1]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(redis_feed.RedisFeed, "catch_up", lambda feed: pytest.fail("a herd would ask Redis"))
                assert gap(one, "e-1") == gap(other, "e-1") == "epoch"
            closing.close()
            await asyncio.wait_for(following, PATIENCE)

    on_a_loop(body)()


def test_without_redis_a_feed_says_so_and_heals_by_itself(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It knows its trouble, gives its streams up after a while, refuses to publish, and is well when Redis is back."""
    monkeypatch.setattr(redis_feed, "OUTAGE", 0.2)
    monkeypatch.setattr(redis_feed, "PATIENCE", 0.1)
    with RedisFeed(server.url, epoch="e") as feed:
        feed.publish("a")
        closing = Closing(feed)
        server.kill()
        until(closing.is_set)
        assert feed.away
        assert feed.trouble is not None
        assert re.fullmatch(r"Redis at 127\.0\.0\.1:\d+ cannot be reached \(.*\)", feed.trouble)
        with pytest.raises(Unavailable, match="cannot be reached"):
            feed.publish("b")
        assert numbers(feed.read(0)) == [1]
        server.start()
        until(lambda: not feed.trouble and not closing.is_set())
        feed.publish("c")
        assert [u.path for u in feed.read(0).updates] == ["a", "c"]
    assert sum("cannot be reached" in record.message for record in caplog.records) == 1
    assert sum("is well again" in record.message for record in caplog.records) == 1


def test_a_feed_that_waits_for_redis_is_lost_until_it_is_there(server: RedisServer) -> None:
    """It begins without Redis, as one that has been gone for long; then it is as any other."""
    with RedisFeed(server.url, epoch="e") as before:
        before.publish("a")
    server.end()
    with RedisFeed(server.url, waits=True) as feed:
        assert feed.lost
        assert "cannot be reached" in str(feed.trouble)
        server.start()
        until(lambda: not feed.trouble)
        assert not feed.lost
        assert (feed.cursor, seen(feed, "e-0")) == ("e-1", [1])


def test_a_redis_that_hangs_is_gone_and_streams_go_on_when_it_answers(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the midst it takes connections and says nothing: 503 from /healthz, then all is as it was."""
    monkeypatch.setattr(redis_feed, "ANSWER", 3.0)
    monkeypatch.setattr(redis_feed, "PAUSE", 0.1)

    async def body() -> None:
        with RedisFeed(server.url, epoch="e") as feed, serve(sse.create_app(feed)) as served, Raw(served) as stream:
            async with httpx.AsyncClient(base_url=served.url, **HTTP) as http:
                stream.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
                await stream.read_until(b"id: e-0\n")
                assert (await http.get("/healthz")).status_code == 200
                server.process.send_signal(signal.SIGSTOP)
                try:
                    await soon(lambda: feed.trouble)
                    assert f"{feed.trouble}".endswith("does not answer within 3 s")
                    assert (await http.get("/healthz")).status_code == 503
                finally:
                    server.process.send_signal(signal.SIGCONT)
                await soon(lambda: not feed.trouble)
                assert (await http.get("/healthz")).status_code == 200
                await asyncio.to_thread(feed.publish, "later")
                assert b'"later"' in await stream.read_until(b"id: e-1\n")

    on_a_loop(body)()


@pytest.mark.parametrize("name", ["127.0.0.1", "elsewhere.example"])
def test_a_feed_by_tls_is_published_and_read_where_the_certificate_is_the_servers(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`rediss:` encrypts, and trusts who has a certificate of that name from an authority that the system trusts."""
    authority, trusted, own = trustme.CA(), str(tmp_path / "authority.pem"), str(tmp_path / "own.pem")
    authority.cert_pem.write_to_path(trusted)
    authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(own)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    options = ["--tls-port", f"{port}", "--tls-cert-file", own, "--tls-key-file", own, "--tls-ca-cert-file", trusted]
    try:
        server = RedisServer(*options, "--tls-auth-clients", "no")
    except RedisServerError as error:
        pytest.skip(f"this Redis speaks no TLS: {error}")
    with server:
        url = f"rediss://127.0.0.1:{port}/0"
        with pytest.raises(Unavailable, match=f"^Redis at 127.0.0.1:{port} cannot be reached .*self-signed") as caught:
            RedisFeed(url)
        assert "\n" not in str(caught.value)
        monkeypatch.setenv("SSL_CERT_FILE", trusted)
        if name != "127.0.0.1":
            with pytest.raises(Unavailable, match=r"cannot be reached .*not valid for '127.0.0.1'"):
                RedisFeed(url)
            return
        with RedisFeed(url, epoch="e") as one, RedisFeed(server.url) as other:
            cursor = one.publish("a").cursor
            assert other.position(cursor) == 1
            assert [update.path for update in other.read(0).updates] == ["a"]
            other.publish("b")
            reached(one, 2)


def test_a_redis_that_is_full_takes_no_update_and_keeps_what_it_has(server: RedisServer) -> None:
    """At its limit of memory publishing is refused with one line; what is there can be read; with room it goes on."""
    with RedisFeed(server.url) as feed, contextlib.closing(redis.Redis(port=server.port)) as client:
        feed.publish("a")
        client.config_set("maxmemory", "1")
        with pytest.raises(Unavailable, match=r"is full \(maxmemory\)"):
            feed.publish("b")
        assert feed.trouble
        client.script_flush()
        feed.read_on()  # as its reader does
        assert not feed.away
        with RedisFeed(server.url) as another:
            assert [u.path for u in another.read(0).updates] == [u.path for u in feed.read(0).updates] == ["a"]
        client.config_set("maxmemory", "0")
        feed.publish("c")
        assert feed.trouble is None
        assert [u.path for u in feed.read(0).updates] == ["a", "c"]
        with pytest.raises(ValueError, match="at most 16 MiB"):
            feed.publish("large", content=bytes(2**24 + 1))


@pytest.mark.parametrize("entry", ["* by hand", "3-0 by hand", "2-1 by hand", "3-0 previous 2", LIKE_OURS])
def test_what_is_no_update_is_said_and_hides_nothing(server: RedisServer, entry: str) -> None:
    """An entry of somebody else's is trouble in every process, and no end of its reader; without it all goes on."""
    with RedisFeed(server.url, epoch="e") as one, RedisFeed(server.url) as other:
        one.publish("a")
        one.publish("b")
        reads(other, "e-2")
        with contextlib.closing(redis.Redis(port=server.port)) as client:
            client.execute_command("XADD", "updates", *entry.split())  # type: ignore[no-untyped-call]
            said = rf"Redis at {one.place} has something else under the key 'updates'( \(.+\))?"  # or was slow, before
            until(lambda: all(re.fullmatch(said, str(feed.trouble)) for feed in (one, other)))
            with pytest.raises(Unavailable, match=r"has something else under the key 'updates'"):
                RedisFeed(server.url)
            client.delete("updates")
        until(lambda: not (one.trouble or other.trouble))
        assert other.publish("c").cursor == "e-3"
        reads(one, "e-3")
        assert seen(one, "e-1") == seen(other, "e-1") == [2, 3]


def test_whatever_ends_a_look_is_said_and_the_reader_goes_on(server: RedisServer) -> None:
    """A reader that had died would look like a log without news."""
    with RedisFeed(server.url, epoch="e") as feed, pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed, "_look", lambda *_, **__: 1 / 0)
        until(lambda: feed.trouble)
        assert feed.trouble == f"Redis at {feed.place} is not understood (ZeroDivisionError: division by zero)"
        patch.undo()
        until(lambda: not feed.trouble)
        feed.publish("a")
        reads(feed, "e-1")


def test_a_log_is_lost_while_threads_publish_and_none_of_them_fails(server: RedisServer) -> None:
    """Whoever finds that it is gone makes it anew, and breaks nobody's connection."""
    with RedisFeed(server.url) as feed, contextlib.closing(redis.Redis(port=server.port)) as client:

        def publish() -> None:
            for _ in range(30):
                feed.publish("a")

        with ThreadPoolExecutor(4) as pool:
            publishing = [pool.submit(publish) for _ in range(2)] + [pool.submit(feed.read_on) for _ in range(30)]
            for each in publishing:
                while not each.done():
                    client.flushall()
                    wait([each], 0.02)
                each.result()
        assert not feed.trouble


def test_how_many_there_were_is_the_same_in_all_processes(server: RedisServer) -> None:
    """After a restart of Redis, which leaves numbers out, a process that begins counts as the others do."""
    with RedisFeed(server.url, history=1) as one:
        one.publish("a")
        server.restart()
        until(lambda: not one.trouble)
        one.publish("b")
        one.publish("c")
        with RedisFeed(server.url) as other:
            assert one.published == other.published == 3


def test_an_answer_that_got_lost_makes_no_second_update(server: RedisServer) -> None:
    """A publisher that is cut off before it has its answer asks again, and the update is in the log once."""
    with RedisFeed(server.url, epoch="e") as feed:
        script, cut = feed._publish, list[str]()

        def answer_lost(**words: Any) -> object:
            answer = script(**words)
            if not cut:
                cut.append("once")
                raise redis.ConnectionError("Connection reset by peer")
            return answer

        feed._publish = answer_lost  # type: ignore[assignment]
        assert feed.publish("a").seq == 1
        assert feed.publish("b").seq == 2
        assert cut
        assert [u.path for u in feed.read(0).updates] == ["a", "b"]


@pytest.mark.parametrize(
    "url",
    ["redis://", "http://127.0.0.1/0", "redis://127.0.0.1:x/0", "redis://127.0.0.1/first", "redis://h/0?key=a&key=b",
     "redis://h/0?db=1", "redis://h/0?key", "127.0.0.1:6379"],
)  # fmt: skip
def test_a_url_that_names_no_redis_is_refused(url: str) -> None:
    """What is no address of a Redis, or asks for what there is not, raises ValueError with the form."""
    with pytest.raises(ValueError, match=r"^a feed is redis://HOST:PORT/DB\?key=KEY"):
        RedisFeed(url)


def test_a_url_has_a_user_a_password_and_a_key() -> None:
    """They are taken from it, and what is shown of it has no password."""
    place, key, options = parsed("rediss://me:p%40ss@[::1]/3?key=%7Bu%7D")
    assert (place, key) == ("[::1]:6379", "{u}")
    assert options == {"host": "::1", "port": 6379, "db": 3, "username": "me", "password": "p@ss", "ssl": True}


def test_what_redis_refuses_is_one_line(server: RedisServer) -> None:
    """A wrong password, another type under the key, a replica, nobody there: each says what it is, without secrets."""
    place = f"127.0.0.1:{server.port}"
    with contextlib.closing(redis.Redis(port=server.port)) as client:
        client.set("taken", "by somebody else")
        client.xadd("stream", {"a": "stream", "of": "somebody else"})
        for key in ("taken", "stream"):
            with pytest.raises(Unavailable, match=f"^Redis at {place} has something else under the key '{key}'$"):
                RedisFeed(f"redis://{place}/0?key={key}")
            assert client.exists(key)
        client.replicaof("127.0.0.1", "1")
        with pytest.raises(Unavailable, match=f"^Redis at {place} is a replica of another"):
            RedisFeed(f"redis://{place}/0?key=new")
        client.replicaof("NO", "ONE")
        client.config_set("requirepass", "right")
        with pytest.raises(
            Unavailable, match=f"^Redis at {place} lets nobody in with this name and password"
        ) as caught:
            RedisFeed(f"redis://:secret@{place}")
        assert "secret" not in str(caught.value)
        client.auth("right")
        client.acl_setuser("few", enabled=True, nopass=True, keys="*", commands=["+@all", "-eval"])
        with pytest.raises(Unavailable, match=f"^Redis at {place} lets this user do too little .*'eval'"):
            RedisFeed(f"redis://few:any@{place}")
        client.hset("updates:log", "of", "somebody else")
        with pytest.raises(Unavailable, match=f"^Redis at {place} has something else under the key 'updates'$"):
            RedisFeed(f"redis://:right@{place}")
        assert client.hgetall("updates:log") == {b"of": b"somebody else"}
    RedisFeed(f"redis://:right@{place}?key=free").close()
    server.kill()
    with pytest.raises(Unavailable, match=f"^Redis at {place} cannot be reached"):
        RedisFeed(server.url)


def test_one_of_a_cluster_says_so() -> None:
    """Its keys are at several servers: what a feed needs must be at one."""
    with RedisServer("--cluster-enabled", "yes", append_only=False) as server:
        with contextlib.closing(redis.Redis(port=server.port)) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)  # type: ignore[no-untyped-call]
        with pytest.raises(Unavailable, match="is one of a cluster, and has not all keys of a feed"):
            RedisFeed(f"redis://127.0.0.1:{server.port}")


# --- the lease, and the files that stand there ---


def test_only_who_holds_the_lease_publishes(server: RedisServer) -> None:
    """Whoever slept while its lease ran out, and another took it, publishes nothing, and cannot renew or give back."""
    with RedisFeed(server.url) as sleeper, RedisFeed(server.url) as other:
        assert sleeper.hold("first", 60)
        sleeper.fence = "first"
        sleeper.publish("a")
        assert sleeper.renew("first", 0.05)
        until(lambda: other.hold("second", 60))
        with pytest.raises(Fenced):
            sleeper.publish("b")
        with pytest.raises(Fenced):
            sleeper.adopt({})
        assert not sleeper.renew("first", 60)
        assert not sleeper.renew("first", 0)
        other.fence = "second"
        other.publish("c")
        assert [u.path for u in other.read(0).updates] == ["a", "c"]


@pytest.mark.parametrize("milliseconds", [None, 3_600_000])
def test_a_lease_that_runs_too_long_is_nobodys(server: RedisServer, milliseconds: int | None) -> None:
    """As it is when the clock of Redis was set back, or somebody wrote it by hand: no lease is kept for an hour."""
    with RedisFeed(server.url) as feed, contextlib.closing(redis.Redis(port=server.port)) as client:
        client.set("updates:holder", "nobody", px=milliseconds)
        assert feed.hold("first", 5)
        assert not feed.hold("second", 5)


def test_without_room_for_a_lease_those_who_wait_for_it_say_so(server: RedisServer) -> None:
    """While somebody has the lease, a full Redis is no trouble of the others; when nobody has, it is everybody's."""
    with (
        RedisFeed(server.url) as one,
        RedisFeed(server.url) as other,
        contextlib.closing(redis.Redis(port=server.port)) as client,
    ):
        assert one.hold("first", 60)
        client.config_set("maxmemory", "1")
        assert not other.hold("second", 60)
        assert not other.trouble
        with pytest.raises(Unavailable, match="is full"):
            one.publish("a")
        assert one.renew("first", 0)
        for feed in (one, other):
            with pytest.raises(Unavailable, match="is full"):
                feed.hold("second", 60)
            assert "is full" in (feed.trouble or "")
        client.config_set("maxmemory", "0")
        assert other.hold("second", 60)
        assert not one.hold("first", 60)  # another's is to publish what one could not
        assert one.trouble is other.trouble is None


def test_who_has_the_lease_keeps_it_while_redis_is_full(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other process could publish either, so it is no trouble of theirs; with room the source begins again."""
    monkeypatch.setattr(shared, "LEASE", 60.0)  # however busy this machine is

    async def body() -> None:
        tried = list[RedisFeed]()

        async def source(feed: RedisFeed) -> None:
            tried.append(feed)
            while True:
                await asyncio.to_thread(feed.publish, "a")

        with (
            RedisFeed(server.url) as one,
            RedisFeed(server.url) as other,
            contextlib.closing(redis.Redis(port=server.port)) as client,
        ):
            leading = [asyncio.create_task(lead(one, functools.partial(source, one)))]
            await soon(lambda: one.head)
            leading.append(asyncio.create_task(lead(other, functools.partial(source, other))))
            client.config_set("maxmemory", "1")
            await soon(lambda: len(tried) >= 3)
            assert set(tried) == {one}
            assert "is full" in (one.trouble or "")
            assert other.trouble is None
            before = one.head
            client.config_set("maxmemory", "0")
            await soon(lambda: one.head > before and not one.trouble)
            for task in leading:
                task.cancel()
            await asyncio.wait(leading)

    on_a_loop(body)()


def test_a_restart_of_redis_takes_the_lease(server: RedisServer) -> None:
    """Something may be lost, so whoever fills the log has to compare it with what stands there again."""
    with RedisFeed(server.url) as feed:
        assert feed.hold("first", 60)
        feed.fence = "first"
        server.restart()
        with pytest.raises(Fenced):
            feed.publish("a")
        until(lambda: not feed.trouble)
        assert feed.hold("second", 60)


def test_the_source_moves_to_another_process_when_its_holder_is_gone(server: RedisServer) -> None:
    """One source runs at a time; the next begins when the lease is given back. What a source raises is raised."""

    async def body() -> None:
        running: list[str] = []

        def source(name: str) -> Callable[[], Any]:
            async def run() -> None:
                running.append(name)
                try:
                    await asyncio.sleep(PATIENCE)
                finally:
                    running.remove(name)

            return run

        with RedisFeed(server.url) as one, RedisFeed(server.url) as other:
            first = asyncio.create_task(lead(one, source("one")))
            await soon(lambda: running == ["one"])
            second = asyncio.create_task(lead(other, source("other")))
            first.cancel()
            await asyncio.wait({first})
            await soon(lambda: running == ["other"])
            second.cancel()
            await asyncio.wait({second})

            async def failing() -> None:
                raise OSError("no such directory")

            with pytest.raises(OSError, match="no such directory"):
                await asyncio.wait_for(lead(one, failing), PATIENCE)

    on_a_loop(body)()


@pytest.mark.parametrize("empty", [True, False])
def test_who_cannot_see_the_directory_leaves_the_lease_to_who_can(
    server: RedisServer, tmp_path: Path, empty: bool
) -> None:
    """One host's directory is gone, or has nothing mounted on it: it says so, and another announces what changes."""

    async def body() -> None:
        places = [tmp_path / "one", tmp_path / "other"]
        for place in places:
            place.mkdir()
            (place / "a").write_text("a")
        with RedisFeed(server.url, watched=True) as one, RedisFeed(server.url, watched=True) as other:
            leading = list[asyncio.Task[None]]()
            for feed, place in zip((one, other), places, strict=True):
                tree = SharedTree(feed, place)
                source = functools.partial(watch_shared, feed, tree)
                leading.append(asyncio.create_task(lead(feed, source, tree.unseen)))
                await soon(lambda: other.lists)
            places[0].rename(tmp_path / "away")
            if empty:
                places[0].mkdir()
            (places[1] / "b").write_text("b")
            await soon(lambda: "b" in one.listing()[1])
            await soon(lambda: one.delayed)
            assert str(one.delayed).startswith(f"{places[0]} " + ("is empty" if empty else "cannot be read"))
            assert other.delayed is None
            if empty:
                places[0].rmdir()
            (tmp_path / "away").rename(places[0])
            await soon(lambda: one.delayed is None)
            assert set(one.listing()[1]) == {"a", "b"}
            for task in leading:
                task.cancel()
            await asyncio.wait(leading)

    on_a_loop(body)()


def test_the_first_look_is_adopted_and_the_next_one_only_compared(server: RedisServer) -> None:
    """What stood there first is listed and not published; whoever takes over publishes what differs from the log."""
    first = {"a": Known(1, "aa", 1.0, False), "b": Known(2, "bb", 2.0, False), "d/e": Known(3, "ee", 3.0, False)}
    with RedisFeed(server.url, epoch="e", watched=True) as one, RedisFeed(server.url, watched=True) as other:
        assert one.starting() == other.starting() == "waiting for the first look of another process"
        one.adopt(first)
        until(lambda: other.starting is None and one.starting is None)
        assert one.listing() == other.listing() == (0, first)
        with contextlib.closing(redis.Redis(port=server.port)) as client:
            assert client.ttl("updates:files") == -1  # it stays
        other.adopt({"a": Known(1, "aa", 9.0, False), "b": Known(2, "cc", 9.0, False), "d": Known(4, "dd", 4.0, True)})
        until(lambda: one.head == 4)
        changes = [(u.change, u.path) for u in one.read(0).updates]
        assert changes == [("deleted", "d/e"), ("modified", "a"), ("modified", "b"), ("added", "d")]
        assert set(one.listing()[1]) == {"a", "b", "d"}


def test_a_new_log_of_a_watched_directory_waits_for_a_look(server: RedisServer) -> None:
    """After FLUSHALL there is no listing, rather than an empty one, until somebody has looked again."""
    with RedisFeed(server.url, epoch="e", watched=True) as feed:
        feed.adopt({"a": Known(1, "aa", 1.0, False)})
        with contextlib.closing(redis.Redis(port=server.port)) as client:
            client.flushall()
        until(lambda: feed.epoch != "e")
        assert feed.starting() == "waiting for the first look of another process"
        feed.adopt({"b": Known(1, "bb", 1.0, False)})
        assert feed.starting is None
        assert list(feed.listing()[1]) == ["b"]
        assert feed.cursor == f"{feed.epoch}-0"


def test_closing_takes_no_time(server: RedisServer) -> None:
    """A feed that waits for news ends at once, and a second close does nothing."""
    feed = RedisFeed(server.url)
    feed.close()
    assert not feed._reader.is_alive()
    feed.close()
