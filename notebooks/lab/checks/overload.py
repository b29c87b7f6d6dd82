"""A pulling client on trial: two virtual minutes on the real server, which is overloaded twice, and may stall.

    client ─▶ refuses, or passes on and notes each answer (Asked) ─▶ the real server
                                     └─▶ the evidence, together with the client's Run

Each refusal asks for another pause, so that only a client that reads `Retry-After` keeps both.
"""

import asyncio
import functools
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request, Response

from lab.bench.experiment import Client, ExperimentError, experiment
from lab.bench.result import Run
from lab.bench.schedule import Schedule
from lab.checks.bounded import asked_for, explained, virtually
from lab.checks.verdict import Verdict, awaiting, judged
from lab.virtual import Link, Net, serve
from servers.feed import Feed
from servers.service import Service

# From when to when (s) the server is overloaded, and for how long it then asks to be left alone (s). Before a client
# comes back that does so, the overload is over.
OVERLOADS = ((30.0, 45.0, 17.0), (70.0, 77.0, 8.0))
STALL = (95.0, 100.0)  # s: what is asked then is accepted and never answered, if the check wants that
DELAY, SECONDS, INTERVAL = 0.025, 120.0, 5.0  # s
UNANSWERED = 0  # the status of what is never answered
ENOUGH = 600  # requests in two minutes; whoever makes more gets no further answer
Make = Callable[[Feed], Service]


@dataclass(frozen=True)
class Asked:
    """One request as the server saw it, `at` s from its start, and its answer."""

    at: float
    after: str | None
    status: int
    updates: tuple[int, ...] = ()
    cursor: str | None = None
    stay_away: float = 0.0  # s, of a 503


@dataclass
class Evidence:
    """What the server saw, and what came of the client: its run, or what it raised."""

    asked: list[Asked] = field(default_factory=list)
    run: Run | None = None
    raised: BaseException | None = None

    @property
    def refusals(self) -> list[tuple[Asked, float | None]]:
        """Each refusal, and after how many seconds the next request came, if one did."""
        later = [*self.asked[1:], None]
        return [(a, b.at - a.at if b else None) for a, b in zip(self.asked, later, strict=True) if a.status == 503]

    @property
    def answered(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.status in (200, 304)]

    @property
    def pauses(self) -> list[float]:
        """The seconds between each answer and the next request."""
        pairs = zip(self.asked, self.asked[1:], strict=False)
        return [b.at - a.at for a, b in pairs if a.status in (200, 304)]


def tried_out(client: Client, make: Make, stalls: bool) -> Evidence:
    """The client on a server that is sometimes overloaded, and stalls once if it is to, in virtual time."""
    evidence = Evidence()
    server = functools.partial(_sometimes_overloaded, make, evidence.asked, stalls)
    schedule = Schedule.poisson(0.5, SECONDS, seed=5)

    async def main(net: Net) -> Run:
        async with serve(server(Feed())) as served:
            return await experiment(served, awaiting(client), schedule, clients=1, grace=30)

    try:
        evidence.run = virtually(main, link=Link(delay=DELAY))
    except ExperimentError as problem:
        evidence.raised = asked_for(problem)
    return evidence


def fault(evidence: Evidence, pause: str) -> str | None:
    """What is wrong with a client by this evidence, or nothing; `pause` says what is missing if it asks too often."""
    return asks_wrongly(evidence, pause) or _refused(evidence) or delivers_wrongly(evidence)


def asks_wrongly(evidence: Evidence, pause: str) -> str | None:
    asked, statuses = evidence.asked, Counter(request.status for request in evidence.asked)
    if statuses[400]:
        return (
            "The server answered 400, it does not know this cursor: a cursor is opaque, not a time or a number of "
            "your own. Send the one that the last answer brought."
        )
    if statuses[404] or statuses[422]:
        return f"The server answered {max(statuses)}: the address is `{{url}}/updates`, with `after` as a parameter."
    if len(asked) > 1 and all(request.after is None for request in asked) and not evidence.raised:
        return "Nothing arrives by asking without a cursor: each request begins at “now”. Send the last answer's."
    if len(asked) >= ENOUGH:
        return f"{ENOUGH} requests in {asked[-1].at:.0f} s: {pause}"
    if evidence.raised:
        return _stopped(evidence)
    return None


def _stopped(evidence: Evidence) -> str:
    assert evidence.raised
    text = explained(evidence.raised)
    if isinstance(evidence.raised, ExperimentError):
        if "no request" in text:
            return "It made no request inside `with log.request():`, so nothing can be counted."
        if "counted less" in text:
            return (
                "The server saw fewer requests than were made: they were given up on their way. Is the time limit "
                f"shorter than a round trip, {2 * DELAY:g} s?"
            )
        return text
    if evidence.asked and evidence.asked[-1].status == UNANSWERED:
        return f"It stopped when an answer did not come in time: catch that, and ask again. {text}"
    if evidence.asked and evidence.asked[-1].status == 503:
        if isinstance(evidence.raised, (KeyError, json.JSONDecodeError)):
            return f"It stopped at the 503, as if that were an answer: look at `response.status_code` first. {text}"
        return f"It stopped after the 503. {text}"
    return text


