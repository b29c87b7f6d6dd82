"""The feed: one log, its cursor, its gaps, and readers in several event loops while several threads publish."""

import asyncio
import base64
import contextlib
import gc
import json
import random
import re
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from servers import feed as feed_module
from servers.feed import BATCH_BYTES, BadCursor, Batch, Change, Feed, FutureCursor, Gap, Known, Update, check_path
from servers.service import Closing

LIMIT = 30.0  # seconds until a wait in these tests is given up


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Have the interpreter switch threads as often as it can, so that races show."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def filled(updates: int, **options: Any) -> Feed:
    """A feed of epoch "e" to which so many updates were published."""
    feed = Feed(epoch="e", **options)
    for n in range(1, updates + 1):
        feed.publish(f"file-{n}")
    return feed


def numbers(batch: Batch | Gap) -> list[int]:
    assert isinstance(batch, Batch)
    return [update.seq for update in batch.updates]


async def turns(count: int = 10) -> None:
    """Let everything that is ready on this loop run, and what follows from it."""
    for _ in range(count):
        await asyncio.sleep(0)


# --- an update and its encoding ---


def test_an_update_is_one_json_object_with_exactly_six_decimals_of_time() -> None:
    """The wire format has the documented keys in order, UTF-8 text, null for what is unknown, and no spaces."""
    update = Update(7, "e-7", "räp/ü.csv", "modified", 12, "ab", 1732305600.0, 0.5)
    assert update.json.decode() == (
        '{"seq":7,"path":"räp/ü.csv","change":"modified","size":12,"sha256":"ab","published":1732305600.000000}'
    )
    deleted = Update(8, "e-8", "a", "deleted", None, None, 1732305600.1234, 0.5)
    assert deleted.json.decode() == (
        '{"seq":8,"path":"a","change":"deleted","size":null,"sha256":null,"published":1732305600.123400}'
    )


def test_an_update_of_a_real_file_has_its_time_and_executable_bit() -> None:
    """Both travel, before `published`, or neither; the listing knows them, too, and a deleted file has none."""
    feed = Feed(epoch="e")
    update = feed.publish("run.sh", "added", size=1, sha256="ab", mtime=1732305600.25, executable=True)
    assert b'"sha256":"ab","mtime":1732305600.25,"executable":true,"published":' in update.json
    assert feed.listing()[1] == {"run.sh": Known(1, "ab", 1732305600.25, True)}
    assert b"mtime" not in feed.publish("made up", size=1, sha256="ab").json
    for options in ({"mtime": 1.0}, {"executable": False}):
        with pytest.raises(ValueError, match="travel together"):
            feed.publish("a", **options)
    with pytest.raises(ValueError, match="a deleted file has no"):
        feed.publish("run.sh", "deleted", mtime=1.0, executable=True)


def test_published_is_stamped_once_between_the_call_and_its_return() -> None:
    """The Unix time of an update is what its JSON says to the microsecond, and its stamp is the same moment."""
    feed = Feed()
    for _ in range(200):
        wall, clock = time.time(), time.perf_counter()
        update = feed.publish("a")
        assert wall - 1e-6 <= update.published <= time.time() + 1e-6
        assert clock <= update.stamp <= time.perf_counter()
        text = re.search(rb'"published":(\d+\.\d{6})}$', update.json)
        assert text
        assert float(text[1]) == update.published


@given(content=st.binary(max_size=100))
@settings(deadline=None, max_examples=30, print_blob=True)
def test_content_travels_inline_as_base64(content: bytes) -> None:
    """Content given to publish, empty too, comes back from the JSON byte for byte; without any there is no key."""
    update = Feed().publish("a", "added", size=len(content), content=content)
    assert base64.b64decode(json.loads(update.json)["content"], validate=True) == content
    assert "content" not in json.loads(Feed().publish("a").json)


