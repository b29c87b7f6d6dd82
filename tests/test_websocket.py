"""The contract of the WebSocket: the messages of both sides, who is admitted, and how a connection ends."""

import asyncio
import contextlib
import functools
import json
import threading
from collections.abc import Callable

import pytest
import websockets

from lab.virtual import Link, Net, run_virtual
from lab.virtual import serve as serve_virtually
from servers import websocket
from servers.background import Server, serve
from servers.feed import Feed
from servers.service import Service
from tests.support import (
    Raw,
    closed,
    frame,
    http,
    long_length,
    loop_of,
    on_a_loop,
    received,
    socket_to,
    tasks_of,
    unsent,
    until,
)
from tests.test_pulls import BAD_CURSORS, EPOCH, NAMES, feed_of


@pytest.fixture(params=[False, True], ids=["readable", "fast"])
def create_app(request: pytest.FixtureRequest) -> Callable[..., Service]:
    """What makes the server, readable or fast."""
    return functools.partial(websocket.create_app, fast=request.param)


async def filtered(connection: websockets.ClientConnection, number: int, *prefixes: str) -> None:
    await connection.send(json.dumps({"type": "filter", "id": number, "paths": prefixes}))


@on_a_loop
async def test_a_connection_opens_with_hello_and_the_cursor_of_now(create_app: Callable[..., Service]) -> None:
    """A client cut before its first update knows where to resume; the texts are the contract's."""
    feed = feed_of(3)
    app = create_app(feed)
    with serve(app) as server:
        async with socket_to(server) as connection:
            assert await received(connection) == {"type": "hello", "cursor": f"{EPOCH}-3"}
            update = feed.publish("news", "added", size=1, sha256="ab" * 32)
            assert await connection.recv() == (
                f'{{"type":"updates","updates":[{update.json.decode()}],"cursor":"{EPOCH}-4"}}'
            )
    assert app.traffic.delivered == 1


@on_a_loop
async def test_names_of_all_kinds_arrive_unchanged(create_app: Callable[..., Service]) -> None:
    """A newline, markup, quotes or any script in a name is data."""
    feed = Feed()
    with serve(create_app(feed)) as server:
        async with socket_to(server, "after=0") as connection:
            await received(connection)
            got: list[str] = []
            for name in NAMES:
                feed.publish(name)
            while len(got) < len(NAMES):
                got += [update["path"] for update in (await received(connection))["updates"]]
    assert got == NAMES


@on_a_loop
async def test_after_a_cursor_come_the_later_updates_in_order_each_once(create_app: Callable[..., Service]) -> None:
    """`hello` says where the connection begins; 0 and empty mean the oldest kept and are never a gap."""
    with serve(create_app(feed_of(10, history=4))) as server:
        for after, first in ((f"{EPOCH}-8", 9), ("0", 7), ("", 7)):
            async with socket_to(server, f"after={after}") as connection:
                assert await received(connection) == {"type": "hello", "cursor": f"{EPOCH}-{first - 1}"}
                message = await received(connection)
                assert [update["seq"] for update in message["updates"]] == list(range(first, 11))
                assert message["cursor"] == f"{EPOCH}-10"


@on_a_loop
async def test_a_client_far_behind_catches_up_in_batches_and_stays_connected(
    create_app: Callable[..., Service],
) -> None:
    """A message has at most 500 updates; the rest follows at once, and then the news."""
    feed = feed_of(1201)
    with serve(create_app(feed)) as server:
        async with socket_to(server, f"after={EPOCH}-0") as connection:
            await received(connection)
            messages = [await received(connection) for _ in range(3)]
            feed.publish("news")
            messages.append(await received(connection))
    assert [len(message["updates"]) for message in messages] == [500, 500, 201, 1]
    assert [update["seq"] for message in messages for update in message["updates"]] == list(range(1, 1203))


@pytest.mark.parametrize(
    ("cursor", "reason"),
    [(f"{EPOCH}-5", "expired"), ("0ther-8", "epoch"), (f"{EPOCH}-11", "epoch")],
)
@on_a_loop
async def test_a_gap_is_a_reset_message_and_the_connection_goes_on_from_its_cursor(
    create_app: Callable[..., Service], cursor: str, reason: str
) -> None:
    """Expired, of another epoch or of this one's future: the client is told at once, in the place of `hello`."""
    feed = feed_of(10, history=4)
    app = create_app(feed)
    with serve(app) as server:
        async with socket_to(server, f"after={cursor}") as connection:
            reset = await received(connection)
            assert reset == {"type": "reset", "reason": reason, "cursor": f"{EPOCH}-10", "oldest": f"{EPOCH}-6"}
            feed.publish("later")
            assert [update["seq"] for update in (await received(connection))["updates"]] == [11]
    assert (app.traffic.resets, app.traffic.delivered) == (1, 1)


