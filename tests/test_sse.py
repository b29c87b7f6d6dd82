"""The contract of Server-Sent Events: every byte of the stream, where it begins, and how it ends."""

import asyncio
import functools
import json
import time
from collections.abc import Callable

import pytest

from lab.clients.event_stream import EventStreamParser
from servers import models as course
from servers import sse
from servers.background import serve
from servers.feed import Feed
from servers.service import Service
from tests.support import PATIENCE, Events, Raw, events, http, loop_of, on_a_loop, tasks_of, unsent, until
from tests.test_pulls import BAD_CURSORS, EPOCH, NAMES, feed_of


@pytest.fixture(params=[False, True], ids=["readable", "fast"])
def create_app(request: pytest.FixtureRequest) -> Callable[..., Service]:
    """What makes the server, readable or fast."""
    return functools.partial(sse.create_app, fast=request.param)


def block(feed: Feed, seq: int) -> str:
    """The block of an update, as the contract writes it."""
    update = feed.read(seq - 1).updates[0]
    return f"event: update\nid: {update.cursor}\ndata: {update.json.decode()}"


@on_a_loop
async def test_a_stream_opens_with_retry_and_a_block_that_has_only_the_cursor_of_now(
    create_app: Callable[..., Service],
) -> None:
    """A client cut before its first update knows where to resume, and when."""
    with serve(create_app(feed_of(3), retry=1234)) as server:
        async with events(server) as stream:
            assert stream.response.status_code == 200
            assert stream.response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert stream.response.headers["cache-control"] == "no-store"
            assert stream.response.headers["x-accel-buffering"] == "no"
            assert await stream.block() == "retry: 1234"
            assert await stream.block() == f"id: {EPOCH}-3"


@on_a_loop
async def test_every_update_is_an_event_with_its_cursor_and_its_json(create_app: Callable[..., Service]) -> None:
    """The bytes are the contract's: event, id, data, and nothing else, with newlines that are newlines."""
    feed = feed_of(3)
    app = create_app(feed)
    with serve(app) as server:
        async with events(server) as stream:
            assert await stream.block() == "retry: 2000"
            assert await stream.block() == f"id: {EPOCH}-3"
            feed.publish("first", "added", size=1, sha256="ab" * 32)
            assert await stream.block() == block(feed, 4)
            feed.publish("first", "deleted")
            feed.publish("second", content=b"inline")
            assert await stream.block() == block(feed, 5)
            assert await stream.block() == block(feed, 6)
    assert app.traffic.delivered == 3


@on_a_loop
async def test_names_of_all_kinds_arrive_unchanged(create_app: Callable[..., Service]) -> None:
    """A name that looks like the stream's own syntax forges nothing."""
    feed = Feed()
    with serve(create_app(feed)) as server:
        async with events(server) as stream:
            await stream.block(), await stream.block()
            for name in NAMES:
                feed.publish(name)
            assert [(await stream.update())["path"] for _ in NAMES] == NAMES


@on_a_loop
async def test_after_0_and_empty_mean_the_oldest_kept_and_never_a_gap(create_app: Callable[..., Service]) -> None:
    """Whoever wants all there is gets it, also when the beginning is gone; the opening block says where that is."""
    with serve(create_app(feed_of(10, history=4))) as server:
        for after in ("0", ""):
            async with events(server, after=after) as stream:
                assert await stream.block() == "retry: 2000"
                assert await stream.block() == f"id: {EPOCH}-6"
                assert [(await stream.update())["seq"] for _ in range(4)] == [7, 8, 9, 10]


@on_a_loop
async def test_a_client_far_behind_catches_up_and_stays_on_the_stream(create_app: Callable[..., Service]) -> None:
    """More updates than a batch holds come in order, each once, and then the news."""
    feed = feed_of(1201)
    with serve(create_app(feed)) as server:
        async with events(server, after=f"{EPOCH}-1") as stream:
            await stream.block(), await stream.block()
            seqs = [(await stream.update())["seq"] for _ in range(1200)]
            feed.publish("news")
            seqs.append((await stream.update())["seq"])
    assert seqs == list(range(2, 1203))


@on_a_loop
async def test_last_event_id_wins_over_after(create_app: Callable[..., Service]) -> None:
    """A browser that reconnects repeats the old URL: its header knows more; an empty one says nothing."""
    with serve(create_app(feed_of(5))) as server:
        for headers, after, first in (
            ({"Last-Event-ID": f"{EPOCH}-3"}, f"{EPOCH}-1", 4),
            ({"Last-Event-ID": f"{EPOCH}-1"}, f"{EPOCH}-3", 2),
            ({"last-event-id": f"{EPOCH}-3"}, "0", 4),
            ({"Last-Event-ID": "0"}, f"{EPOCH}-3", 1),
            ({"Last-Event-ID": ""}, f"{EPOCH}-2", 3),
            ({}, f"{EPOCH}-2", 3),
        ):
            async with events(server, headers, after=after) as stream:
                await stream.block()
                assert await stream.block() == f"id: {EPOCH}-{first - 1}"
                assert (await stream.update())["seq"] == first


