"""A pulling client on trial: two virtual minutes on the real server, which is overloaded for half a minute of them."""

import asyncio
import functools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from fastapi import Request, Response

from lab.bench.experiment import Client, ExperimentError
from lab.bench.result import Run
from lab.bench.schedule import Schedule
from lab.bench.trial import Trial
from lab.checks.verdict import STUB, Verdict, is_stub
from servers.feed import Feed
from servers.service import Service

REFUSING = (30.0, 60.0)  # s of the run in which the server is overloaded
RETRY_AFTER, INTERVAL = 20.0, 5.0  # s
BAD_CURSOR = (
    "The server answered 400, it does not know this cursor: a cursor is opaque, not a time or a number of your own. "
    "Send the one that the last answer brought."
)
Make = Callable[[Feed], Service]


def tried_out(client: Client, make: Make, most: float, pause: str) -> Verdict | Run:
    """The client's run on a server that is sometimes overloaded, or what is wrong with it."""
    if is_stub(client):
        return STUB
    statuses = Counter[int]()
    server = functools.partial(_sometimes_overloaded, make, statuses)
    trial = Trial(server, client, Schedule.poisson(0.5, 120, seed=5), grace=30)
    try:
        run = trial.virtual(delay=0.025)
    except ExperimentError as problem:
        return Verdict(False, BAD_CURSOR if statuses[400] else _explained(str(problem)))
    if statuses[400]:
        return Verdict(False, BAD_CURSOR)
    if run.lost == run.expected:
        return Verdict(False, "Nothing arrived: each request begins at “now”. Send the cursor of the last answer.")
    refused = len(run.requests_between(*REFUSING))
    if refused > 3 and run.requests <= most:
        return Verdict(False, f"{refused} requests while the server asked to be left alone: heed Retry-After.")
    if run.requests > most:
        return Verdict(False, f"{run.requests} requests in two minutes instead of at most {most:.0f}: {pause}")
    if run.duplicated and max(repeated(run)) <= sum(p.at < REFUSING[1] for p in run.published):
        return Verdict(False, f"{run.duplicated} updates came again: after the 503 it started over from the beginning.")
    if run.duplicated:
        return Verdict(False, f"{run.duplicated} updates came again: the cursor does not move with the answers.")
    if run.lost:
        return Verdict(False, f"{run.lost} of {run.expected} updates were lost: does something lose the cursor?")
    return run


def repeated(run: Run) -> set[int]:
    """The numbers of the updates that came more than once; the first one published has number 1."""
    return {seq for seq, times in Counter(delivery.seq for delivery in run.all_deliveries).items() if times > 1}


def _explained(problem: str) -> str:
    if "no request" in problem:
        return "It made no request inside `with log.request():`, so nothing can be counted."
    if "updates" in problem or "JSON" in problem or "503" in problem:
        return f"It stopped at the 503, as if that were an answer: look at `response.status_code` first. ({problem})"
    return f"It stopped: {problem}."


def praised(verdict: Verdict | Run) -> Verdict:
    """The verdict, or the praise that a good run earns."""
    if isinstance(verdict, Verdict):
        return verdict
    refused = len(verdict.requests_between(*REFUSING))
    return Verdict(
        True, f"All {verdict.expected} updates arrived once; overloaded, the server was asked {refused} times."
    )


def _sometimes_overloaded(make: Make, statuses: Counter[int], feed: Feed) -> Service:
    app = make(feed)
    begin, enough = time.monotonic(), 300  # requests; who asks more often is slowed down, to keep the check short

    @app.middleware("http")
    async def refuse(request: Request, call_next: Callable[[Request], Any]) -> Response:
        if app.traffic.requests > enough:
            await asyncio.sleep(1)
        if REFUSING[0] <= time.monotonic() - begin < REFUSING[1]:
            return Response(status_code=503, headers={"Retry-After": f"{RETRY_AFTER:g}"})
        response: Response = await call_next(request)
        statuses[response.status_code] += 1
        return response

    return app