@on_a_loop
async def test_a_connection_that_falls_off_the_history_is_reset_and_goes_on(create_app: Callable[..., Service]) -> None:
    """Three updates published at once into a history of two are a gap, never a hole."""
    feed = Feed(history=2)
    with serve(create_app(feed)) as server:
        async with socket_to(server) as connection:
            await received(connection)

            def burst() -> None:
                for number in range(3):
                    feed.publish(f"{number}")

            loop_of(server).call_soon_threadsafe(burst)
            reset = await received(connection)
            assert reset == {
                "type": "reset",
                "reason": "expired",
                "cursor": feed.cursor,
                "oldest": feed.cursor_at(1),
            }
            feed.publish("later")
            assert [update["path"] for update in (await received(connection))["updates"]] == ["later"]


# --- the client speaks ---


@on_a_loop
async def test_a_filter_is_acknowledged_and_every_later_message_obeys_it(create_app: Callable[..., Service]) -> None:
    """The answer has the filter's id and the cursor from which on it holds; prefixes may be several, one or none."""
    feed = feed_of(2)
    with serve(create_app(feed)) as server:
        async with socket_to(server) as connection:
            await received(connection)
            await filtered(connection, 7, "a/", "b/")
            assert await received(connection) == {"type": "filtered", "id": 7, "cursor": f"{EPOCH}-2"}
            for path in ("c/1", "a/2", "ba/3", "b/4"):
                feed.publish(path)
            got: list[str] = []
            while len(got) < 2:
                got += [update["path"] for update in (await received(connection))["updates"]]
            assert got == ["a/2", "b/4"]
            await filtered(connection, -1)
            assert await received(connection) == {"type": "filtered", "id": -1, "cursor": feed.cursor}
            for _ in range(500):
                feed.publish("a/5")
            assert await received(connection) == {"type": "updates", "updates": [], "cursor": feed.cursor}
            await filtered(connection, 10**20, "")
            assert (await received(connection))["id"] == 10**20
            feed.publish("anything")
            assert [update["path"] for update in (await received(connection))["updates"]] == ["anything"]


@on_a_loop
async def test_what_is_filtered_out_moves_the_cursor_with_the_next_message(create_app: Callable[..., Service]) -> None:
    """499 updates that the client does not want cost no message; the next wanted one brings its cursor past them."""
    feed = Feed(epoch=EPOCH)
    app = create_app(feed)
    with serve(app) as server:
        async with socket_to(server) as connection:
            await received(connection)
            await filtered(connection, 1, "wanted/")
            await received(connection)
            for number in range(499):
                feed.publish(f"other/{number}")
            feed.publish("wanted/1")
            message = await received(connection)
    assert [update["path"] for update in message["updates"]] == ["wanted/1"]
    assert message["cursor"] == f"{EPOCH}-500"
    assert app.traffic.delivered == 1


@on_a_loop
async def test_what_is_filtered_out_moves_the_cursor_with_an_empty_message_after_a_batch(
    create_app: Callable[..., Service],
) -> None:
    """A client that wants nothing of 500 updates is told where it stands, before it falls off the history."""
    feed = Feed(epoch=EPOCH)
    with serve(create_app(feed)) as server:
        async with socket_to(server) as connection:
            await received(connection)
            await filtered(connection, 1, "wanted/")
            await received(connection)
            for number in range(500):
                feed.publish(f"other/{number}")
            assert await received(connection) == {"type": "updates", "updates": [], "cursor": f"{EPOCH}-500"}
            for number in range(500):
                feed.publish(f"other/{number}")
            assert await received(connection) == {"type": "updates", "updates": [], "cursor": f"{EPOCH}-1000"}


