"""The checks of notebook 02: requests when nothing happens, a client, and a server's two halves: cursor and hold.

client           ─▶ a proxy that cuts, and notes each request (Held) ─▶ the real server
answer(log, …)   ─▶ asked twice, by several clients; what it gives, compared with the log
next_news(…)     ─▶ asked again and again in virtual time; each Call, compared with what was published
"""

import asyncio
import inspect
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from lab.bench.experiment import Client, ExperimentError, experiment
from lab.bench.result import Run
from lab.bench.schedule import Schedule
from lab.checks.bounded import Misfit, asked_for, bounded, concerns_the_answer, explained, virtually
from lab.checks.overload import ENOUGH, UNANSWERED, Asked, Evidence, asks_wrongly, delivers_wrongly
from lab.checks.values import plain, shown
from lab.checks.verdict import Verdict, awaiting, compared, judged, tried
from lab.virtual import Link, Net, VirtualError, serve
from servers import long_polling
from servers.feed import Feed

# ── requests when nothing happens ────────────────────────────────────────────────────────────────────────────────────


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
        "The gap is one round trip: the answer's way back and the next request's way there.": (
            lambda clients, hold, rtt: clients / (hold + 2 * rtt)
        ),
        "The round trip comes after the hold, and not out of it: the server holds for the whole of it.": (
            lambda clients, hold, rtt: clients / (hold - rtt)
        ),
        "The gap is the whole round trip, not one way of it.": lambda clients, hold, rtt: clients / (hold + rtt / 2),
        "That is how many there are in a minute.": lambda clients, hold, rtt: 60 * clients / (hold + rtt),
        "Here the hold is exactly `hold`, and not drawn from a tenth below it.": (
            lambda clients, hold, rtt: clients / (0.95 * hold + rtt)
        ),
    }
    cases = [(1, 10.0, 0.1), (1000, 30.0, 0.05), (200, 20.0, 1.0)]
    praise = "Each client asks once in a hold and a round trip."
    return compared(function, lambda clients, hold, rtt: clients / (hold + rtt), mistakes, cases, praise)


# ── a client that finds its hold ─────────────────────────────────────────────────────────────────────────────────────

PATIENCE = (45.0, 14.0)  # s that the proxies of the two trials wait for an answer
DELAY, SECONDS, RATE = 0.025, 1200.0, 1 / 30  # s, s, updates per second
FORGETS, LEARNT = 600.0, 800.0  # s: the first request from here on is forgotten; from here on the hold is found
LIMIT, PAUSE, CUTS = 10.0, 5.0, 20  # s beyond the hold; s after an answer; 504s at most
FIRST_HOLD = 60.0  # s
DEFAULT_WAIT = 30.0  # s; of the server, for a request without `wait`


@dataclass(frozen=True)
class Held(Asked):
    """One request as the proxy saw it: the hold that it asks for (s), until when it lasted, and whether it was left."""

    wait: float = DEFAULT_WAIT
    says: bool = True  # how long to hold
    until: float = 0.0
    left: bool = False