@given(path=st.text(min_size=1))
@settings(deadline=None, max_examples=100, print_blob=True)
def test_any_path_that_is_accepted_survives_the_wire_on_one_line(path: str) -> None:
    """A path is refused, or it is relative and comes back from one line of JSON as it was."""
    try:
        check_path(path)
    except ValueError:
        return
    assert not path.startswith("/")
    assert ".." not in path.split("/")
    encoded = Feed().publish(path).json
    assert not re.search(rb"[\r\n\0]", encoded)
    assert json.loads(encoded)["path"] == path


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../up", "a/../b", "a//b", "a/", "./a", "a\0b", "caf\udce9"])
def test_a_path_that_no_client_should_see_is_refused(path: str) -> None:
    """An absolute, climbing, empty or undecodable path raises ValueError, and the log stays as it was."""
    feed = filled(2)
    with pytest.raises(ValueError, match="a path is"):
        feed.publish(path)
    assert feed.head == len(feed) == 2
    assert feed.publish("next").seq == 3


def test_a_change_of_no_known_kind_is_refused() -> None:
    """Only added, modified and deleted exist, and a deleted file has no size, hash or content."""
    feed = Feed()
    change: Any = "renamed"
    with pytest.raises(ValueError, match="a change is one of added, modified, deleted, not 'renamed'"):
        feed.publish("a", change)
    for known in ({"size": 0}, {"sha256": "00"}, {"content": b""}):
        fields: dict[str, Any] = known
        with pytest.raises(ValueError, match="a deleted file has no size, hash or content"):
            feed.publish("a", "deleted", **fields)
    assert feed.head == 0


@pytest.mark.parametrize("options", [{"history": 0}, {"history_bytes": 0}, {"epoch": "A"}, {"epoch": "a-b"}])
def test_a_feed_that_could_not_keep_its_promises_is_refused(options: dict[str, Any]) -> None:
    """A history of nothing or an epoch that no cursor can carry raises ValueError."""
    with pytest.raises(ValueError, match=r"history must hold|an epoch is"):
        Feed(**options)


def test_two_feeds_have_two_epochs() -> None:
    """A log that starts again is another log: its cursors are told from the old ones."""
    assert len({Feed().epoch for _ in range(100)}) == 100


# --- cursors ---


def test_no_cursor_is_from_now_on_and_zero_is_the_oldest_kept() -> None:
    """None stands for the head; "" and "0" for the oldest kept, which is never a gap."""
    feed = filled(10, history=4)
    assert feed.position(None) == 10
    for oldest in ("", "0"):
        assert numbers(feed.read(feed.position(oldest))) == [7, 8, 9, 10]
    empty = Feed()
    assert empty.position(None) == empty.position("") == empty.position("0") == 0
    assert numbers(empty.read(0)) == []


MALFORMED = [
    "-",
    "e",
    "e-",
    "-3",
    "e-3-3",
    "e--3",
    "e-+3",
    "e- 3",
    " e-3",
    "e-3 ",
    "e-3\n",
    "e-03",
    "e-3.0",
    "e_3",
    "E-3",
    "00",
    "1",
    "null",
    "e-\N{ARABIC-INDIC DIGIT THREE}",  # a digit to int(), and to a careless \\d
    "e-\N{FULLWIDTH DIGIT THREE}",
    "é-3",
    "e-1" + "0" * 18,
    "e" * 33 + "-3",
    "e-" + "1" * 10_000_000,
    "<script>alert(1)</script>",
    "e-3\0",
]


@pytest.mark.parametrize("cursor", MALFORMED, ids=lambda cursor: ascii(cursor[:30]))
def test_a_cursor_that_was_never_handed_out_is_refused(cursor: str) -> None:
    """What does not look like a cursor is a BadCursor, for a pull and for a stream."""
    feed = filled(5)
    sentence = 'a cursor looks like "<epoch>-<number>", and only a server hands it out'
    with pytest.raises(BadCursor, match=f"^{re.escape(sentence)}$"):
        feed.position(cursor)
    with pytest.raises(BadCursor, match=f"^{re.escape(sentence)}$"):
        feed.opening(cursor)


@given(cursor=st.text() | st.from_regex(r"(e|f|[0-9a-z]{1,34})-[0-9]{1,20}", fullmatch=True))
@settings(deadline=None, max_examples=100, print_blob=True)
def test_only_what_was_handed_out_is_a_position(cursor: str) -> None:
    """Any text is a cursor of the kept log, "" or "0", a BadCursor, or a Gap: nothing else, and nothing twice."""
    feed = filled(8, history=3)
    positions = {"": 5, "0": 5} | {f"e-{n}": n for n in range(5, 9)}
    if cursor in positions:
        assert feed.position(cursor) == positions[cursor]
        return
    with pytest.raises((Gap, BadCursor)) as caught:
        feed.position(cursor)
    if isinstance(caught.value, Gap):
        assert caught.value.reason == ("expired" if cursor.startswith("e-") else "epoch")