@on_a_loop
async def test_a_filter_changed_under_load_holds_exactly_between_its_cursors(
    create_app: Callable[..., Service],
) -> None:
    """From an acknowledgement's cursor to the next, the client gets all that its filter wants and nothing else."""
    feed = Feed(history=10**6)  # however long nobody reads
    log: list[str] = []
    enough = threading.Event()

    def publish() -> None:
        while not enough.wait(0.0005):
            for kind in "abc":
                log.append(f"{kind}/{len(log)}")
                feed.publish(log[-1])

    publisher = threading.Thread(target=publish)
    filters = [
        ("",),
        *[("a/",), ("b/",), ("c/", "a/"), (), ("b/",), ("",)] * 5,
    ]  # the first holds from the start
    starts = [0]
    got: list[tuple[int, int]] = []  # sequence number, filter in force when it arrived
    with serve(create_app(feed)) as server:
        async with socket_to(server) as connection:
            assert (await received(connection))["type"] == "hello"
            publisher.start()
            try:
                await filtered(connection, 1, *filters[1])
                while len(starts) < len(filters) or not got or got[-1][0] < len(log):
                    message = await received(connection)
                    if message["type"] == "updates":
                        got += [(update["seq"], len(starts) - 1) for update in message["updates"]]
                        continue
                    assert (message["type"], message["id"]) == ("filtered", len(starts))
                    starts.append(int(message["cursor"].split("-")[1]))
                    if len(starts) == len(filters):
                        enough.set()
                        await asyncio.to_thread(publisher.join)
                        feed.publish("the last")
                        log.append("the last")
                    else:
                        await until(lambda: feed.head > starts[-1] + 10)
                        await filtered(connection, len(starts), *filters[len(starts)])
            finally:
                enough.set()
                await asyncio.to_thread(publisher.join)
    assert starts[1:] == sorted(set(starts[1:]))
    wanted = [
        (seq, number)
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(log)], strict=True))
        for seq in range(start + 1, end + 1)
        if log[seq - 1].startswith(filters[number])
    ]
    assert got == wanted


def padded(size: int) -> str:
    """A filter of so many bytes: JSON may have white space anywhere."""
    return '{"type": "filter", "id": 1, "paths": ["x"]}'.ljust(size)


BAD_MESSAGES: dict[str, str | bytes] = {
    "empty": "",
    "not JSON": "hello",
    "cut JSON": '{"type": "filter", "id": 1, "paths": [',
    "a number": "7",
    "null": "null",
    "a list": '["filter", 1, ["a/"]]',
    "another type": '{"type": "subscribe", "id": 1, "paths": []}',
    "no type": '{"id": 1, "paths": []}',
    "no id": '{"type": "filter", "paths": []}',
    "a word as id": '{"type": "filter", "id": "1", "paths": []}',
    "a fraction as id": '{"type": "filter", "id": 1.5, "paths": []}',
    "true as id": '{"type": "filter", "id": true, "paths": []}',
    "NaN as id": '{"type": "filter", "id": NaN, "paths": []}',
    "an endless number as id": '{"type": "filter", "id": ' + "9" * 5000 + ', "paths": []}',
    "no paths": '{"type": "filter", "id": 1}',
    "a word as paths": '{"type": "filter", "id": 1, "paths": "a/"}',
    "a number among the paths": '{"type": "filter", "id": 1, "paths": ["a/", 1]}',
    "nested lists": '{"type": "filter", "id": 1, "paths": ' + "[" * 30_000 + "]" * 30_000 + "}",
    "nested objects": '{"a":' * 12_000,
    "binary": padded(50).encode(),
    "binary rubbish": b"\x00\xff\xfe",
    "as large as allowed": "x" * 65536,
}


@on_a_loop
async def test_a_message_that_breaks_the_rules_ends_the_connection_with_1008_and_one_sentence(
    create_app: Callable[..., Service],
) -> None:
    """Whatever it is, the answer is a close frame that says what a client may send, and nobody else notices."""
    feed = Feed()
    app = create_app(feed)
    with serve(app) as server:
        async with socket_to(server) as witness:
            await received(witness)
            for name, message in BAD_MESSAGES.items():
                async with socket_to(server) as connection:
                    await received(connection)
                    await connection.send(message)
                    code, reason = await closed(connection)
                    assert code == 1008, name
                    assert reason == 'a client sends {"type": "filter", "id": number, "paths": [prefix, ...]} as text'
            await until(lambda: app.traffic.held == 1)
            feed.publish("news")
            assert (await received(witness))["type"] == "updates"


@on_a_loop
async def test_text_that_is_not_utf_8_ends_the_connection_with_1007(create_app: Callable[..., Service]) -> None:
    """The transport refuses it (RFC 6455, section 8.1), and the server logs no error."""
    app = create_app(Feed())
    with serve(app) as server, Raw(server) as client:
        client.send(Raw.HANDSHAKE)
        await client.read_until(b"hello")
        client.send(frame(b"\xff\xfe"))
        assert await client.read_all() == b"\x88\x02" + (1007).to_bytes(2)
        await until(lambda: app.traffic.held == 0)


