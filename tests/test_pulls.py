"""What short and long polling have in common: the cursor, the body, the gap, the refusals."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from servers import long_polling, short_polling
from servers.background import Server, serve
from servers.feed import Feed
from servers.service import Service
from tests.support import http, on_a_loop

EPOCH = "e0e0"
NAMES = [
    "notes/line\nbreak.txt",
    "notes/carriage\rreturn and\ttab",
    "<script>alert('x')</script>",
    "päper/日本語/🦜.txt",
    'quotes "and" back\\slash',
    "line\u2028separator",
    "data: a\n\nevent: forged",
]


def short(feed: Feed) -> Service:
    return short_polling.create_app(feed)


def long(feed: Feed) -> Service:
    return long_polling.create_app(feed, jitter=0)


def fast_short(feed: Feed) -> Service:
    return short_polling.create_app(feed, fast=True)


def fast_long(feed: Feed) -> Service:
    return long_polling.create_app(feed, jitter=0, fast=True)


pulls = pytest.mark.parametrize("create_app", [short, long, fast_short, fast_long])


def feed_of(count: int, **bounds: int) -> Feed:
    feed = Feed(epoch=EPOCH, **bounds)
    for number in range(count):
        feed.publish(f"file-{number}.txt", "added", size=number, sha256=f"{number:064x}")
    return feed


def seqs(body: Any) -> list[int]:
    return [update["seq"] for update in body["updates"]]


@pulls
@on_a_loop
async def test_without_a_cursor_a_pull_answers_at_once_with_nothing_and_the_cursor_of_now(
    create_app: Any,
) -> None:
    """A client that starts learns what "now" is, however much there was before."""
    with serve(create_app(feed_of(3))) as server:
        async with http(server) as client:
            answer = await client.get("/updates")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.content == b'{"updates":[],"cursor":"e0e0-3"}'


@pulls
@on_a_loop
async def test_the_body_is_the_contract_to_the_byte(create_app: Any) -> None:
    """An update has exactly the fields of the contract, with six decimals in `published` and nulls on a deletion."""
    feed = Feed(epoch=EPOCH)
    first = feed.publish("reports/q3.csv", "added", size=1234, sha256="ab" * 32)
    second = feed.publish("reports/q3.csv", "deleted")
    third = feed.publish("a", size=3, sha256="cd" * 32, content=b"\x00\xff!")
    with serve(create_app(feed)) as server:
        async with http(server) as client:
            answer = await client.get("/updates", params={"after": f"{EPOCH}-0"})
    assert answer.text == (
        '{"updates":['
        '{"seq":1,"path":"reports/q3.csv","change":"added","size":1234,"sha256":"' + "ab" * 32 + '",'
        f'"published":{first.published:.6f}}},'
        '{"seq":2,"path":"reports/q3.csv","change":"deleted","size":null,"sha256":null,'
        f'"published":{second.published:.6f}}},'
        '{"seq":3,"path":"a","change":"modified","size":3,"sha256":"' + "cd" * 32 + '",'
        f'"published":{third.published:.6f},"content":"AP8h"}}'
        '],"cursor":"e0e0-3"}'
    )


@pulls
@on_a_loop
async def test_names_of_all_kinds_arrive_unchanged(create_app: Any) -> None:
    """A newline, markup, quotes or any script in a name is data."""
    feed = Feed()
    for name in NAMES:
        feed.publish(name)
    with serve(create_app(feed)) as server:
        async with http(server) as client:
            body = (await client.get("/updates?after=0")).json()
    assert [update["path"] for update in body["updates"]] == NAMES


@pulls
@on_a_loop
async def test_after_a_cursor_come_the_later_updates_in_order_each_once(create_app: Any) -> None:
    """The cursor of an answer is where the next one goes on."""
    with serve(create_app(feed_of(5))) as server:
        async with http(server) as client:
            body = (await client.get("/updates", params={"after": f"{EPOCH}-2"})).json()
    assert seqs(body) == [3, 4, 5]
    assert body["cursor"] == f"{EPOCH}-5"


@pulls
@on_a_loop
async def test_after_0_and_empty_mean_the_oldest_kept_and_never_a_gap(create_app: Any) -> None:
    """Whoever wants all there is gets it, also when the beginning is gone."""
    with serve(create_app(feed_of(10, history=4))) as server:
        async with http(server) as client:
            for after in ("0", ""):
                body = (await client.get("/updates", params={"after": after})).json()
                assert seqs(body) == [7, 8, 9, 10]


@pulls
@on_a_loop
async def test_a_client_far_behind_catches_up_in_batches(create_app: Any) -> None:
    """One answer has at most 500 updates; the rest follows at once, without a hole."""
    with serve(create_app(feed_of(1201))) as server:
        async with http(server) as client:
            cursor, sizes, got = "0", [], []
            while cursor != f"{EPOCH}-1201":
                body = (await client.get("/updates", params={"after": cursor})).json()
                cursor = body["cursor"]
                sizes.append(len(body["updates"]))
                got += seqs(body)
    assert sizes == [500, 500, 201]
    assert got == list(range(1, 1202))


@pulls
@pytest.mark.parametrize(("cursor", "reason"), [(f"{EPOCH}-5", "expired"), ("0ther-8", "epoch"), ("0ther-99", "epoch")])
@on_a_loop
async def test_a_gap_is_answered_with_410_and_where_to_go_on(create_app: Any, cursor: str, reason: str) -> None:
    """A cursor from too long ago or from another epoch is told so, and never answered with a silent hole."""
    feed = feed_of(10, history=4)
    app = create_app(feed)
    with serve(app) as server:
        async with http(server) as client:
            gone = await client.get("/updates", params={"after": cursor})
            oldest = await client.get("/updates", params={"after": gone.json()["oldest"]})
            feed.publish("later")
            later = await client.get("/updates", params={"after": gone.json()["cursor"]})
    assert gone.status_code == 410
    assert gone.json() == {"reason": reason, "cursor": f"{EPOCH}-10", "oldest": f"{EPOCH}-6"}
    assert gone.headers["cache-control"] == "no-store"
    assert seqs(oldest.json()) == [7, 8, 9, 10]
    assert seqs(later.json()) == [11]
    assert app.traffic.resets == 1


BAD_CURSORS = {
    "word": "after=yesterday",
    "number": "after=7",
    "capitals": "after=E0E0-1",
    "no number": "after=e0e0-",
    "negative": "after=e0e0--1",
    "fraction": "after=e0e0-1.0",
    "trailing newline": "after=e0e0-1%0a",
    "trailing space": "after=e0e0-1%20",
    "other digits": "after=e0e0-%d9%a1",
    "not UTF-8": "after=%ff%fe",
    "NUL": "after=e0e0-1%00",
    "markup": "after=%3cscript%3e",
    "from the future": "after=e0e0-4",
    "over-long number": "after=e0e0-" + "1" * 19,
    "over-long": "after=" + "a" * 50_000 + "-1",
    "two": "after=e0e0-1&after=e0e0-2",
    "the same twice": "after=e0e0-1&after=e0e0-1",
}


@pytest.fixture(scope="module", params=[short, long, fast_short, fast_long])
def refusing(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server whose log stands at 3."""
    with serve(request.param(feed_of(3))) as server:
        yield server