class Impatient:
    """A proxy as a middleware: after `patience` s without an answer a 504; one request it never answers."""

    def __init__(self, app: ASGIApp, patience: float, asked: list[Asked]) -> None:
        self.app, self.patience, self.asked = app, patience, asked
        self.begin, self.forgot = time.monotonic(), False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        at, query = self._now, Request(scope).query_params
        after, wait = query.get("after"), _number(query.get("wait"))
        if len(self.asked) >= ENOUGH:
            await asyncio.sleep(3600)
        if at >= FORGETS and not self.forgot:
            self.forgot = True
            while (await receive())["type"] != "http.disconnect":
                pass
            self.asked.append(Held(at, after, UNANSWERED, wait=wait, says="wait" in query, until=self._now, left=True))
            return
        said: list[MutableMapping[str, Any]] = []
        left = False

        async def heard() -> MutableMapping[str, Any]:
            nonlocal left
            message = await receive()
            left = left or (message["type"] == "http.disconnect" and not said)
            return message

        async def keep(message: MutableMapping[str, Any]) -> None:
            said.append(message)

        try:
            async with asyncio.timeout(self.patience):
                await self.app(scope, heard, keep)
        except TimeoutError:
            said = [{"type": "http.response.start", "status": 504, "headers": []}, {"type": "http.response.body"}]
        status = said[0]["status"]
        body = b"".join(message.get("body", b"") for message in said[1:])
        answer = json.loads(body) if status == 200 and scope["path"] == "/updates" else {}
        seqs = () if left else tuple(update["seq"] for update in answer.get("updates", ()))
        cursor = None if left else answer.get("cursor")
        self.asked.append(
            Held(at, after, status, seqs, cursor, wait=wait, says="wait" in query, until=self._now, left=left)
        )
        for message in said:
            await send(message)

    @property
    def _now(self) -> float:
        return time.monotonic() - self.begin


def _number(text: str | None) -> float:
    try:
        return DEFAULT_WAIT if text is None else float(text)
    except ValueError:
        return DEFAULT_WAIT  # the server answers 422


@judged
def long_polling_client(client: Client) -> Verdict:
    """Exercise: `client(url, log)` long-polls through a proxy whose patience it must find out; nothing is lost.

    For twenty virtual minutes on the real server, behind two proxies one after the other. Each answers 504 after some
    seconds without an answer, and once does not answer at all.
    """
    found = []
    for patience in PATIENCE:
        asked, evidence = _behind(client, patience)
        if wrong := _fault(asked, evidence, patience):
            return Verdict(False, wrong)
        hold = max(request.wait for request in asked if request.at >= LEARNT)
        found.append(f"{hold:.3g} s where {patience:g} are allowed")
    return Verdict(True, f"Nothing lost, nothing twice; held for {' and '.join(found)}.")


def _behind(client: Client, patience: float) -> tuple[list[Held], Evidence]:
    evidence = Evidence()

    async def main(net: Net) -> Run:
        app = long_polling.create_app(Feed(), seed=1)
        app.add_middleware(Impatient, patience=patience, asked=evidence.asked)
        async with serve(app) as served:
            return await experiment(served, awaiting(client), _bursts(), clients=1, grace=90)

    try:
        evidence.run = virtually(main, link=Link(delay=DELAY))
    except ExperimentError as problem:
        evidence.raised = asked_for(problem)
    evidence.asked.sort(key=lambda request: request.at)
    return [request for request in evidence.asked if isinstance(request, Held)], evidence


def _bursts() -> Schedule:
    """Random updates, every third of which is followed by two more while the next request is on its way."""
    first = Schedule.poisson(RATE, SECONDS, seed=7).times
    return Schedule.at(sorted([*first, *(at + more for at in first[::3] for more in (0.01, 0.02))]), SECONDS + 1)


def _fault(asked: list[Held], evidence: Evidence, patience: float) -> str | None:
    """What is wrong with a client by this evidence, or nothing."""
    if evidence.raised and asked and asked[-1].status in (504, UNANSWERED):
        what = "the 504" if asked[-1].status == 504 else "the request that the proxy forgot"
        return f"It does not outlive {what}, and must ask again. {explained(evidence.raised)}"
    if asked and asked[0].wait > FIRST_HOLD + 1:
        return f"At first it asks to be held for {asked[0].wait:g} s; {FIRST_HOLD:g} are asked for."
    if wrong := _gives_up_early(asked) or _asks_too_often(asked, patience) or asks_wrongly(evidence, ""):
        return wrong
    answered = [request for request in asked if request.status != UNANSWERED]
    if not answered:
        return delivers_wrongly(evidence) or "It made no request that could be answered."
    return (
        _waits_wrongly(asked, answered)
        or delivers_wrongly(evidence)
        or _pauses(answered)
        or _holds_wrongly(answered, patience)
    )