def test_a_cursor_of_another_epoch_is_a_gap() -> None:
    """A cursor from before a restart is recognised: the answer has the reason, the head and the oldest cursor."""
    feed = filled(9, history=4)
    with pytest.raises(Gap) as caught:
        feed.position("f-9")
    assert caught.value.as_dict() == {"reason": "epoch", "cursor": "e-9", "oldest": "e-5"}
    assert caught.value.position == 9


def test_a_cursor_that_fell_out_of_the_history_is_a_gap() -> None:
    """The oldest cursor that is answered in full is the one the gap names; one older is expired."""
    feed = filled(9, history=4)
    with pytest.raises(Gap) as caught:
        feed.position("e-4")
    assert caught.value.as_dict() == {"reason": "expired", "cursor": "e-9", "oldest": "e-5"}
    assert numbers(feed.read(feed.position(caught.value.oldest))) == [6, 7, 8, 9]
    with pytest.raises(Gap, match="expired"):
        feed.read(4)


def test_the_history_is_bounded_by_bytes_too() -> None:
    """When the JSON of the kept updates outgrows the bound, the oldest go, and their cursors are expired."""
    feed = Feed(epoch="e", history_bytes=1000)
    sizes = [len(feed.publish("x" * 100 + f"/{n}").json) for n in range(1, 21)]
    assert sum(sizes[-len(feed) :]) <= 1000 < sum(sizes[-len(feed) - 1 :])
    oldest = 20 - len(feed)
    assert numbers(feed.read(feed.position(f"e-{oldest}"))) == list(range(oldest + 1, 21))
    with pytest.raises(Gap, match="expired"):
        feed.position(f"e-{oldest - 1}")


def test_an_update_larger_than_the_whole_bound_is_still_delivered() -> None:
    """The newest update is kept whatever its size: who waits for it gets it."""
    feed = Feed(history_bytes=100)
    for n in range(3):
        feed.publish(f"{n}", size=1000, content=bytes(1000))
        assert len(feed) == 1
        assert numbers(feed.read(n)) == [n + 1]


def test_a_cursor_from_the_future_is_refused_by_a_pull_and_a_gap_for_a_stream() -> None:
    """A number that this epoch has not reached is a FutureCursor; a stream begins with a reset instead."""
    feed = filled(3)
    with pytest.raises(FutureCursor, match=r"^the cursor is ahead of this log, whose newest is e-3$"):
        feed.position("e-4")
    gap = feed.opening("e-4")
    assert isinstance(gap, Gap)
    assert gap.as_dict() == {"reason": "epoch", "cursor": "e-3", "oldest": "e-0"}


def test_a_stream_opens_with_an_empty_batch_that_says_where_it_stands() -> None:
    """Opening gives the position and its cursor, or the gap as a value, since a stream goes on after it."""
    feed = filled(6, history=2)
    for cursor, position in ((None, 6), ("", 4), ("0", 4), ("e-5", 5)):
        batch = feed.opening(cursor)
        assert isinstance(batch, Batch)
        assert (batch.updates, batch.position, batch.cursor) == ((), position, f"e-{position}")
    gap = feed.opening("e-3")
    assert isinstance(gap, Gap)
    assert (gap.reason, gap.position) == ("expired", 6)


# --- the log ---