@pytest.mark.parametrize("query", BAD_CURSORS.values(), ids=list(BAD_CURSORS))
@on_a_loop
async def test_a_cursor_that_no_server_hands_out_is_refused_in_one_sentence(refusing: Server, query: str) -> None:
    """A malformed, over-long, doubled or future cursor is a 400 that says what is wrong."""
    async with http(refusing) as client:
        answer = await client.get(f"/updates?{query}")
    assert answer.status_code == 400
    assert list(answer.json()) == ["detail"]
    assert re.fullmatch(r"[^\n]{10,120}", answer.json()["detail"])


@pulls
@on_a_loop
async def test_the_same_script_read_in_small_steps_or_at_once_is_the_same(create_app: Any) -> None:
    """What a client gets does not depend on when it asks."""
    feed = Feed()
    with serve(create_app(feed)) as server:
        async with http(server) as client:
            cursor = (await client.get("/updates")).json()["cursor"]
            stepwise: list[Any] = []
            for number in range(20):
                feed.publish(f"{number}")
                if number % 3 == 0:
                    body = (await client.get("/updates", params={"after": cursor})).json()
                    cursor, stepwise = body["cursor"], stepwise + body["updates"]
            stepwise += (await client.get("/updates", params={"after": cursor})).json()["updates"]
            at_once = json.loads((await client.get("/updates?after=0")).content)["updates"]
    assert [update["path"] for update in stepwise] == [f"{number}" for number in range(20)]
    assert stepwise == at_once
