"""The checks of notebook 02: requests when nothing happens, a client, and a server's two halves: cursor and hold."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from lab.bench.experiment import Client
from lab.checks.overload import Evidence, pulling_client
from lab.checks.verdict import STUB, Verdict, compared, is_stub
from lab.virtual import Net, run_virtual
from servers import long_polling


def quiet_requests(function: Callable[[float, float, float], float]) -> Verdict:
    """Exercise: `quiet_requests(clients, hold, rtt)`: requests per second of long polling when nothing happens."""
    mistakes: dict[str, Callable[..., Any]] = {
        "That is one client's; there are more of them.": lambda clients, hold, rtt: 1 / (hold + rtt),
        "The gap between an answer and the next request is missing.": lambda clients, hold, rtt: clients / hold,
        "That is the limit for dense news; without news a request stays for the whole hold.": (
            lambda clients, hold, rtt: clients / rtt
        ),
        "That is how long a request takes, for all clients; the question is how many there are in a second.": (
            lambda clients, hold, rtt: clients * (hold + rtt)
        ),
    }
    cases = [(1.0, 10.0, 0.1), (1000.0, 30.0, 0.05), (200.0, 20.0, 1.0)]
    praise = "Each client asks once in a hold and a round trip."
    return compared(function, lambda clients, hold, rtt: clients / (hold + rtt), mistakes, cases, praise)


def long_polling_client(client: Client) -> Verdict:
    """Exercise: `client(url, log)` long-polls with a hold of 20 s, loses nothing, and keeps away when asked to."""

    def further(evidence: Evidence) -> str | None:
        assert evidence.run
        if evidence.run.requests > 90:
            return f"{evidence.run.requests} requests in two minutes: is it held at all?"
        if (late := evidence.run.delay(0.5)) > 0.5:
            return f"Half of the updates are {late:.1f} s late or more: the server should do the waiting."
        return None

    return pulling_client(client, long_polling.create_app, "is it held at all?", further)


class Entry(NamedTuple):
    """One update in a log: when it was published, by the server's clock (s), and of which file."""

    published: float
    path: str


# Two entries share a time stamp, and the clock is set back once: both happen.
STAMPS = (100.0, 100.5, 100.5, 101.0, 99.0, 99.5, 101.0, 102.0)


def answers_from_a_cursor(function: Callable[[Sequence[Entry], Any], tuple[Sequence[Entry], Any]]) -> Verdict:
    """Exercise: `answer(log, after)` gives (what the log holds after the cursor, the next cursor); after None, all.

    The log grows from question to question, and each question is asked twice, as by a client whose first answer
    was lost on the way.
    """
    if is_stub(function):
        return STUB
    entries = [Entry(stamp, f"file-{number}") for number, stamp in enumerate(STAMPS)]
    got, cursor = list[Entry](), None
    try:
        for end in (2, 4, 4, 5, 7, 8):
            first, again = function(entries[:end], cursor), function(entries[:end], cursor)
            if not (isinstance(first, tuple) and len(first) == 2):
                return Verdict(False, f"It gives two things, the entries and the next cursor, not {first!r}.")
            if list(first[0]) != list(again[0]):
                return Verdict(
                    False,
                    "Asked the same twice, as by a client whose answer was lost on the way, it answered differently: "
                    "the server must not remember who has seen what; the cursor says it.",
                )
            got, cursor = got + list(first[0]), first[1]
    except Exception as error:
        return Verdict(False, f"It raised {type(error).__name__}: {error}.")
    return _judged(got, entries, cursor)


def _judged(got: list[Entry], entries: list[Entry], cursor: object) -> Verdict:
    lost, twice = [e for e in entries if e not in got], len(got) - len(set(got))
    if lost and isinstance(cursor, float):
        if cursor not in STAMPS:
            return Verdict(
                False,
                f"{len(lost)} of {len(entries)} updates were lost: a cursor from the clock says when somebody asked, "
                "not what had reached the log by then.",
            )
        return Verdict(
            False,
            f"{len(lost)} of {len(entries)} updates were lost: a time stamp is no cursor. Two updates may share one, "
            "and a clock may be set back.",
        )
    if got.count(entries[0]) > 2:
        return Verdict(False, "Everything comes again with each answer: `after` is not looked at.")
    if twice:
        return Verdict(False, f"{twice} came again: the cursor names the last one sent; go on behind it, not at it.")
    if lost:
        return Verdict(False, f"{len(lost)} of {len(entries)} updates were lost: does the cursor run ahead of the log?")
    return Verdict(True, "Every update once, with equal time stamps, a clock set back, and answers that were lost.")