@pytest.mark.parametrize(
    ("cursor", "reason"),
    [(f"{EPOCH}-5", "expired"), ("0ther-8", "epoch"), (f"{EPOCH}-11", "epoch")],
)
@on_a_loop
async def test_a_gap_is_a_reset_event_and_the_stream_goes_on_from_its_id(
    create_app: Callable[..., Service], cursor: str, reason: str
) -> None:
    """Expired, of another epoch or of this one's future: the client is told at once, in the place of the opening id."""
    feed = feed_of(10, history=4)
    app = create_app(feed)
    with serve(app) as server:
        async with events(server, {"Last-Event-ID": cursor}) as stream:
            assert stream.response.status_code == 200
            assert await stream.block() == "retry: 2000"
            data = json.dumps({"reason": reason, "cursor": f"{EPOCH}-10", "oldest": f"{EPOCH}-6"})
            assert await stream.block() == f"event: reset\nid: {EPOCH}-10\ndata: {data}"
            feed.publish("later")
            assert (await stream.update())["seq"] == 11
    assert (app.traffic.resets, app.traffic.delivered) == (1, 1)


@on_a_loop
async def test_a_stream_that_falls_off_the_history_is_reset_and_goes_on(create_app: Callable[..., Service]) -> None:
    """Three updates published at once into a history of two are a gap, never a hole."""
    feed = Feed(history=2)
    with serve(create_app(feed)) as server:
        async with events(server) as stream:
            await stream.block(), await stream.block()

            def burst() -> None:
                for number in range(3):
                    feed.publish(f"{number}")

            loop_of(server).call_soon_threadsafe(burst)
            event, name, data = (await stream.block()).split("\n")
            assert (event, name) == ("event: reset", f"id: {feed.cursor}")
            assert json.loads(data.removeprefix("data: "))["reason"] == "expired"
            feed.publish("later")
            assert (await stream.update())["path"] == "later"


@on_a_loop
async def test_a_malformed_cursor_is_refused_in_one_sentence(create_app: Callable[..., Service]) -> None:
    """In the query it is a 400, not a stream; only the future of this epoch is a reset."""
    with serve(create_app(feed_of(3))) as server:
        async with http(server) as client:
            for query in (query for name, query in BAD_CURSORS.items() if name != "from the future"):
                answer = await client.get(f"/events?{query}")
                assert answer.status_code == 400, query
                assert 10 < len(answer.json()["detail"]) < 120


FOREIGN_IDS = (b"yesterday", b"42", b"urn:uuid:5c0d", b"e0e0-1, e0e0-2", b"aaaaaaaa-3", b"\xff\xfe", b"a" * 5000)


@pytest.mark.parametrize("model", ["sse", "file-updates", "demo"])
@on_a_loop
async def test_a_foreign_last_event_id_is_a_reset(model: str) -> None:
    """Another server's id, of any form, is answered by a reset, which an EventSource survives, and news goes on."""
    feed = feed_of(3)
    place = "/sse/events" if model == "demo" else "/events"
    options: dict[str, float] = {"rate": 0.0} if model == "demo" else {}
    with serve(course.model(model).create_app(feed, **options)) as server:
        async with http(server) as client:
            for foreign in FOREIGN_IDS:
                async with (
                    asyncio.timeout(20),
                    client.stream("GET", f"{place}?after=e0e0-1", headers={b"Last-Event-ID": foreign}) as answer,
                ):
                    assert answer.status_code == 200, foreign
                    lines = answer.aiter_lines()
                    got = [await anext(lines) for _ in range(6)]
                    assert got[2:4] == ["event: reset", f"id: {feed.cursor}"], foreign
                    assert json.loads(got[4].removeprefix("data: "))["reason"] == "epoch"
                    feed.publish("later")
                    assert await anext(lines) == "event: update"


@on_a_loop
async def test_a_heartbeat_comment_comes_at_its_interval(create_app: Callable[..., Service]) -> None:
    """In silence there is a comment each heartbeat, never earlier, and a client's parser sees nothing of it."""
    feed = Feed()
    with serve(create_app(feed, heartbeat=0.2)) as server:
        start = time.perf_counter()
        async with events(server) as stream:
            await stream.block(), await stream.block()
            for beat in range(1, 4):
                assert await stream.block() == ": heartbeat"
                assert time.perf_counter() - start >= 0.2 * beat
            feed.publish("news")
            while (next_block := await stream.block()) == ": heartbeat":
                pass
            assert next_block == block(feed, 1)
    assert EventStreamParser().feed(b": heartbeat\n\n") == []


@on_a_loop
async def test_without_a_heartbeat_due_there_is_silence(create_app: Callable[..., Service]) -> None:
    """The default interval is 15 s: an idle stream says nothing before."""
    feed = Feed()
    with serve(create_app(feed)) as server:
        async with events(server) as stream:
            await stream.block(), await stream.block()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await stream.block()


