"""One question, four deliveries: whichever model a client takes, it is told the same updates and the same cursor."""

import asyncio
import contextlib
import functools
import itertools
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.background import serve
from servers.feed import BATCH_BYTES, Feed, Update
from servers.models import MODELS
from servers.sources import synthetic_edits
from servers.tree import Edit
from tests.support_feed import READERS, Answer, read_until

CREATE_APP = {model.slug: model.create_app for model in MODELS}
CREATE_APP |= {f"{slug}, fast": functools.partial(create, fast=True) for slug, create in CREATE_APP.items()}


@contextlib.contextmanager
def all_models(feed: Feed) -> Iterator[dict[str, str]]:
    """The four servers on one feed, each readable and fast: model -> URL."""
    with contextlib.ExitStack() as servers:
        yield {model: servers.enter_context(serve(create(feed))).url for model, create in CREATE_APP.items()}


def publish(feed: Feed, edit: Edit) -> Update:
    return feed.publish(edit.path, edit.change, size=edit.size, sha256=edit.sha256, content=edit.content)


def on_the_wire(updates: list[Update]) -> list[dict[str, Any]]:
    return [json.loads(update.json) for update in updates]


async def read_all(urls: dict[str, str], after: str, count: int) -> dict[str, Answer]:
    """What each model tells from a cursor on, and where it then stands, all four reading side by side."""
    answers = await asyncio.gather(
        *(read_until(m.partition(",")[0], url, after, lambda seen: len(seen) >= count) for m, url in urls.items())
    )
    return dict(zip(urls, answers, strict=True))


@pytest.mark.parametrize("payload", [0, 30], ids=["names", "contents"])
def test_every_model_tells_the_same_log(payload: int) -> None:
    """A seeded script of more than one batch: from the start and from the middle, all four give the identical list."""
    feed = Feed()
    script = itertools.islice(synthetic_edits(10, seed=7, payload=payload), 1100)
    updates = [publish(feed, edit) for edit in script]
    with all_models(feed) as urls:
        for after, expected in (("0", updates), (updates[549].cursor, updates[550:])):
            for told, cursor in asyncio.run(read_all(urls, after, len(expected))).values():
                assert told == on_the_wire(expected)
                assert cursor == feed.cursor == updates[-1].cursor


def test_what_an_answer_holds_is_bounded() -> None:
    """However far behind a client is, no model makes it one answer of all: megabytes come as several, and complete."""
    feed = Feed()
    for number in range(60):
        feed.publish(f"{number}", size=100_000, sha256="0" * 64, content=bytes(100_000))
    most = 4 * BATCH_BYTES  # a full batch, the update that crosses the bound, and their envelope

    async def sizes(model: str, url: str) -> list[int]:
        seen, found = 0, []
        async with asyncio.timeout(30), contextlib.aclosing(READERS[model.partition(",")[0]](url, "0")) as answers:
            async for updates, _ in answers:
                seen += len(updates)
                found.append(len(json.dumps(updates)))
                if seen >= feed.head:
                    break
        assert seen == feed.head
        return found

    with all_models(feed) as urls:
        for model, url in urls.items():
            assert max(asyncio.run(sizes(model, url))) < most


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12)
line_ends = st.sampled_from(
    ["\n", "\r\n\r\n", "\u2028", "\x85", "\x1c", "data: \n\nid: 0"]
)  # to whom splits lines carelessly
names = (texts | line_ends).filter(lambda name: name not in (".", ".."))
edits = st.builds(
    Edit,
    at=st.just(0.0),
    path=st.lists(names, min_size=1, max_size=3).map("/".join),
    change=st.sampled_from(["added", "modified"]),
    size=st.none() | st.integers(0, 2**60),
    sha256=st.none() | st.text("0123456789abcdef", min_size=64, max_size=64),
    content=st.none() | st.binary(max_size=50),
) | st.builds(Edit, at=st.just(0.0), path=names, change=st.just("deleted"))


@pytest.fixture(scope="module")
def one_feed() -> Iterator[tuple[Feed, dict[str, str]]]:
    """The four servers on a feed that the examples share, each from where the one before it ended."""
    feed = Feed()
    with all_models(feed) as urls:
        yield feed, urls


@given(script=st.lists(edits, min_size=1, max_size=8), data=st.data())
@settings(deadline=None, max_examples=15, print_blob=True)
def test_every_model_tells_the_same_of_any_script(
    one_feed: tuple[Feed, dict[str, str]], script: list[Edit], data: st.DataObject
) -> None:
    """Any names, sizes and contents, from any cursor: the four lists are identical, and they are what was published."""
    feed, urls = one_feed
    updates = [publish(feed, edit) for edit in script]
    skipped = data.draw(st.integers(0, len(script) - 1))
    after = feed.cursor_at(updates[skipped].seq - 1)
    for told, cursor in asyncio.run(read_all(urls, after, len(script) - skipped)).values():
        assert told == on_the_wire(updates[skipped:])
        assert [update["path"] for update in told] == [edit.path for edit in script[skipped:]]
        assert cursor == feed.cursor


def test_every_model_tells_the_same_while_a_thread_publishes() -> None:
    """Clients of all models come to one feed at different moments: each is told all from its cursor on, once."""
    feed = Feed()
    script = list(itertools.islice(synthetic_edits(10, seed=3), 600))
    updates: list[Update] = []
    halfway, go_on = threading.Event(), threading.Event()

    def publish_all() -> None:
        for n, edit in enumerate(script):
            updates.append(publish(feed, edit))
            if n % 20 == 0:
                time.sleep(0.005)  # some catch up and wait, some do not
            if n == 300:
                halfway.set()
                go_on.wait(30)

    async def read(urls: dict[str, str]) -> list[tuple[str, dict[str, Answer]]]:
        async with asyncio.timeout(60):
            first = asyncio.create_task(read_all(urls, "0", 600))
            thread.start()
            await asyncio.to_thread(halfway.wait, 30)
            middle = updates[99].cursor
            later = [
                asyncio.create_task(read_all(urls, after, 600 - n)) for after, n in ((middle, 100), (feed.cursor, 301))
            ]
            await asyncio.sleep(0)
            go_on.set()
            return [("0", await first), (middle, await later[0]), (updates[300].cursor, await later[1])]

    thread = threading.Thread(target=publish_all)
    with all_models(feed) as urls:
        try:
            results = asyncio.run(read(urls))
        finally:
            go_on.set()
            thread.join(30)
    for after, answers in results:
        start = 0 if after == "0" else int(after.rpartition("-")[2])
        for told, cursor in answers.values():
            assert told == on_the_wire(updates[start:])
            assert cursor == feed.cursor