def _waits_wrongly(asked: list[Held], answered: list[Held]) -> str | None:
    if not any(request.says for request in asked):
        return f"It never says how long to hold it: without `wait` the server's own {DEFAULT_WAIT:g} s count."
    if len(asked) > 1 and asked[-1].at < FORGETS and asked[-1].status == 504:
        return f"After the 504 at {asked[-1].until:.0f} s it never asked again."
    forgotten = next((request for request in asked if request.status == UNANSWERED), None)
    if forgotten and forgotten is asked[-1]:
        return f"It waits for ever for one answer, asked for at {forgotten.at:.0f} s: a time limit is missing."
    if forgotten and (waited := forgotten.until - forgotten.at) > forgotten.wait + LIMIT + 1:
        return (
            f"For an answer that never came it waited {waited:.0f} s, though it had asked to be held for "
            f"{forgotten.wait:.0f}: give it {LIMIT:g} s more at most."
        )
    return None


def _gives_up_early(asked: list[Held]) -> str | None:
    impatient = [request for request in asked if request.left and request.until - request.at < request.wait - 1]
    if len(impatient) < 3:  # the experiment's end is one, and a forgotten request may be another
        return None
    one = impatient[0]
    return (
        f"It asks to be held for {one.wait:g} s, and gives up after {one.until - one.at:.1f} s itself, "
        f"{len(impatient)} times: its own time limit must lie above the hold."
    )


def _asks_too_often(asked: list[Held], patience: float) -> str | None:
    if len(asked) < ENOUGH or any(request.status in (400, 404, 422) for request in asked):
        return None
    often = f"{len(asked)} requests in {asked[-1].at:.0f} s"
    brought = [seq for request in asked for seq in request.updates]
    if len(brought) > len(set(brought)):
        still = len({request.after for request in asked}) == 1
        why = (
            "the cursor does not move with the answers." if still else "send the cursor of the last answer, each time."
        )
        return f"{often}, and the same updates came again: {why}"
    if all(request.after is None for request in asked):
        return f"{often}: without `after` each request begins at “now”, and is answered at once. Send the cursor."
    hold = asked[-1].wait
    if hold < 0.5:
        return f"{often}: is it held at all?"
    return f"{often}, where the proxy would wait for {patience:g} s: in the end it asks to be held for {hold:.3g}."


