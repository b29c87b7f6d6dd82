"""What an exercise cell calls to check an answer: it says what is right, or which mistake the answer looks like.

    your function ─▶ tried on cases, or run as a client in virtual time ─▶ Verdict, which prints itself

A check never raises for a wrong answer, so that a notebook with open exercises runs to its end.
"""

import asyncio
import dis
import functools
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from lab.experiment import Client, ExperimentError
from lab.result import Run
from lab.schedule import Schedule
from lab.trial import Trial
from servers import long_polling, short_polling
from servers.feed import Feed
from servers.service import Service


@dataclass(frozen=True)
class Verdict:
    """Whether the answer passes, and one or two sentences."""

    ok: bool
    text: str

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        return f"✓ {self.text}" if self.ok else f"Not yet. {self.text}"


STUB = Verdict(False, "This is still the empty stub: replace the dots by your code, run the cell, and check again.")


def is_stub(function: Callable[..., Any]) -> bool:
    """Whether a function's body is only a docstring and dots: it looks at nothing, not even at its arguments."""
    loads = any(
        step.opname.startswith("LOAD") and step.opname != "LOAD_CONST" for step in dis.get_instructions(function)
    )
    return not loads and set(function.__code__.co_consts) <= {None, function.__doc__, Ellipsis}


def compared(
    function: Callable[..., Any],
    right: Callable[..., Any],
    mistakes: dict[str, Callable[..., Any]],
    cases: Sequence[tuple[Any, ...]],
    praise: str,
) -> Verdict:
    """Try a function on cases; if it is wrong, name the mistake whose results are the same as its results."""
    if is_stub(function):
        return STUB
    given = [_tried(function, case) for case in cases]
    for result, case in zip(given, cases, strict=True):
        if isinstance(result, Exception):
            return Verdict(False, f"For {_named(case)} it raised {type(result).__name__}: {result}.")
    if _same(given, [right(*case) for case in cases]):
        return Verdict(True, praise)
    for text, mistake in mistakes.items():
        if _same(given, [mistake(*case) for case in cases]):
            return Verdict(False, text)
    wrong = next((g, c) for g, c in zip(given, cases, strict=True) if not _same([g], [right(*c)]))
    return Verdict(False, f"For {_named(wrong[1])} it gives {wrong[0]!r}, and should give {right(*wrong[1])!r}.")


def _tried(function: Callable[..., Any], case: tuple[Any, ...]) -> Any:
    try:
        return function(*case)
    except Exception as error:
        return error


def _named(case: tuple[Any, ...]) -> str:
    return ", ".join(map(repr, case))


def _same(given: list[Any], wanted: list[Any]) -> bool:
    def close(a: Any, b: Any) -> bool:
        if isinstance(b, (list, tuple)):
            return isinstance(a, (list, tuple)) and len(a) == len(b) and all(map(close, a, b))
        return isinstance(a, (int, float)) and abs(a - b) <= 1e-9 * max(1.0, abs(b))

    return all(map(close, given, wanted))


# Notebook 00


def count_faults(function: Callable[[list[int], list[int]], tuple[int, int]]) -> Verdict:
    """Exercise: `count_faults(published, received)` gives how many updates are lost, and how many came twice."""

    def right(published: list[int], received: list[int]) -> tuple[int, int]:
        times = Counter(received)
        return sum(seq not in times for seq in published), len(received) - len(times)

    mistakes: dict[str, Callable[..., Any]] = {
        "It looks as if lost ones were found by comparing lengths: one lost and one duplicate then cancel out.": (
            lambda p, r: (max(0, len(p) - len(r)), len(r) - len(set(r)))
        ),
        "It looks as if duplicates were looked for in a set, which has none.": (lambda p, r: (len(set(p) - set(r)), 0)),
        "It counts how many updates came more than once; what came three times is two duplicates.": (
            lambda p, r: (len(set(p) - set(r)), sum(n > 1 for n in Counter(r).values()))
        ),
    }
    cases = [([1, 2, 3], [1, 2, 3]), ([1, 2, 3, 4], [1, 2, 2, 4]), ([1, 2], []), ([1, 2, 3], [1, 1, 1, 3, 3])]
    return compared(
        function, right, mistakes, cases, "Lost and duplicated are counted apart, and neither hides the other."
    )


def delays_from_plan(function: Callable[[list[float], list[float], list[float]], list[float]]) -> Verdict:
    """Exercise: `delays_from_plan(planned, sent, answered)` gives the delays that coordinated omission cannot hide."""

    def minus(a: list[float], b: list[float]) -> list[float]:
        return [x - y for x, y in zip(a, b, strict=True)]

    mistakes: dict[str, Callable[..., Any]] = {
        "These are the delays from sending: the stall that kept the client from sending is left out.": (
            lambda planned, sent, answered: minus(answered, sent)
        ),
        "This is how late each question was sent, not how long its answer took to come.": (
            lambda planned, sent, answered: minus(sent, planned)
        ),
    }
    cases = [([0.0, 1.0, 2.0], [0.0, 1.5, 2.0], [0.5, 1.6, 2.1]), ([1.0], [3.0], [3.25])]
    praise = "Each delay counts from the moment at which the question should have been asked."
    return compared(function, lambda planned, sent, answered: minus(answered, planned), mistakes, cases, praise)


# Notebook 01


