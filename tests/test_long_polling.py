"""Long polling's own lines of the contract: the hold. What it shares with short polling is in test_pulls.py."""

import asyncio
import random
import re
import time

import httpx
import pytest

from servers import long_polling
from servers.background import serve
from servers.feed import Feed
from servers.long_polling import create_app
from tests.support import Raw, http, loop_of, on_a_loop, tasks_of, until, virtual_get

paths = pytest.mark.parametrize("fast", [False, True], ids=["readable", "fast"])


def poll(client: httpx.AsyncClient, after: str, wait: float = 60) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(client.get("/updates", params={"after": after, "wait": wait}))


@paths
@on_a_loop
async def test_a_poll_is_held_until_there_is_news_and_then_answered_at_once(fast: bool) -> None:
    """The update comes long before the hold is over, with the cursor after it."""
    feed = Feed()
    app = create_app(feed, fast=fast)
    with serve(app) as server:
        async with http(server) as client:
            held = poll(client, feed.cursor)
            await until(lambda: app.traffic.held)
            assert not held.done()
            async with asyncio.timeout(10):  # of a hold of 54 s at least
                update = feed.publish("news")
                answer = await held
    assert answer.status_code == 200
    assert answer.content == b'{"updates":[' + update.json + b'],"cursor":"' + feed.cursor.encode() + b'"}'
    assert answer.headers["cache-control"] == "no-store"


@paths
@on_a_loop
async def test_what_was_published_between_two_polls_is_answered_at_once(fast: bool) -> None:
    """The cursor remembers what a client missed while it was not asking."""
    feed = Feed()
    with serve(create_app(feed, fast=fast)) as server:
        async with http(server) as client, asyncio.timeout(10):
            cursor = (await client.get("/updates")).json()["cursor"]
            feed.publish("between")
            body = (await poll(client, cursor)).json()
    assert [update["path"] for update in body["updates"]] == ["between"]


@paths
@on_a_loop
async def test_after_the_hold_the_answer_is_an_empty_list_and_the_same_cursor(fast: bool) -> None:
    """Nothing happened: 200, not an error, and not before nine tenths of the wait."""
    feed = Feed()
    with serve(create_app(feed, fast=fast)) as server:
        async with http(server) as client:
            start = time.perf_counter()
            answer = await poll(client, feed.cursor, 0.5)
            assert time.perf_counter() - start >= 0.45
    assert answer.status_code == 200
    assert answer.json() == {"updates": [], "cursor": feed.cursor}


@paths
@on_a_loop
async def test_from_the_oldest_of_an_empty_log_means_the_first_update(fast: bool) -> None:
    """`after=0` waits like any other cursor when there is nothing yet."""
    feed = Feed()
    app = create_app(feed, fast=fast)
    with serve(app) as server:
        async with http(server) as client, asyncio.timeout(10):
            held = poll(client, "0")
            await until(lambda: app.traffic.held)
            feed.publish("first")
            assert [update["path"] for update in (await held).json()["updates"]] == ["first"]


@paths
@on_a_loop
async def test_updates_that_fall_out_of_the_history_during_the_hold_are_a_gap(fast: bool) -> None:
    """A held client is told that it missed something, and never gets a list with a hole."""
    feed = Feed(history=2)
    app = create_app(feed, fast=fast)
    with serve(app) as server:
        async with http(server) as client:
            held = poll(client, feed.cursor)
            await until(lambda: app.traffic.held)

            def burst() -> None:
                for number in range(3):
                    feed.publish(f"{number}")

            loop_of(server).call_soon_threadsafe(burst)  # all three before any answer
            answer = await held
    assert answer.status_code == 410
    assert answer.json() == {"reason": "expired", "cursor": feed.cursor, "oldest": feed.cursor_at(1)}


@paths
@on_a_loop
async def test_one_publish_answers_all_who_are_held(fast: bool) -> None:
    """Fifty clients get the same bytes."""
    feed = Feed()
    app = create_app(feed, fast=fast)
    with serve(app) as server:
        async with http(server, limits=httpx.Limits(max_connections=None)) as client:
            held = [poll(client, feed.cursor) for _ in range(50)]
            await until(lambda: app.traffic.held == 50)
            feed.publish("for all")
            bodies = {(await answer).content for answer in held}
    assert len(bodies) == 1
    assert app.traffic.delivered == 50