@on_a_loop
async def test_a_close_stands_whatever_was_said_before_it_or_after(create_app: Callable[..., Service]) -> None:
    """Text that is not UTF-8, with the client's close right behind it or behind the server's, is no fault of ours."""
    app = create_app(Feed())
    close = b"\x88\x02" + (1000).to_bytes(2)
    with serve(app) as server:
        with Raw(server) as client:
            client.send(Raw.HANDSHAKE)
            await client.read_until(b"hello")
            client.send(frame(b"\xff") + frame(close[2:], opcode=8))
            assert await client.read_all() == close
        with Raw(server) as client:
            client.send(Raw.HANDSHAKE)
            await client.read_until(b"hello")
            client.send(frame(b"no filter"))
            await client.read_until(b"as text")  # the server's close
            client.send(frame(b"\xff") + frame((1008).to_bytes(2), opcode=8))
            assert await client.read_all() == b""
        await until(lambda: app.traffic.held == 0)


@on_a_loop
async def test_a_message_over_64_kib_ends_the_connection_with_1009(create_app: Callable[..., Service]) -> None:
    """The transport refuses it by its announced length, before it is read; 64 KiB are still read."""
    app = create_app(Feed())
    with serve(app) as server, Raw(server) as client:
        async with socket_to(server) as connection:
            await received(connection)
            await connection.send(padded(65536))
            assert (await received(connection))["type"] == "filtered"
        client.send(Raw.HANDSHAKE)
        await client.read_until(b"hello")
        client.send(b"\x81" + long_length(65537) + bytes(4))
        close = (await client.read_all()).rpartition(b"\x88")[2]
        assert int.from_bytes(close[1:3]) == 1009
        await until(lambda: app.traffic.held == 0)


# --- who is admitted ---


async def handshake(server: Server, query: str = "", **headers: str) -> int:
    """The status of the answer to a handshake."""
    try:
        async with socket_to(server, query, additional_headers=headers):
            return 101
    except websockets.InvalidStatus as refused:
        return refused.response.status_code


@on_a_loop
async def test_a_foreign_origin_is_refused_before_the_handshake(create_app: Callable[..., Service]) -> None:
    """A page from elsewhere, from a file ("null") or with a nonsense origin gets 403."""
    app = create_app(Feed(), allow_origins=["https://hub.example"])
    with serve(app) as server:
        host = f"127.0.0.1:{server.port}"
        for origin in (
            "http://evil.example",
            "null",
            "",
            "http://[",
            "http://127.0.0.1",
            f"http://127.0.0.1:{server.port + 1}",
            f"http://localhost:{server.port}",
            f"http://{host}.evil.example",
            f"http://evil.example/{host}",
            f"http://evil@{host}",
            f"ftp://{host}",
            host,
            "http://hub.example",
            "https://hub.example.evil.example",
            "https://hub.example:8443",
        ):
            assert await handshake(server, Origin=origin) == 403, origin
        await until(lambda: app.traffic.held == 0)
        assert app.traffic.requests == 15


@on_a_loop
async def test_the_own_page_an_allowed_one_and_no_page_are_admitted(create_app: Callable[..., Service]) -> None:
    """Same host over http or https, an origin of the list, or a client that is no browser."""
    with serve(create_app(Feed(), allow_origins=["https://hub.example"])) as server:
        assert await handshake(server, Origin=server.url) == 101
        assert await handshake(server, Origin=server.url.replace("http", "https")) == 101
        assert await handshake(server, Origin="https://hub.example") == 101
        assert await handshake(server) == 101


@on_a_loop
async def test_a_malformed_cursor_is_refused_before_the_handshake(create_app: Callable[..., Service]) -> None:
    """What a pull answers with 400 is a 403 here; only the future of this epoch is a reset."""
    with serve(create_app(feed_of(3))) as server:
        for name, query in BAD_CURSORS.items():
            if name != "from the future":
                status = 403 if len(query) < 8192 else 400  # the transport reads no line of the handshake that long
                assert await handshake(server, query) == status, name
        assert await handshake(server, "after=" + "a" * 8000) == 403