def _pauses(answered: list[Held]) -> str | None:
    pairs = itertools.pairwise(answered)
    pauses = sorted(later.at - last.until for last, later in pairs if last.status == 200 and not last.left)
    if pauses and (usual := pauses[len(pauses) // 2]) > 0.5:
        return f"Between an answer and the next request lie {usual:.1f} s: the server does the waiting, ask at once."
    return None


def _holds_wrongly(answered: list[Held], patience: float) -> str | None:
    cuts = [request for request in answered if request.status == 504]
    late = [request for request in answered if request.at >= LEARNT]
    if not late:
        return f"After {LEARNT:.0f} s it asked no more."
    holds = sorted({request.wait for request in late})
    before = sorted({request.wait for request in answered})
    if any(request.status == 504 for request in late):
        if len(before) == 1:
            return (
                f"It asks to be held for {before[0]:g} s every time, and the proxy cuts it {len(cuts)} times: after a "
                "504 ask for less."
            )
        return (
            f"The proxy waits for {patience:g} s, and after {LEARNT:.0f} s it still asks for {holds[-1]:g} and is cut: "
            "ask for less after each 504, and stay there."
        )
    if len(cuts) > CUTS:
        return f"It was cut {len(cuts)} times before it had found its hold: ask for a good deal less after each 504."
    if holds[0] < patience / 2 - 1e-6:
        why = "" if cuts else " It was never cut: begin with 60 s."
        return (
            f"The proxy would wait for {patience:g} s, and in the end it asks to be held for {holds[0]:.3g}: more "
            f"requests for nothing than need be.{why}"
        )
    return None


# ── the cursor ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Entry(NamedTuple):
    """One update in a log: when it was published, by the server's clock (s), and of which file."""

    published: float
    path: str


# Two share a time stamp, the clock is set back once, files change again, and two entries are equal: all of it happens.
LOG = tuple(
    Entry(stamp, f"file-{name}")
    for stamp, name in [
        (100.0, "a"),
        (100.5, "b"),
        (100.5, "c"),
        (101.0, "a"),
        (99.0, "b"),
        (99.5, "d"),
        (101.0, "a"),
        (102.0, "c"),
        (102.0, "c"),
        (102.5, "b"),
    ]
)
# Who asks, and how long the log is then. The last two have been away for long.
ASKED = [
    (0, 0),
    (0, 2),
    (1, 2),
    (0, 2),
    (0, 3),
    (2, 3),
    (0, 5),
    (0, 7),
    (1, 7),
    (0, 8),
    (0, 9),
    (0, 10),
    (1, 10),
    (2, 10),
]


class Question(NamedTuple):
    """A question, what came (plain entries, or an exception), and what should have come."""

    length: int  # of the log
    since: int | None  # the length of the log when the cursor was given out
    came: Any
    again: Any
    due: Any


Answering = Callable[[Sequence[Entry], Any], tuple[Iterable[Entry], Any]]


@judged
def answers_from_a_cursor(function: Answering) -> Verdict:
    """Exercise: `answer(log, after)` gives (what the log holds after the cursor, the next cursor); after None, nothing.

    The log grows from question to question, several clients ask, and each question is asked twice, as by a client
    whose first answer was lost on the way.
    """
    questions, cursors = bounded(lambda: _questioned(function))
    wrong = [q for q in questions if q.came != q.due or q.again != q.due]
    if not wrong:
        return Verdict(True, "Every update once, with equal time stamps, a clock set back, and answers that were lost.")
    first = wrong[0]
    if isinstance(first.came, Exception):
        return Verdict(False, f"{_circumstances(first)}: {explained(first.came)}")
    if first.came == first.due:
        again = explained(first.again) if isinstance(first.again, Exception) else _listed(first.again)
        return Verdict(
            False,
            f"Asked the same twice, as by a client whose answer was lost on the way, it first gave "
            f"{_listed(first.came)}, and then {again}. The server must not remember who has seen what; the cursor says "
            "it.",
        )
    came = [q.came for q in questions]
    if not any(came) and any(isinstance(c, float) and c not in {e.published for e in LOG} for c in cursors):
        return Verdict(
            False,
            "Nothing ever came: a cursor from the clock says when somebody asked, not how long the log was then.",
        )
    if len(questions) == len(ASKED) and all(plain(cursor) == plain(cursors[0]) for cursor in cursors):
        return Verdict(
            False,
            f"The cursor is always {shown(plain(cursors[0]))}: it does not move. Give out where an answer ends.",
        )
    like = [text for text, ways in CURSOR_MISTAKES.items() if any(_came(way) == came for way in ways)]
    if len(like) == 1:
        return Verdict(False, like[0])
    return Verdict(
        False, f"{_circumstances(first)} it gives {_listed(first.came)}, and should give {_listed(first.due)}."
    )


def _came(way: Answering) -> list[Any]:
    return [question.came for question in _questioned(way)[0]]


def _questioned(function: Answering) -> tuple[list[Question], list[Any]]:
    """All questions, and the cursors that were given out."""
    held: dict[int, tuple[int | None, Any]] = {}
    questions = []
    cursors = []
    for client, length in ASKED:
        since, cursor = held.get(client, (None, None))
        due = plain(list(LOG[since:length])) if since is not None else []
        (came, given), (again, _) = (_asked(function, length, cursor) for _ in range(2))
        questions.append(Question(length, since, came, again, due))
        if isinstance(came, Exception):
            break
        held[client] = (length, given)
        cursors.append(given)
    return questions, cursors


def _asked(function: Answering, length: int, cursor: Any) -> tuple[Any, Any]:
    """The entries as plain lists, or an exception; and the next cursor as it is."""
    given = []

    def entries(log: list[Entry], after: Any) -> Any:
        result: Any = function(log, after)
        if inspect.isawaitable(result):
            return result
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            hint = " Is there a `return`?" if result is None else ""
            raise Misfit(f"It gives two things, the entries and the next cursor, not {shown(plain(result))}.{hint}")
        given.append(result[1])
        return result[0]

    came = tried(entries, (list(LOG[:length]), cursor))
    return came, given[0] if given else None


def _circumstances(question: Question) -> str:
    cursor = "no cursor (None)" if question.since is None else f"the cursor given out when there were {question.since}"
    return f"With {question.length} entries in the log, and {cursor},"


def _listed(entries: Any) -> str:
    if not isinstance(entries, list):
        return shown(entries)
    names = ", ".join(f"{e[1]} at {e[0]:g}" if isinstance(e, list) and len(e) == 2 else shown(e) for e in entries)
    return f"{len(entries)} ({names})" if entries else "nothing"


def _from(start: Callable[[Sequence[Entry], Any], int], cursor: Callable[[Sequence[Entry]], Any] = len) -> Answering:
    """An answer that begins at `start(log, after)`, and after None at now."""
    return lambda log, after: ([] if after is None else log[start(log, after) :], cursor(log))


def _since(picks: Callable[[Entry, Any], bool], cursor: Callable[[Sequence[Entry]], Any]) -> Answering:
    """An answer that picks entries one by one."""
    return lambda log, after: ([] if after is None else [e for e in log if picks(e, after)], cursor(log))


def _newest(log: Sequence[Entry]) -> float:
    return log[-1].published if log else 0.0


def _greatest(log: Sequence[Entry]) -> float:
    return max((entry.published for entry in log), default=0.0)


def _last(key: Callable[[Entry], Any], first: bool) -> Answering:
    """An answer whose cursor is the last entry's name, looked up from the front or from the back."""

    def start(log: Sequence[Entry], after: Any) -> int:
        places = [place for place, entry in enumerate(log, 1) if key(entry) == after]
        return (places[0] if first else places[-1]) if places else 0

    return _from(start, lambda log: key(log[-1]) if log else "")


def _whole(log: Sequence[Entry]) -> tuple[Any, ...]:
    return tuple(log[-1]) if log else ()


CURSOR_MISTAKES: dict[str, tuple[Answering, ...]] = {
    "A time stamp is no cursor: two updates may share one, and a clock may be set back. Here some were lost.": (
        _since(lambda e, t: e.published > t, _newest),
        _since(lambda e, t: e.published > t, _greatest),
    ),
    "A time stamp is no cursor: two updates may share one, so some came again; and a clock may be set back.": (
        _since(lambda e, t: e.published >= t, _newest),
        _since(lambda e, t: e.published >= t, _greatest),
    ),
    "A path is no cursor: a file changes again, and then its name stands for two places in the log.": (
        _last(lambda e: e.path, first=True),
        _last(lambda e: e.path, first=False),
    ),
    "Time stamp and path are no cursor: a file may change twice in one instant, and a clock may be set back.": (
        _last(tuple, first=True),
        _since(lambda e, last: tuple(e) > last, _whole),
        _since(lambda e, last: tuple(e) > last, lambda log: max(map(tuple, log), default=())),
    ),
    "Everything comes again with each answer: `after` is not looked at.": (
        lambda log, after: (log, len(log)),
        lambda log, after: ([] if after is None else log, len(log)),
    ),
    "The cursor does not move: what was sent comes again. Give out the place where this answer ends.": (
        lambda log, after: ([], len(log)) if after is None else (log[after:], after),
    ),
    "The cursor stands at the last one that was sent, and that comes again: go on behind it.": (
        _from(lambda log, after: max(0, after - 1)),
        _from(lambda log, after: max(0, after), lambda log: len(log) - 1),
    ),
    "The cursor runs ahead of the log: with each answer the next update is skipped.": (
        _from(lambda log, after: after, lambda log: len(log) + 1),
        _from(lambda log, after: after + 1),
    ),
    "A client without a cursor (`None`) begins at now: it is given nothing yet, and the cursor of this moment.": (
        lambda log, after: (log[after or 0 :], len(log)),
    ),
    "The cursor of an empty log is taken for none: `if not after` holds for 0, too. Ask for `is None`.": (
        lambda log, after: (log[after:], len(log)) if after else ([], len(log)),
    ),
    "The order is turned round: a client applies what comes in the order in which it happened.": (
        lambda log, after: ([] if after is None else log[after:][::-1], len(log)),
    ),
    "Of each file only the latest change comes; asked for are all.": (
        lambda log, after: (_latest([] if after is None else log[after:]), len(log)),
        lambda log, after: (_latest([] if after is None else log[after:], late=True), len(log)),
    ),
    "Only the newest entry comes; asked for are all that came after the cursor.": (
        lambda log, after: ([] if after is None else log[after:][-1:], len(log)),
        lambda log, after: ([] if after is None else log[-1:], len(log)),
    ),
    "The cursor counts the entries of one answer; it must say how far in the log that answer reached.": (
        lambda log, after: ([] if after is None else log[after:], len([] if after is None else log[after:])),
    ),
}


def _latest(entries: Sequence[Entry], late: bool = False) -> list[Entry]:
    """The last entry of each path, in the order of the paths' first change or of their last."""
    latest: dict[str, Entry] = {}
    for entry in entries:
        if late:
            latest.pop(entry.path, None)
        latest[entry.path] = entry
    return list(latest.values())


# ── the hold ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Archive:
    """A log in a database: reading takes time, and sees what was there when the reading began."""

    def __init__(self) -> None:
        self._head = 0
        self._subscribers: list[asyncio.Event] = []

    def subscribe(self) -> asyncio.Event:
        """An event that is set by the next publication."""
        event = asyncio.Event()
        self._subscribers.append(event)
        return event

    async def read(self, after: int) -> list[int]:
        """The numbers of the updates after number `after`, after 40 ms."""
        found = list(range(after + 1, self._head + 1))
        await asyncio.sleep(0.04)
        return found

    def publish(self) -> None:
        """Add an update, with the next number, and tell whoever has subscribed so far."""
        self._head += 1
        for event in self._subscribers:
            event.set()
        self._subscribers.clear()


@dataclass
class Call:
    """One call of the answer: what was asked and when (s), what it read and for what it waited, and what came."""

    after: int
    wait: float
    begin: float
    end: float = 0.0
    came: Any = None
    raised: BaseException | None = None
    out_of_time: bool = False
    reads: list[tuple[float, list[int]]] = field(default_factory=list)  # when it began (s), what it found
    subscribed: int = 0
    looks: int = 0  # at an event, without waiting for it

    @property
    def lasted(self) -> float:
        return self.end - self.begin


class Event(asyncio.Event):
    """An event that notes how often it is asked whether it is set."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self._call = call

    def is_set(self) -> bool:
        """Whether it is set."""
        self._call.looks += 1
        return super().is_set()


class Watched(Archive):
    """An archive that notes in each call what is done with it, and when (s) each update was published."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.published: dict[int, float] = {}

    def subscribe(self) -> asyncio.Event:
        """An event that is set by the next publication."""
        self.calls[-1].subscribed += 1
        event = Event(self.calls[-1])
        self._subscribers.append(event)
        return event

    async def read(self, after: int) -> list[int]:
        """The numbers of the updates after number `after`, after 40 ms."""
        reads = self.calls[-1].reads
        reads.append((asyncio.get_running_loop().time(), list(range(after + 1, self._head + 1))))
        if len(reads) > MANY:
            raise Misfit(f"It reads {len(reads)} times in one call, without an end: {POLLS}")
        return await super().read(after)

    def publish(self) -> None:
        """Add an update, and note when."""
        super().publish()
        self.published[self._head] = asyncio.get_running_loop().time()


Hold = Callable[[Archive, int, float], Awaitable[Sequence[int]]]
# When something is published (s): three before anybody asks; then pairs each 3 s, the second while the client's next
# request is on its way, or while the server reads for it; then silence.
PAIRS = [3.0 * pair + later for pair in range(1, 16) for later in (0.0, 0.063 if pair % 2 else 0.117)]
MOMENTS = [0.1, 0.2, 0.3, *PAIRS, 60.0, 60.013, 60.021]
FIRST, END, GAP = 1.0, 102.0, 0.05  # s: the first call, the time after which none begins, between two calls
WAITS = (10.0, 6.0)  # s: the holds asked for, in turn
READING, PROMPT = 0.04, 0.101  # s: one reading; two of them and a little
MANY, FEW = 1000, 4  # readings in a call: without an end; for one in which nothing happens
AGAIN = 5  # each so many calls the answer is lost, and the same is asked again
POLLS = "that is polling, moved into the server. Wait for the event."


@judged
def holds_without_a_hole(hold: Hold) -> Verdict:
    """Exercise: `await next_news(archive, after, wait)` gives what is later than `after` as soon as there is some.

    It gives an empty list after `wait` s without news. It is asked again and again, in virtual time, while updates
    are published, some of them just while it reads.
    """
    archive, answer = Watched(), awaiting(hold)

    async def publish() -> None:
        loop = asyncio.get_running_loop()
        for at in MOMENTS:
            await asyncio.sleep(at - loop.time())
            archive.publish()

    async def main(net: Net) -> None:
        loop, after = asyncio.get_running_loop(), 0
        publishing = asyncio.create_task(publish())
        try:
            await asyncio.sleep(FIRST - loop.time())
            while loop.time() < END:
                call = Call(after, WAITS[len(archive.calls) % 2], loop.time())
                archive.calls.append(call)
                await _carried_out(call, answer, archive)
                if wrong := _wrong(call, archive):
                    raise Misfit(wrong)
                if len(archive.calls) % AGAIN:
                    after = max([after, *call.came])
                await asyncio.sleep(GAP)
        finally:
            publishing.cancel()

    virtually(main, limit=300)
    calls, empty = len(archive.calls), sum(not call.came for call in archive.calls)
    return Verdict(
        True,
        f"All {len(archive.published)} updates, each at once, also those published while it was reading; {empty} of "
        f"{calls} answers were empty, in time.",
    )


async def _carried_out(call: Call, answer: Callable[..., Awaitable[Any]], archive: Watched) -> None:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(call.wait + 10) as limit:
            call.came = await asyncio.ensure_future(answer(archive, call.after, call.wait))  # a task, as in a server
    except TimeoutError as error:
        call.out_of_time = limit.expired()
        call.raised = None if call.out_of_time else error
    except (Misfit, VirtualError):
        raise
    except Exception as error:
        if not concerns_the_answer(error):
            raise
        call.raised = error
    call.end = loop.time()
    if hasattr(call.came, "__aiter__"):
        raise Misfit("It is a generator: give one list, with `return`, not with `yield`.")


def _wrong(call: Call, archive: Watched) -> str | None:
    """What is wrong with one call of the answer, or nothing; `came` is then a plain list."""
    missed = [n for n, at in archive.published.items() if n > call.after and at < call.end - PROMPT]
    if call.raised:
        if isinstance(call.raised, TimeoutError) and not missed:
            return (
                f"When {call.wait:g} s were over it raised TimeoutError, as `asyncio.timeout` and `asyncio.wait_for` "
                "do then: catch it, and give an empty list."
            )
        return explained(call.raised)
    if call.out_of_time and not missed:
        return (
            f"It holds for too long: {call.wait:g} s without news have been over for 10 s, and it does not come back."
        )
    if call.out_of_time:
        return _late(call, archive, missed)
    try:
        came = plain(call.came)
    except Exception as error:
        return explained(error)
    if not isinstance(came, list):
        return f"It gives {shown(came)}, and should give a list.{' Is there a `return`?' if came is None else ''}"
    call.came = came
    return _content(call, archive) or _polls(call) or _timing(call, archive, missed)


def _content(call: Call, archive: Watched) -> str | None:
    came, read = call.came, [n for n in call.reads[-1][1] if n > call.after] if call.reads else []
    wanted = list(range(call.after + 1, call.after + 1 + len(came)))
    asked = f"Asked for what is later than {call.after}, it gives {shown(came)}"
    if came == wanted and (not came or came[-1] in archive.published) and not set(came) < set(read):
        unread = set(came).difference(*(found for each in archive.calls for _, found in each.reads))
        return f"{asked}, and has not read it: more than one may have been published." if unread else None
    numbers = [n for n in came if isinstance(n, int)]
    if len(numbers) < len(came):
        return f"{asked}: no numbers of updates."
    if numbers and max(numbers) not in archive.published:
        return f"{asked}: nothing like that has been published."
    if sorted(came) == wanted and came != wanted:
        return f"{asked}: all of it, and not in the order in which it was published."
    if numbers and min(numbers) <= call.after:
        return f"{asked}: that came before. Read after `after`, not from the start."
    if set(came) < set(read):
        return f"{asked}. It had read {shown(read)}: give all of it, or the rest is lost."
    if archive.published[min(numbers)] > call.begin and call.after + 1 in archive.published:
        return f"{asked}: {call.after + 1} is lost. It begins at “now”, not at `after`."
    return f"{asked}, and should give {shown(wanted)}."


def _polls(call: Call) -> str | None:
    if len(call.reads) > FEW + 2 * len(call.came):
        return f"It read {len(call.reads)} times in {call.lasted:.1f} s: {POLLS}"
    if call.looks > FEW:
        return f"It looked {call.looks} times whether the event is set: {POLLS}"
    held = call.lasted > 0.5
    if held and not call.subscribed:
        return (
            f"It was there for {call.lasted:.1f} s, and never called `archive.subscribe()`: how does it learn of news?"
        )
    return None


def _timing(call: Call, archive: Watched, missed: list[int]) -> str | None:
    ready = max(call.begin, archive.published.get(call.after + 1, call.begin))
    if call.came and call.end - ready > PROMPT:
        return _late(call, archive, [n for n in call.came if call.end - archive.published[n] > PROMPT])
    if call.came:
        return None
    if missed:
        return _late(call, archive, missed)
    if call.lasted < call.wait - 0.1 and call.after + 1 in archive.published:
        return f"It came back empty after {call.lasted:.2g} s, when there was news: read again when the event is set."
    if call.lasted < call.wait - 0.1:
        return f"It came back empty after {call.lasted:.2g} s instead of {call.wait:g}: hold."
    if call.lasted > call.wait + 0.25:
        return f"It came back empty after {call.lasted:.3g} s instead of {call.wait:g}: `wait` says how long to hold."
    return None


def _late(call: Call, archive: Watched, late: list[int]) -> str:
    first = min(late)
    at = max(archive.published[first], call.begin)
    waited = f"update {first} waited {call.end - at:.2f} s"
    while_reading = [begin for begin, _ in call.reads if begin <= archive.published[first] <= begin + READING + 1e-9]
    alone = all(archive.published[n] <= while_reading[0] + READING + 1e-9 for n in late) if while_reading else False
    if alone and archive.published[first] > call.begin and call.subscribed:
        return (
            f"A lost wake-up: published while it was reading, {waited} for the next event. Subscribe before you read."
        )
    return f"News is to be given as soon as there is some; {waited}, of a hold of {call.wait:g} s."
