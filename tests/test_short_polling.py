"""Short polling's own lines of the contract: ETag, 304, pace. What it shares with long polling is in test_pulls.py."""

from collections.abc import Iterator

import httpx
import pytest

from servers.background import Server, serve
from servers.feed import Feed
from servers.short_polling import create_app
from tests.support import http, on_a_loop

EPOCH = "e0e0"
TAG = f'"{EPOCH}-3"'  # of the newest update


def feed_of(count: int) -> Feed:
    feed = Feed(epoch=EPOCH)
    for number in range(count):
        feed.publish(f"file-{number}.txt")
    return feed


paths = pytest.mark.parametrize("fast", [False, True], ids=["readable", "fast"])


@pytest.fixture(scope="module", params=[False, True], ids=["readable", "fast"])
def at_three(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server whose newest update is the third."""
    with serve(create_app(feed_of(3), poll_interval=2.5, fast=request.param)) as server:
        yield server


async def ask(server: Server, after: str | None, *if_none_match: str) -> httpx.Response:
    async with http(server) as client:
        return await client.get(
            "/updates",
            params={} if after is None else {"after": after},
            headers=[("If-None-Match", line) for line in if_none_match],
        )


@pytest.mark.parametrize(
    ("after", "tag", "later"),
    [
        (f"{EPOCH}-3", TAG, None),
        (f"{EPOCH}-3", f'"{EPOCH}-2"', []),
        (f"{EPOCH}-2", TAG, [3]),
        (f"{EPOCH}-2", f'"{EPOCH}-2"', [3]),
        (None, TAG, None),
        (None, f'"{EPOCH}-2"', []),
        ("0", TAG, [1, 2, 3]),
        ("0", "*", [1, 2, 3]),
    ],
)
@on_a_loop
async def test_304_exactly_when_nothing_is_later_and_the_tag_is_known(
    at_three: Server, after: str | None, tag: str, later: list[int] | None
) -> None:
    """Either alone is not enough: a tag that matches never hides updates that the cursor has not seen."""
    answer = await ask(at_three, after, tag)
    assert answer.headers["etag"] == TAG
    if later is None:
        assert answer.status_code == 304
    else:
        assert answer.status_code == 200
        assert [update["seq"] for update in answer.json()["updates"]] == later


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([TAG], 304),
        ([f"W/{TAG}"], 304),
        (["*"], 304),
        ([f'"other", {TAG}'], 304),
        ([f'"other" ,W/{TAG} , "third"'], 304),
        (['"other"', TAG], 304),
        ([], 200),
        ([""], 200),
        ([TAG.strip('"')], 200),
        (['"*"'], 200),
        ([f"w/{TAG}"], 200),
        ([f'"{EPOCH}-33"'], 200),
        (['"other", "third"'], 200),
    ],
)
@on_a_loop
async def test_if_none_match_is_a_list_of_tags_compared_weakly(at_three: Server, lines: list[str], status: int) -> None:
    """Weak or strong, alone or in a list, on one line or two (RFC 9110, sections 5.3, 8.8.3.2, 13.1.2)."""
    assert (await ask(at_three, f"{EPOCH}-3", *lines)).status_code == status


@on_a_loop
async def test_a_304_has_no_body_and_says_again_what_a_200_says(at_three: Server) -> None:
    """ETag, Cache-Control and the pace come with both (RFC 9110, section 15.4.5)."""
    fresh, same = await ask(at_three, f"{EPOCH}-3"), await ask(at_three, f"{EPOCH}-3", TAG)
    assert (fresh.status_code, same.status_code) == (200, 304)
    assert same.content == b""
    assert "content-length" not in same.headers
    for answer in fresh, same:
        assert answer.headers["etag"] == TAG
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-poll-interval"] == "2.5"


@paths
@on_a_loop
async def test_a_connection_survives_a_304_and_the_next_answer_has_the_news(fast: bool) -> None:
    """One connection serves 304, 200, 304 in turn, and the tag follows the cursor."""
    feed = feed_of(3)
    statuses, connections = [], set()
    with serve(create_app(feed, fast=fast)) as server:
        async with http(server) as client:
            cursor, tag = feed.cursor, TAG
            for publish in (False, True, False):
                if publish:
                    feed.publish("news")
                answer = await client.get("/updates", params={"after": cursor}, headers={"If-None-Match": tag})
                tag = answer.headers["etag"]
                cursor = tag.strip('"')
                statuses.append(answer.status_code)
                connections.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
    assert statuses == [304, 200, 304]
    assert cursor == f"{EPOCH}-4"
    assert len(connections) == 1


@paths
@on_a_loop
async def test_a_batch_that_is_not_the_last_has_a_tag_of_its_own(fast: bool) -> None:
    """While a client catches up, the tag names where it stands, so no later answer is mistaken for it."""
    feed = feed_of(700)
    with serve(create_app(feed, fast=fast)) as server:
        async with http(server) as client:
            answer = await client.get(f"/updates?after={EPOCH}-0", headers={"If-None-Match": f'"{EPOCH}-500"'})
    assert answer.status_code == 200
    assert answer.headers["etag"] == f'"{EPOCH}-500"'
    assert len(answer.json()["updates"]) == 500


@paths
@on_a_loop
async def test_nothing_is_held(fast: bool) -> None:
    """The answer comes at once, news or not, and the server keeps nothing between two requests."""
    app = create_app(feed_of(3), fast=fast)
    with serve(app) as server:
        async with http(server) as client:
            for _ in range(5):
                answer = await client.get("/updates", params={"after": f"{EPOCH}-3", "wait": 60})
                assert answer.json() == {"updates": [], "cursor": f"{EPOCH}-3"}
        assert app.traffic.held == 0
        assert app.traffic.requests == 5