@paths
@pytest.mark.parametrize("leave", ["closes", "resets"])
@on_a_loop
async def test_a_client_that_leaves_while_held_frees_its_slot_at_once(leave: str, fast: bool) -> None:
    """No request and no task stays behind for the rest of the hold."""
    feed = Feed()
    app = create_app(feed, fast=fast)

    with serve(app) as server:
        before = tasks_of(server)
        clients = [Raw(server) for _ in range(10)]
        for client in clients:
            client.send(f"GET /updates?after={feed.cursor}&wait=60 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await until(lambda: app.traffic.held == 10)
        assert fast or len(tasks_of(server)) >= len(before) + 10
        for client in clients:
            client.socket.close() if leave == "closes" else client.reset()
        await until(lambda: app.traffic.held == 0)
        await until(lambda: [name for name in tasks_of(server) if name != "HeldPolls.run"] == before)
        await until(lambda: not server._uvicorn.server_state.connections)


# --- the length of the hold, in virtual time: exact, and 60 s take a millisecond ---


def held_for(wait: str, jitter: float = 0.0, seed: int | None = None) -> float:
    feed = Feed()
    duration, status = virtual_get(
        create_app(feed, jitter=jitter, seed=seed), f"/updates?after={feed.cursor}&wait={wait}"
    )
    assert status == 200
    return duration


@pytest.mark.parametrize(
    ("wait", "duration"),
    [("0", 0), ("-0.0", 0), ("0.25", 0.25), ("59.5", 59.5), ("60", 60), ("61", 60), ("3600", 60), ("1e300", 60)],
)
def test_a_hold_is_what_was_asked_for_but_60_seconds_at_most(wait: str, duration: float) -> None:
    """Whatever a client asks for, its connection is not silent for longer than proxies allow."""
    assert held_for(wait) == pytest.approx(duration, abs=1e-6)


def test_a_client_that_names_no_wait_is_held_for_30_seconds() -> None:
    """The default of `wait` is 30 s."""
    feed = Feed()
    assert virtual_get(create_app(feed, jitter=0), f"/updates?after={feed.cursor}")[0] == pytest.approx(30, abs=1e-6)


def test_without_a_cursor_nobody_is_held() -> None:
    """The opening cursor comes at once, however long a client is willing to wait."""
    assert virtual_get(create_app(Feed()), "/updates?wait=60") == (0, 200)


def test_holds_are_drawn_from_the_last_tenth_of_the_wait_by_the_seed() -> None:
    """Each hold is within [0.9 S, S]; the same seed draws the same holds, another seed others."""
    feed = Feed()

    def holds(seed: int) -> list[float]:
        app = create_app(feed, seed=seed)
        return [virtual_get(app, f"/updates?after={feed.cursor}&wait=40")[0] for _ in range(200)]

    drawn = holds(7)
    rng = random.Random(7)
    assert drawn == pytest.approx([40 * rng.uniform(0.9, 1) for _ in drawn], abs=1e-6)
    assert 36 <= min(drawn) < 36.2
    assert 39.8 < max(drawn) <= 40
    assert holds(7) == drawn
    assert holds(8) != drawn


def test_a_capped_hold_is_jittered_below_the_cap() -> None:
    """The jitter comes after the cap, so that clients who ask for too much still spread out."""
    assert all(54 <= held_for("1000", jitter=0.1, seed=seed) <= 60 for seed in range(20))
    assert len({held_for("1000", jitter=0.1, seed=seed) for seed in range(20)}) == 20


@paths
@on_a_loop
async def test_the_cap_holds_on_a_real_connection(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks for an hour is answered when the cap, here 0.2 s, is over."""
    monkeypatch.setattr(long_polling, "MAX_HOLD", 0.2)
    feed = Feed()
    with serve(create_app(feed, fast=fast)) as server:
        async with http(server) as client, asyncio.timeout(10):
            assert (await poll(client, feed.cursor, 3600)).json()["updates"] == []


WAITS = {
    "-1": "greater than or equal to 0",
    "-1e-9": "greater than or equal to 0",
    "nan": "finite",
    "inf": "finite",
    "-inf": "greater than or equal to 0|finite",
    "1e999": "finite",
    "soon": "a valid number",
    "": "a valid number",
    "5s": "a valid number",
    "1,5": "a valid number",
    "0x10": "a valid number",
    "[1]": "a valid number",
}


@paths
@on_a_loop
async def test_a_wait_that_is_no_number_of_seconds_is_refused_in_one_sentence(fast: bool) -> None:
    """Negative, infinite, not a number or no number at all: 400, naming the parameter, and at once."""
    feed = Feed()
    app = create_app(feed, fast=fast)
    with serve(app) as server:
        async with http(server) as client, asyncio.timeout(20):
            for wait, reason in WAITS.items():
                answer = await client.get("/updates", params={"after": feed.cursor, "wait": wait})
                assert answer.status_code == 400, wait
                assert re.fullmatch(rf"wait: input should be [^\n]*({reason})[^\n]*", answer.json()["detail"]), wait
                assert len(answer.json()["detail"]) < 120
    assert app.traffic.requests == len(WAITS)