def _refused(evidence: Evidence) -> str | None:
    if evidence.asked[-1].status == UNANSWERED:
        return (
            f"It waits for ever for one answer, asked for at {evidence.asked[-1].at:.0f} s, while the server answers "
            "again: a time limit is missing."
        )
    for request, back in evidence.refusals:
        wanted = request.stay_away
        if back is None:
            return f"After the 503 at {request.at:.0f} s it never asked again: stay away, and come back."
        if back < wanted:
            return (
                f"Asked by `Retry-After: {wanted:g}` to stay away, it came back after {back:.1f} s: "
                "heed Retry-After, each time."
            )
        if back > wanted + INTERVAL + 1.5:
            return (
                f"Asked by `Retry-After: {wanted:g}` to stay away, it did so for {back:.1f} s: the header says how "
                "long, and that is another time each time."
            )
    return None


def delivers_wrongly(evidence: Evidence) -> str | None:
    run, brought = evidence.run, [seq for request in evidence.asked for seq in request.updates]
    assert run
    if len(evidence.asked) == 1:
        return "It asked once, and never again: is there a loop?"
    if brought and not run.all_deliveries:
        return f"The answers brought {len(brought)} updates, and none was handed over: `log.deliver(update)` for each."
    came = Counter(delivery.seq for delivery in run.all_deliveries)
    if run.duplicated and len(brought) == len(set(brought)):
        return f"{run.duplicated} updates were handed over twice, though each came in one answer only."
    if run.duplicated:
        return _came_again(evidence, came)
    if unseen := set(brought) - set(came):
        return f"The answers brought {len(unseen)} updates that were not handed over: `log.deliver(update)` for each."
    if len(brought) > len(set(brought)) and len({request.after for request in evidence.asked}) == 1:
        return f"{len(brought) - len(set(brought))} updates came again, and were dropped: the cursor does not move."
    if run.lost:
        jumps = sum(_jumps(evidence))
        why = " A request left the cursor out, or sent another one than the last answer's." if jumps else ""
        return f"{run.lost} of {run.expected} updates never came.{why}"
    return None


def _came_again(evidence: Evidence, came: Counter[int]) -> str:
    again = sum(times - 1 for times in came.values())
    first, jumps = evidence.asked[0].after, _jumps(evidence)
    back = [request.after == first and jump for request, jump in zip(evidence.asked[1:], jumps, strict=True)]
    after_refusal = [request.status == 503 for request in evidence.asked[:-1]]
    if any(back) and all(refused for jump, refused in zip(back, after_refusal, strict=True) if jump):
        return f"{again} updates came again: after the 503 it started over from the beginning."
    if len({request.after for request in evidence.asked}) == 1:
        return f"{again} updates came again: the cursor does not move with the answers."
    return f"{again} updates came again: send the cursor of the last answer, each time."


def _jumps(evidence: Evidence) -> list[bool]:
    """For each request but the first: whether it sends another cursor than the last answer's."""
    held, jumps = evidence.asked[0].after, []
    for last, request in zip(evidence.asked, evidence.asked[1:], strict=False):
        held = last.cursor or held
        jumps.append(request.after != held)
    return jumps


def praised(evidence: Evidence) -> Verdict:
    """The praise that a good run earns."""
    assert evidence.run
    pauses = " and ".join(f"{back:.1f} s for {request.stay_away:g}" for request, back in evidence.refusals if back)
    return Verdict(
        True, f"All {evidence.run.expected} updates came once; overloaded, the server was left alone: {pauses}."
    )


def usual_pause(evidence: Evidence) -> float:
    """The median time between an answer and the next request (s)."""
    return statistics.median(evidence.pauses) if evidence.pauses else 0.0


def _sometimes_overloaded(make: Make, asked: list[Asked], stalls: bool, feed: Feed) -> Service:
    app = make(feed)
    begin = time.monotonic()

    @app.middleware("http")
    async def refuse(request: Request, call_next: Callable[[Request], Any]) -> Response:
        at, after = time.monotonic() - begin, request.query_params.get("after")
        if len(asked) >= ENOUGH:
            await asyncio.sleep(3600)
        for start, end, stay_away in OVERLOADS:
            if start <= at < end:
                asked.append(Asked(at, after, 503, stay_away=stay_away))
                return Response(status_code=503, headers={"Retry-After": f"{stay_away:g}"})
        if stalls and STALL[0] <= at < STALL[1]:
            asked.append(Asked(at, after, UNANSWERED))
            await asyncio.sleep(3600)
        response = await call_next(request)
        body = b"".join([part async for part in response.body_iterator])
        answer = json.loads(body) if response.status_code == 200 and request.url.path == "/updates" else {}
        seqs = tuple(update["seq"] for update in answer.get("updates", ()))
        asked.append(Asked(at, after, response.status_code, seqs, answer.get("cursor")))
        return Response(body, response.status_code, dict(response.headers))

    return app


@judged
def pulling_client(
    client: Client, make: Make, pause: str, further: Callable[[Evidence], str | None], stalls: bool = False
) -> Verdict:
    """Try a pulling client out; `further` says what the model's own check finds wrong in the evidence."""
    evidence = tried_out(client, make, stalls)
    wrong = fault(evidence, pause) or further(evidence)
    return Verdict(False, wrong) if wrong else praised(evidence)