@on_a_loop
async def test_a_plain_get_is_no_websocket(create_app: Callable[..., Service]) -> None:
    """Without an Upgrade there is nothing at /ws, and no error in the log."""
    with serve(create_app(Feed())) as server:
        async with http(server) as client:
            assert (await client.get("/ws")).status_code == 404


@on_a_loop
async def test_deflate_is_not_negotiated_even_if_offered(create_app: Callable[..., Service]) -> None:
    """A compressor costs about 100 KiB a connection, so the server declines the extension."""
    with serve(create_app(Feed())) as server:
        async with socket_to(server, compression="deflate") as connection:
            assert connection.request is not None
            assert "permessage-deflate" in connection.request.headers["Sec-WebSocket-Extensions"]
            assert connection.response is not None
            assert "Sec-WebSocket-Extensions" not in connection.response.headers


# --- the end of a connection ---


@pytest.mark.parametrize("leave", ["closes", "disconnects", "resets"])
@on_a_loop
async def test_a_silent_client_that_leaves_frees_its_slot_at_once(
    create_app: Callable[..., Service], leave: str
) -> None:
    """Nothing is published: the server notices all the same, and no task stays."""
    app = create_app(Feed())
    with serve(app) as server:
        before = tasks_of(server)
        clients = [Raw(server) for _ in range(10)]
        for client in clients:
            client.send(Raw.HANDSHAKE)
            await client.read_until(b"hello")
        assert app.traffic.held == 10
        assert len(tasks_of(server)) >= len(before) + 10
        for client in clients:
            if leave == "closes":
                client.send(frame((1000).to_bytes(2), opcode=8))
            elif leave == "disconnects":
                client.socket.close()
            else:
                client.reset()
        await until(lambda: app.traffic.held == 0)
        await until(lambda: [name for name in tasks_of(server) if name != "FanOut.run"] == before)
        for client in clients:
            client.socket.close()


@on_a_loop
async def test_a_client_that_leaves_at_the_worst_moment_is_no_error(create_app: Callable[..., Service]) -> None:
    """Gone during the handshake, before `hello` is read, or behind a message that breaks the rules."""
    app = create_app(Feed())
    with serve(app) as server:
        for words in (Raw.HANDSHAKE, Raw.HANDSHAKE + frame(b"rubbish"), Raw.HANDSHAKE + frame(padded(50).encode())):
            for _ in range(40):
                client = Raw(server)
                client.send(words)
                client.reset()
        await until(lambda: app.traffic.requests >= 100 and app.traffic.held == 0)
        client = Raw(server)
        client.send(Raw.HANDSHAKE)
        await client.read_until(b"hello")
        client.send(frame(b"rubbish"))
        client.reset()
        await until(lambda: app.traffic.held == 0)


@on_a_loop
async def test_a_client_that_answers_no_ping_is_given_up(create_app: Callable[..., Service]) -> None:
    """A dead link is found within 2.5 heartbeats, although nobody closes it."""
    app = create_app(Feed(), heartbeat=0.1)
    with serve(app) as server, Raw(server) as client:
        client.send(Raw.HANDSHAKE)
        _, hello, rest = (await client.read_all()).partition(b"hello")
        assert hello
        ping, _, close = rest.rpartition(b"\x88")
        assert b"\x89" in ping
        assert int.from_bytes(close[1:3]) == 1011
        await until(lambda: app.traffic.held == 0)


@on_a_loop
async def test_a_client_that_answers_no_ping_because_it_reads_no_more_is_given_up_too(
    create_app: Callable[..., Service],
) -> None:
    """A link that died under load frees its slot and its buffer, although the last bytes can never be delivered."""
    feed = Feed()
    for number in range(120):
        feed.publish(f"{number}", content=BIG)
    app = create_app(feed, heartbeat=0.1)
    with serve(app) as server, Raw(server) as client:
        client.send(Raw.HANDSHAKE.replace(b"/ws", b"/ws?after=0"))
        await until(lambda: app.traffic.delivered)
        await until(lambda: app.traffic.held == 0)
        await until(lambda: unsent(server) == 0)
        with contextlib.suppress(ConnectionResetError):
            assert len(await client.read_all()) < 120 * len(BIG)