def longest_interval(function: Callable[[float, float], float]) -> Verdict:
    """Exercise: `longest_interval(budget, transit)`: the longest T with 95 % of the updates within `budget`."""
    mistakes: dict[str, Callable[..., Any]] = {
        "With this interval the *mean* delay keeps the budget; almost half of the updates do not.": (
            lambda budget, transit: 2 * (budget - transit)
        ),
        "The answer's way back is missing: 95 % are within 0.95 T + d, not within 0.95 T.": (
            lambda budget, transit: budget / 0.95
        ),
        "The delay counts from the publication, so only the way back counts: d, not the round trip.": (
            lambda budget, transit: (budget - 2 * transit) / 0.95
        ),
        "With this interval *all* updates keep the budget, the worst included; 95 % may take a longer one.": (
            lambda budget, transit: budget - transit
        ),
    }
    cases = [(1.0, 0.0), (2.0, 0.1), (30.0, 0.025)]
    praise = "0.95 T + d is the budget, solved for T."
    return compared(function, lambda budget, transit: (budget - transit) / 0.95, mistakes, cases, praise)


def jittered(function: Callable[[float, random.Random], float]) -> Verdict:
    """Exercise: `pause(interval, rng)` draws a pause from interval ± 10 %, with the generator that it is given."""
    if is_stub(function):
        return STUB
    rng = random.Random(1)
    pauses = [_tried(function, (10.0, rng)) for _ in range(4000)]
    if broken := next((p for p in pauses if not isinstance(p, (int, float))), None):
        return Verdict(False, f"A pause is a number of seconds, not {broken!r}.")
    low, high, mean = min(pauses), max(pauses), statistics.fmean(pauses)
    if low == high:
        return Verdict(False, "All pauses are equal: the herd stays together.")
    if low >= 10.0:
        return Verdict(False, f"It only ever waits longer: the mean is {mean:.2f} s instead of 10. Draw on both sides.")
    if low < 5.0:
        return Verdict(False, f"Pauses go down to {low:.2f} s: that is full jitter, good after failures, not ± 10 %.")
    if not (8.99 < low < 9.05 and 10.95 < high < 11.01):
        return Verdict(False, f"Pauses lie between {low:.2f} and {high:.2f} s; they should fill 9 to 11.")
    rng = random.Random(1)
    if [function(10.0, rng) for _ in range(4000)] != pauses:
        return Verdict(False, "The same seed gives other pauses: draw from `rng`, not from the random module.")
    return Verdict(True, "Spread on both sides, the mean kept, and repeatable.")


REFUSING = (30.0, 60.0)  # s of the run in which the server is overloaded
RETRY_AFTER, INTERVAL = 20.0, 5.0  # s
Make = Callable[[Feed], Service]


def polling_client(client: Client) -> Verdict:
    """Exercise: `client(url, log)` polls every 5 s, loses nothing, and keeps away when asked to.

    It runs for two virtual minutes against the real server, which for half a minute answers 503 with Retry-After: 20.
    """
    expected = 120 / INTERVAL
    verdict = _tried_out(client, short_polling.create_app, most=3 * expected, pause="is the pause missing?")
    if isinstance(verdict, Run) and verdict.requests < 0.5 * expected:
        return Verdict(False, f"Only {verdict.requests} requests in two minutes: is the pause 5 s?")
    return _praised(verdict)


def _tried_out(client: Client, make: Make, most: float, pause: str) -> Verdict | Run:
    """The client's run on a server that is sometimes overloaded, or what is wrong with it."""
    if is_stub(client):
        return STUB
    trial = Trial(functools.partial(_sometimes_overloaded, make), client, Schedule.poisson(0.5, 120, seed=5), grace=30)
    try:
        run = trial.virtual(delay=0.025)
    except ExperimentError as problem:
        return Verdict(False, _explained(str(problem)))
    if run.lost == run.expected:
        return Verdict(False, "Nothing arrived: each request begins at “now”. Send the cursor of the last answer.")
    refused = len(run.requests_between(*REFUSING))
    if refused > 3 and run.requests <= most:
        return Verdict(False, f"{refused} requests while the server asked to be left alone: heed Retry-After.")
    if run.requests > most:
        return Verdict(False, f"{run.requests} requests in two minutes instead of at most {most:.0f}: {pause}")
    if run.duplicated:
        return Verdict(False, f"{run.duplicated} updates came again: the cursor does not move with the answers.")
    if run.lost:
        return Verdict(False, f"{run.lost} of {run.expected} updates were lost: does something lose the cursor?")
    return run


def _explained(problem: str) -> str:
    if "no request" in problem:
        return "It made no request inside `with log.request():`, so nothing can be counted."
    if "updates" in problem or "JSON" in problem or "503" in problem:
        return f"It stopped at the 503, as if that were an answer: look at `response.status_code` first. ({problem})"
    return f"It stopped: {problem}."


def _praised(verdict: Verdict | Run) -> Verdict:
    if isinstance(verdict, Verdict):
        return verdict
    refused = len(verdict.requests_between(*REFUSING))
    return Verdict(
        True, f"All {verdict.expected} updates arrived once; overloaded, the server was asked {refused} times."
    )


def _sometimes_overloaded(make: Make, feed: Feed) -> Service:
    app = make(feed)
    begin, enough = time.monotonic(), 300  # requests; who asks more often is slowed down, to keep the check short

    @app.middleware("http")
    async def refuse(request: Request, call_next: Callable[[Request], Any]) -> Response:
        if app.traffic.requests > enough:
            await asyncio.sleep(1)
        if REFUSING[0] <= time.monotonic() - begin < REFUSING[1]:
            return Response(status_code=503, headers={"Retry-After": f"{RETRY_AFTER:g}"})
        response: Response = await call_next(request)
        return response

    return app


# Notebook 02


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
    verdict = _tried_out(client, long_polling.create_app, most=90, pause="is it held at all?")
    if isinstance(verdict, Run) and (late := verdict.delay(0.5)) > 0.5:
        return Verdict(False, f"Half of the updates are {late:.1f} s late or more: the server should do the waiting.")
    return _praised(verdict)