class Archive:
    """A log in a database: reading takes time, and sees what was there when the reading began."""

    def __init__(self) -> None:
        self.head, self.reads = 0, 0
        self._subscribers: list[asyncio.Event] = []

    def subscribe(self) -> asyncio.Event:
        """An event that is set by the next publication."""
        event = asyncio.Event()
        self._subscribers.append(event)
        return event

    async def read(self, after: int) -> list[int]:
        """The numbers of the updates after number `after`, after 40 ms."""
        found = list(range(after + 1, self.head + 1))
        self.reads += 1
        await asyncio.sleep(0.04)
        return found

    def publish(self) -> None:
        """Add an update, with the next number, and tell whoever has subscribed so far."""
        self.head += 1
        for event in self._subscribers:
            event.set()
        self._subscribers.clear()


Hold = Callable[[Archive, int, float], Awaitable[Sequence[int]]]
# Two updates every 3 s, the second while the client's next request is on its way, or while the server reads for it.
PAIRS = [3.0 * pair + later for pair in range(1, 16) for later in (0.0, 0.06 if pair % 2 else 0.11)]
GAP, QUIET, WAIT = 0.05, 15.0, 10.0  # s: between two requests, the silence at the end, and the hold asked for


def holds_without_a_hole(hold: Hold) -> Verdict:
    """Exercise: `await next_news(archive, after, wait)` gives what is later than `after` as soon as there is some.

    It gives an empty list after `wait` s without news. It is asked again and again, in virtual time, while updates
    are published, some of them just while it reads.
    """
    if is_stub(hold):
        return STUB
    archive, published, got = Archive(), dict[int, float](), list[tuple[int, float]]()

    async def publish() -> None:
        loop = asyncio.get_running_loop()
        for at in PAIRS:
            await asyncio.sleep(at - loop.time())
            archive.publish()
            published[archive.head] = loop.time()

    async def main(net: Net) -> Verdict | None:
        loop, after = asyncio.get_running_loop(), 0
        publishing = asyncio.create_task(publish())
        try:
            while loop.time() < PAIRS[-1] + QUIET and len(got) < 2000:
                begin = loop.time()
                async with asyncio.timeout(WAIT + 5):
                    news = list(await hold(archive, after, WAIT))
                now = loop.time()
                if not news and now - begin < WAIT - 0.1:
                    return Verdict(False, f"It came back empty after {now - begin:.2g} s instead of {WAIT:g}: hold.")
                got.extend((number, now) for number in news)
                after = max([after, *news])
                await asyncio.sleep(GAP)
        finally:
            publishing.cancel()
        return None

    try:
        verdict = run_virtual(main, limit=300)
    except TimeoutError:
        return Verdict(False, "It holds for ever: nobody comes back after `wait` seconds without news.")
    except Exception as error:
        return Verdict(False, f"It raised {type(error).__name__}: {error}.")
    return verdict if verdict is not None else _held(got, published, archive.reads)


def _held(got: list[tuple[int, float]], published: dict[int, float], reads: int) -> Verdict:
    numbers = [number for number, _ in got]
    if len(numbers) > len(set(numbers)):
        return Verdict(False, f"{len(numbers) - len(set(numbers))} came again: read after `after`, not from the start.")
    if reads > 6 * len(PAIRS):
        return Verdict(False, f"It read {reads} times: that is polling, moved into the server. Wait for the event.")
    if lost := set(published) - set(numbers):
        return Verdict(False, f"{len(lost)} of {len(published)} updates were lost: it begins at “now”, not at `after`.")
    late = [at - published[number] for number, at in got if at - published[number] > 1]
    if late:
        return Verdict(
            False,
            f"A lost wake-up: {len(late)} updates, published while it was reading, waited up to {max(late):.1f} s for "
            "the next event. Subscribe before you read.",
        )
    return Verdict(True, f"All {len(published)} updates, each at once, also those published while it was reading.")