def test_a_client_that_answers_pings_stays(create_app: Callable[..., Service]) -> None:
    """A silent client of an hour is as good as any. In virtual time: a busy machine answers late, too."""
    feed = Feed()

    async def main(net: Net) -> bytes:
        async with (
            serve_virtually(create_app(feed, heartbeat=15)) as server,
            websockets.connect(f"{server.url.replace('http', 'ws')}/ws", proxy=None, ping_interval=None) as connection,
        ):
            await received(connection)
            await asyncio.sleep(3601)
            feed.publish("news")
            assert (await received(connection))["type"] == "updates"
        assert net.transcript is not None
        return b"".join(row.data for row in net.transcript if row.way == "down")

    assert run_virtual(main, link=Link(delay=0.05)).count(b"\x89\x04") >= 240  # pings of four bytes, one a heartbeat


@on_a_loop
async def test_a_server_that_goes_says_1001_and_a_client_resumes_at_the_next(
    create_app: Callable[..., Service],
) -> None:
    """The close comes behind all messages; the last cursor is where the next server goes on."""
    feed = Feed()
    with serve(create_app(feed)) as server:
        async with socket_to(server) as connection:
            await received(connection)
            feed.publish("before")
            cursor = (await received(connection))["cursor"]
            await asyncio.to_thread(server.stop)
            assert await closed(connection) == (1001, "")
    feed.publish("between")
    with serve(create_app(feed)) as server:
        async with socket_to(server, f"after={cursor}") as connection:
            await received(connection)
            assert [update["path"] for update in (await received(connection))["updates"]] == ["between"]


BIG = b"x" * 100_000  # each update some 133 kB: the kernel's buffers hold a few dozen


async def overtake(feed: Feed, fast: websockets.ClientConnection, count: int) -> None:
    """Publish, and have one client read each update before the next is published."""
    for number in range(count):
        feed.publish(f"{number}", content=BIG)
        assert [update["path"] for update in (await received(fast))["updates"]] == [f"{number}"]


def slow_and_fast(server: Server) -> tuple[websockets.connect, websockets.connect]:
    """A connection that reads two messages ahead at most, and one that takes what comes."""
    return socket_to(server, max_size=None, max_queue=1), socket_to(server, max_size=None)


@on_a_loop
async def test_a_client_that_stops_reading_stops_nobody_and_is_reset_when_it_reads_on(
    create_app: Callable[..., Service],
) -> None:
    """The others get everything in time; the server keeps a bounded amount for the slow one; it never gets a hole."""
    feed = Feed(history=20)
    app = create_app(feed)
    with serve(app) as server:
        slow_one, fast_one = slow_and_fast(server)
        async with slow_one as slow, fast_one as fast:
            await received(slow), await received(fast)
            await overtake(feed, fast, 150)
            assert unsent(server) <= feed.history * 1.4 * len(BIG) + 65536
            position = read = resets = 0
            while position < feed.head:  # when the kernel took how much of it is the machine's affair
                message = await received(slow)
                if message["type"] == "updates":
                    for update in message["updates"]:
                        assert update["seq"] == position + 1
                        position, read = position + 1, read + 1
                else:
                    assert message["type"] == "reset"
                    position, resets = int(message["cursor"].rpartition("-")[2]), resets + 1
            assert resets >= 1
            assert read < 150
            feed.publish("later")
            for connection in slow, fast:
                assert [update["path"] for update in (await received(connection))["updates"]] == ["later"]
    assert app.traffic.resets == resets


@on_a_loop
async def test_a_client_that_stops_reading_gets_everything_that_the_history_still_holds(
    create_app: Callable[..., Service],
) -> None:
    """Its cursor waits for it, and so does the log."""
    feed = Feed()
    with serve(create_app(feed)) as server:
        slow_one, fast_one = slow_and_fast(server)
        async with slow_one as slow, fast_one as fast:
            await received(slow), await received(fast)
            await overtake(feed, fast, 120)
            assert unsent(server) > 0
            seqs: list[int] = []
            while len(seqs) < 120:
                seqs += [update["seq"] for update in (await received(slow))["updates"]]
    assert seqs == list(range(1, 121))


@on_a_loop
async def test_a_client_that_neither_reads_nor_stops_talking_is_bounded_too(create_app: Callable[..., Service]) -> None:
    """Behind a full buffer its filters wait in its own socket, and leaving frees the slot."""
    feed = Feed()
    app = create_app(feed)
    with serve(app) as server:
        client = Raw(server)
        client.send(Raw.HANDSHAKE)
        await client.read_until(b"hello")
        for number in range(120):
            feed.publish(f"{number}", content=BIG)
        await until(lambda: unsent(server) > 0)
        client.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.send(frame(padded(60_000).encode()) * 1000)
        client.reset()
        await until(lambda: app.traffic.held == 0)
        await until(lambda: unsent(server) == 0)