@pytest.mark.parametrize("leave", ["closes", "resets"])
@on_a_loop
async def test_a_silent_client_that_leaves_frees_its_slot_at_once(
    create_app: Callable[..., Service], leave: str
) -> None:
    """Nothing is published and no heartbeat is due: the server notices all the same, and no task stays."""
    app = create_app(Feed())
    with serve(app) as server:
        async with events(server):  # the first stream starts sse-starlette's own watcher of the loop
            pass
        await until(lambda: app.traffic.held == 0)
        await until(lambda: "RequestResponseCycle.run_asgi" not in tasks_of(server))
        before = tasks_of(server)
        clients = [Raw(server) for _ in range(10)]
        for client in clients:
            client.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
            await client.read_until(b"id: ")
        assert app.traffic.held == 10
        assert len(tasks_of(server)) >= len(before) + 10
        for client in clients:
            client.socket.close() if leave == "closes" else client.reset()
        await until(lambda: app.traffic.held == 0)
        await until(lambda: tasks_of(server) == before)


BIG = b"x" * 100_000  # each update some 133 kB: the kernel's buffers hold a few dozen


async def overtake(feed: Feed, fast: Events, count: int) -> None:
    """Publish, and have one client read each update before the next is published."""
    for number in range(count):
        feed.publish(f"{number}", content=BIG)
        assert (await fast.update())["path"] == f"{number}"


@on_a_loop
async def test_a_client_that_stops_reading_stops_nobody_and_is_reset_when_it_reads_on(
    create_app: Callable[..., Service],
) -> None:
    """The others get everything in time; the server keeps a bounded amount for the slow one; it never gets a hole."""
    feed = Feed(history=20)
    app = create_app(feed)
    with serve(app) as server:
        async with events(server) as slow, events(server) as fast:
            for stream in slow, fast:
                await stream.block(), await stream.block()
            await overtake(feed, fast, 150)
            assert unsent(server) <= feed.history * 1.4 * len(BIG) + 65536
            position = read = resets = 0
            while position < feed.head:  # when the kernel took how much of it is the machine's affair
                event, name, _ = (await slow.block()).split("\n")
                seq = int(name.rpartition("-")[2])
                if event == "event: update":
                    assert seq == position + 1
                    read += 1
                else:
                    assert event == "event: reset"
                    resets += 1
                position = seq
            assert resets >= 1
            assert read < 150
            feed.publish("later")
            assert (await slow.update())["path"] == (await fast.update())["path"] == "later"
    assert app.traffic.resets == resets


@on_a_loop
async def test_a_client_that_stops_reading_gets_everything_that_the_history_still_holds(
    create_app: Callable[..., Service],
) -> None:
    """Its cursor waits for it, and so does the log."""
    feed = Feed()
    with serve(create_app(feed)) as server:
        async with events(server) as slow, events(server) as fast:
            for stream in slow, fast:
                await stream.block(), await stream.block()
            await overtake(feed, fast, 120)
            assert unsent(server) > 0
            assert [(await slow.update())["seq"] for _ in range(120)] == list(range(1, 121))


@on_a_loop
async def test_a_client_that_leaves_without_having_read_frees_its_slot(create_app: Callable[..., Service]) -> None:
    """Also with a full buffer between them."""
    feed = Feed()
    app = create_app(feed)
    with serve(app) as server, Raw(server) as client:
        client.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: app.traffic.held)
        for number in range(120):
            feed.publish(f"{number}", content=BIG)
        await until(lambda: unsent(server) > 0)
        client.socket.close()
        await until(lambda: app.traffic.held == 0)
        await until(lambda: unsent(server) == 0)


@on_a_loop
async def test_a_stop_ends_the_stream_cleanly_and_a_restart_is_resumed_without_a_gap(
    create_app: Callable[..., Service],
) -> None:
    """The body ends as any body does; the next server on the same feed goes on from the last id."""
    feed = Feed()
    with serve(create_app(feed)) as server:
        async with events(server) as stream:
            await stream.block(), await stream.block()
            feed.publish("before")
            assert (await stream.update())["path"] == "before"
            cursor = feed.cursor
            await asyncio.to_thread(server.stop)
            assert await stream.rest() == b""
    feed.publish("between")
    with serve(create_app(feed)) as server:
        async with events(server, {"Last-Event-ID": cursor}) as stream:
            await stream.block(), await stream.block()
            assert (await stream.update())["path"] == "between"


@on_a_loop
async def test_the_stream_is_one_that_the_standard_parser_reads(create_app: Callable[..., Service]) -> None:
    """retry, ids and events come out of the course's own parser as the contract names them."""
    feed = feed_of(2)
    parser = EventStreamParser()
    with serve(create_app(feed, heartbeat=0.05)) as server:
        async with http(server) as client, client.stream("GET", "/events?after=0") as response:
            async with asyncio.timeout(PATIENCE):
                got = []
                async for chunk in response.aiter_raw():
                    got += parser.feed(chunk)
                    if len(got) == 2:
                        break
    assert [(event.type, event.last_event_id) for event in got] == [("update", f"{EPOCH}-1"), ("update", f"{EPOCH}-2")]
    assert [json.loads(event.data)["seq"] for event in got] == [1, 2]
    assert parser.reconnection_time == 2000