class Log(RuleBasedStateMachine):
    """The feed against a plain list: whatever is published and read in whatever order, from wherever.

    `readers` are cursors; each is read on from as any client would, in batches of any size.
    """

    readers: Bundle[str] = Bundle("readers")

    def __init__(self) -> None:
        super().__init__()
        self.exits = contextlib.ExitStack()

    @initialize(history=st.integers(1, 8), history_bytes=st.integers(1, 1500), batch=st.integers(1, 5))
    def begin(self, history: int, history_bytes: int, batch: int) -> None:
        self.exits.enter_context(mock.patch.object(feed_module, "BATCH", batch))
        self.batch = batch
        self.feed = Feed(history=history, history_bytes=history_bytes, epoch="e")
        self.log: list[bytes] = []
        self.oldest = 0

    def teardown(self) -> None:
        self.exits.close()

    @rule(path=st.sampled_from(["a", "b/c", "ü", "x" * 50]), change=st.sampled_from(["added", "modified", "deleted"]))
    def publish(self, path: str, change: Change) -> None:
        self.log.append(self.feed.publish(path, change).json)
        sizes = [len(encoded) for encoded in self.log]
        while len(self.log) - self.oldest > self.feed.history or (
            sum(sizes[self.oldest :]) > self.feed.history_bytes and self.oldest < len(self.log) - 1
        ):
            self.oldest += 1

    @rule(target=readers)
    def now(self) -> str:
        return self.feed.cursor

    @rule(target=readers)
    def from_the_oldest(self) -> str:
        batch = self.feed.read(self.feed.position("0"))
        assert [update.json for update in batch.updates] == self.log[self.oldest :][: self.batch]
        return batch.cursor

    @rule(target=readers, reader=readers)
    def read_on(self, reader: str) -> str:
        number = int(reader.removeprefix("e-"))
        if number < self.oldest:
            with pytest.raises(Gap) as caught:
                self.feed.position(reader)
            head, oldest = f"e-{len(self.log)}", f"e-{self.oldest}"
            assert caught.value.as_dict() == {"reason": "expired", "cursor": head, "oldest": oldest}
            return head
        batch = self.feed.read(self.feed.position(reader))
        assert [update.json for update in batch.updates] == self.log[number:][: self.batch]
        assert [update.seq for update in batch.updates] == list(range(number + 1, batch.position + 1))
        assert batch.cursor == f"e-{batch.position}"
        body = json.loads(batch.body)
        assert body == {"updates": [json.loads(update.json) for update in batch.updates], "cursor": batch.cursor}
        return batch.cursor

    @invariant()
    def keeps_what_it_says(self) -> None:
        if hasattr(self, "feed"):
            assert (self.feed.head, len(self.feed)) == (len(self.log), len(self.log) - self.oldest)


Log.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=30, print_blob=True)
TestLog = Log.TestCase


@given(total=st.integers(0, 40), start=st.integers(0, 40), sizes=st.lists(st.integers(1, 9), min_size=1))
@settings(deadline=None, max_examples=60, print_blob=True)
def test_reading_on_from_any_cursor_in_any_batches_gives_the_rest_of_the_log(
    total: int, start: int, sizes: list[int]
) -> None:
    """Ordered, unique, complete, resumable: the batches laid end to end are the log from the cursor on."""
    feed = filled(total)
    cursor, seen, steps = feed.cursor_at(min(start, total)), list[int](), 0
    while feed.position(cursor) < feed.head:
        with mock.patch.object(feed_module, "BATCH", sizes[steps % len(sizes)]):
            batch = feed.read(feed.position(cursor))
        assert 1 <= len(batch.updates) <= sizes[steps % len(sizes)]
        seen += numbers(batch)
        cursor, steps = batch.cursor, steps + 1
    assert seen == list(range(min(start, total) + 1, total + 1))


def test_an_answer_has_a_fixed_number_of_updates_at_most() -> None:
    """A reader that is far behind is told what fits in one batch, and the cursor after it."""
    feed = filled(1200)
    assert [len(feed.read(position).updates) for position in (0, 500, 1000, 1200)] == [500, 500, 200, 0]
    assert feed.read(0).cursor == "e-500"


def test_an_answer_has_a_fixed_number_of_bytes_at_most() -> None:
    """Large updates fill a batch sooner: with the one that brings it to the bound, so that a reader knows."""
    feed = Feed(epoch="e")
    for _ in range(30):
        feed.publish("a", content=bytes(50_000))
    seen = position = 0
    while position < feed.head:
        batch = feed.read(position)
        size, position, seen = sum(len(u.json) for u in batch.updates), batch.position, seen + len(batch.updates)
        assert size - len(batch.updates[-1].json) < BATCH_BYTES
        assert size >= BATCH_BYTES or position == feed.head
    assert seen == feed.head
    feed.publish("huge", content=bytes(2 * BATCH_BYTES))
    assert len(feed.read(position).updates) == 1


def test_files_are_remembered_only_where_a_listing_is_asked_for() -> None:
    """A feed that nobody lists is bounded by its history; one that is listed knows every file from then on."""
    feed = Feed(epoch="e", history=3)
    for number in range(100):
        feed.publish(f"{number}", size=number)
    assert len(feed.listing()[1]) == 3  # what the history still knew
    feed.publish("98", "deleted")
    for number in range(100, 110):
        feed.publish(f"{number}", size=number)
    assert feed.listing() == (111, {f"{n}": Known(n, None) for n in (97, 99, *range(100, 110))})


def test_publishing_from_many_threads_gives_every_update_its_own_number(eager_threads: None) -> None:
    """Eight threads at once: numbers are contiguous, nothing is lost, each thread's order and the clock's are kept."""
    feed = Feed(history=10_000)
    start = threading.Barrier(8)

    def publish(thread: int) -> None:
        start.wait(LIMIT)
        for n in range(200):
            feed.publish(f"{thread}/{n}")

    threads = [threading.Thread(target=publish, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    log: list[Update] = []
    while len(log) < 1600:
        log += feed.read(len(log)).updates
    assert [update.seq for update in log] == list(range(1, 1601))
    for own in range(8):
        assert [u.path for u in log if u.path.startswith(f"{own}/")] == [f"{own}/{n}" for n in range(200)]
    assert all(earlier.stamp <= later.stamp for earlier, later in pairwise(log))


def test_memory_is_bounded_by_the_history() -> None:
    """Ten times as much published as the history holds takes hardly more memory than the history."""
    feed = Feed(history_bytes=2**20)
    content = bytes(7500)  # 10,000 characters in base64

    def publish(times: int) -> None:
        for _ in range(times):
            feed.publish("a", size=len(content), content=content)

    tracemalloc.start()
    try:
        publish(100)
        full, _ = tracemalloc.get_traced_memory()
        publish(1000)
        later, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(len(update.json) for update in feed.read(feed.position("")).updates) <= 2**20
    assert full < later < 1.3 * 2**20


# --- encoding once ---


def test_readers_of_one_stretch_share_one_batch_and_one_encoding() -> None:
    """Fifty readers that wait at the head get the same object; each wire format is made once for each publish."""

    async def body() -> None:
        feed, made = Feed(), list[str]()
        closing = Closing(feed)

        def as_text(batch: Batch) -> str:
            made.append(batch.cursor)
            return batch.body.decode()

        def as_bytes(batch: Batch) -> bytes:
            made.append(batch.cursor)
            return batch.body

        async def reader() -> list[tuple[Batch, str, bytes]]:
            seen = []
            async for news in feed.follow(0, closing):
                assert isinstance(news, Batch)
                seen.append((news, news.encoded(as_text), news.encoded(as_bytes)))
            return seen

        readers = [asyncio.create_task(reader()) for _ in range(50)]
        for n in range(3):
            await turns()
            feed.publish(f"{n}")
        await turns()
        closing.close()
        async with asyncio.timeout(LIMIT):
            first, *others = await asyncio.gather(*readers)
        assert [numbers(batch) for batch, _, _ in first] == [[1], [2], [3]]
        for other in others:
            for mine, its in zip(first, other, strict=True):
                assert all(a is b for a, b in zip(mine, its, strict=True))
        assert made == [cursor for batch, _, _ in first for cursor in (batch.cursor, batch.cursor)]
        assert first[0][0].body is first[0][0].body

    asyncio.run(body())


# --- waiting ---


def test_following_gives_everything_once_while_threads_publish(eager_threads: None) -> None:
    """Three loops in three threads, readers that join at any moment: none misses, repeats or swaps an update."""
    feed = Feed(history=10**6)
    closing = Closing(feed)
    under_way, joined = threading.Semaphore(0), threading.Semaphore(0)
    all_joined = threading.Event()
    found: list[tuple[int, list[int]]] = []

    def publish(thread: int) -> None:
        rng = random.Random(thread)
        after = 0
        while after < 200:
            feed.publish(f"{thread}")
            after += all_joined.is_set()
            under_way.release()
            if rng.random() < 0.2:
                time.sleep(0.001)  # readers catch up and wait, so that waits begin at many moments

    async def reader(delay: int) -> None:
        await turns(delay)
        start = position = feed.position(None)
        seen: list[int] = []
        joined.release()
        async with asyncio.timeout(LIMIT):
            while not seen or feed.read(seen[-1] - 1).updates[0].path != "end":
                async with contextlib.aclosing(feed.follow(position, closing)) as stream:
                    async for news in stream:
                        seen += numbers(news)
                        position = news.position
                        break  # leave, and come again from there
        found.append((start, seen))

    def follow() -> None:
        async def readers() -> None:
            async with asyncio.TaskGroup() as group:
                for n in range(4):
                    group.create_task(reader(n * 20))

        asyncio.run(readers())

    publishers = [threading.Thread(target=publish, args=(thread,)) for thread in range(4)]
    followers = [threading.Thread(target=follow) for _ in range(3)]
    for thread in publishers:
        thread.start()
    assert under_way.acquire(timeout=LIMIT)
    for thread in followers:
        thread.start()
    for _ in range(12):
        assert joined.acquire(timeout=LIMIT)
    all_joined.set()
    for thread in publishers:
        thread.join(LIMIT)
    feed.publish("end")
    for thread in followers:
        thread.join(LIMIT)
    assert len(found) == 12
    for start, seen in found:
        assert seen == list(range(start + 1, feed.head + 1))
        assert len(seen) > 200


def test_loops_that_come_at_the_same_moment_are_all_woken(eager_threads: None) -> None:
    """Eight threads with a loop each ask for the first time at once: a publish wakes the readers of all eight."""
    for _ in range(60):
        feed = Feed()
        closing = Closing(feed)
        start, waiting = threading.Barrier(8), threading.Semaphore(0)
        woken: list[int] = []

        async def wait(feed: Feed, closing: Closing, start: threading.Barrier, waiting: threading.Semaphore) -> int:
            start.wait(LIMIT)
            reader = asyncio.create_task(feed.wait(0, closing))
            await turns()
            waiting.release()
            async with asyncio.timeout(LIMIT):
                await reader
            return feed.head

        def run(*everything: Any, woken: list[int] = woken) -> None:
            woken.append(asyncio.run(wait(*everything)))

        threads = [threading.Thread(target=run, args=(feed, closing, start, waiting)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert waiting.acquire(timeout=LIMIT)
        feed.publish("a")
        for thread in threads:
            thread.join(LIMIT)
        assert woken == [1] * 8


def test_many_publishes_while_a_loop_is_busy_wake_it_once() -> None:
    """A hundred updates from another thread, or from the loop itself, are one wake and one batch for each reader."""

    async def body() -> None:
        loop = asyncio.get_running_loop()
        feed = Feed()
        closing = Closing(feed)
        batches: list[list[int]] = []

        async def reader() -> None:
            async for news in feed.follow(0, closing):
                batches.append(numbers(news))

        def publish() -> None:
            for n in range(100):
                feed.publish(f"{n}")

        def in_another_thread() -> None:
            thread = threading.Thread(target=publish)
            thread.start()
            thread.join(LIMIT)

        readers = [asyncio.create_task(reader()) for _ in range(3)]
        wakes: list[Callable[..., object]] = []
        for source in (publish, in_another_thread):
            await turns()
            for name in ("call_soon", "call_soon_threadsafe"):
                original = getattr(loop, name)

                def spy(
                    callback: Callable[..., object], *args: Any, original: Callable[..., object] = original, **more: Any
                ) -> object:
                    if getattr(callback, "__self__", None).__class__ is feed_module.Bell:
                        wakes.append(callback)
                    return original(callback, *args, **more)

                setattr(loop, name, spy)
            source()  # the loop is busy with it
            await turns()
            for name in ("call_soon", "call_soon_threadsafe"):
                delattr(loop, name)
        assert len(wakes) == 2
        closing.close()
        async with asyncio.timeout(LIMIT):
            await asyncio.gather(*readers)
        assert batches == [list(range(1, 101))] * 3 + [list(range(101, 201))] * 3

    asyncio.run(body())


def test_closing_one_server_ends_its_readers_only() -> None:
    """Two servers on one feed: when one closes, its readers end at once and the other's go on."""

    async def body() -> None:
        feed = Feed()
        ours, theirs = Closing(feed), Closing(feed)

        async def reader(closing: Closing) -> list[int]:
            return [n async for news in feed.follow(0, closing) for n in numbers(news)]

        async with asyncio.timeout(LIMIT):
            ending = [asyncio.create_task(reader(ours)) for _ in range(3)]
            ending_waits = [asyncio.create_task(feed.wait(1, ours)) for _ in range(3)]
            staying = [asyncio.create_task(reader(theirs)) for _ in range(3)]
            staying_wait = asyncio.create_task(feed.wait(1, theirs))
            feed.publish("a")
            await turns()
            await asyncio.to_thread(ours.close)
            assert await asyncio.gather(*ending) == [[1]] * 3
            await asyncio.gather(*ending_waits)
            assert not staying_wait.done()
            feed.publish("b")
            await staying_wait
            await turns()
            theirs.close()
            assert await asyncio.gather(*staying) == [[1, 2]] * 3

    asyncio.run(body())


def test_a_reader_that_comes_after_the_closing_ends_at_once() -> None:
    """With the closing signal set there is nothing to wait for, news or not."""

    async def body() -> None:
        feed = filled(3)
        closing = Closing(feed)
        closing.close()
        async with asyncio.timeout(LIMIT):
            await feed.wait(3, closing)
            assert [news async for news in feed.follow(0, closing)] == []

    asyncio.run(body())


def test_a_slow_reader_falls_off_the_history_and_goes_on_from_the_head() -> None:
    """A reader that is away too long gets one Gap with the head's cursor, then what comes after it."""

    async def body() -> None:
        feed = Feed(epoch="e", history=5)
        closing = Closing(feed)
        news = feed.follow(0, closing)
        async with asyncio.timeout(LIMIT):
            feed.publish("a")
            assert numbers(await anext(news)) == [1]
            for n in range(5):
                feed.publish(f"{n}")
            assert numbers(await anext(news)) == [2, 3, 4, 5, 6]  # away for exactly the history: nothing is gone
            for n in range(6):
                feed.publish(f"{n}")
            gap = await anext(news)
            assert isinstance(gap, Gap)
            assert gap.as_dict() == {"reason": "expired", "cursor": "e-12", "oldest": "e-7"}
            feed.publish("b")
            assert numbers(await anext(news)) == [13]
        await news.aclose()

    asyncio.run(body())


def test_a_cancelled_reader_leaves_nothing_behind() -> None:
    """Whoever is cancelled while waiting, or leaves a stream, is forgotten by the feed before the next publish."""

    async def body() -> None:
        feed = Feed()
        closing = Closing(feed)

        async def reader() -> None:
            async for _ in feed.follow(0, closing):
                pass

        tasks = [asyncio.create_task(reader()) for _ in range(10)]
        tasks += [asyncio.create_task(feed.wait(0, closing)) for _ in range(10)]
        await turns()
        (bell,) = feed._bells.values()
        assert len(bell._waiting) == 20
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=LIMIT)
        assert all(task.cancelled() for task in tasks)
        assert len(bell._waiting) == 0
        feed.publish("a")
        await turns()

    asyncio.run(body())


def test_a_reader_cancelled_together_with_the_wake_disturbs_no_other() -> None:
    """A publish and a cancellation in the same turn of the loop: the others are woken all the same."""

    async def body() -> None:
        feed = Feed()
        closing = Closing(feed)
        tasks = [asyncio.create_task(feed.wait(0, closing)) for _ in range(3)]
        await turns()
        feed.publish("a")
        tasks[1].cancel()
        async with asyncio.timeout(LIMIT):
            await asyncio.wait(tasks)
        assert [task.cancelled() for task in tasks] == [False, True, False]

    asyncio.run(body())


@pytest.mark.parametrize("rung", [False, True])
def test_a_closed_loop_is_forgotten(rung: bool) -> None:
    """Publishing after a loop was closed, even with a wake under way, raises nothing, and the loop is let go."""
    feed = Feed()
    closing = Closing(feed)

    async def cancelled_wait(publish: bool) -> None:
        task = asyncio.create_task(feed.wait(feed.head, closing))
        await turns()
        task.cancel()
        await asyncio.wait({task}, timeout=LIMIT)
        if publish:
            feed.publish("in the last turn of this loop")

    loop = asyncio.new_event_loop()
    loop.run_until_complete(cancelled_wait(rung))
    loop.close()
    forgotten = weakref.ref(loop)
    del loop
    feed.publish("a")
    feed.publish("b")
    asyncio.run(cancelled_wait(False))
    gc.collect()
    assert forgotten() is None
