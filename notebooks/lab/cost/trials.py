"""Notebook 05's trials: four models on one log, clients that talk back, files that travel, and what all of it costs.

Schedule ─▶ four servers, their clients ─▶ Runs ─▶ bills.py: work in a client's second ─▶ a month's bill
"""

import asyncio
import contextlib
import functools
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx
import websockets
from fastapi import Response

from lab import clients, virtual
from lab.bench import HTTP, Client, ClientLog, Run, Schedule, Trial, Wired, side_by_side
from lab.clients import Update
from lab.cost.ladder import talking
from lab.cost.load import SAID
from lab.cost.measuring import SILENT
from lab.proxies import Wire
from lab.theory import MODELS, SOCKET, STREAM
from servers import Feed, serve, sse
from servers.models import model as find
from servers.service import Service
from servers.sse import update_blocks
from servers.websocket import updates_message

CLEAR = 1.25  # how far from a flip, as a factor, a count of updates that came by chance has to lie
MAKE = {model: find(model).create_app for model in MODELS}


def follow(model: str, **options: Any) -> Client:
    """The robust client of a model, as an experiment's."""

    async def client(url: str, log: ClientLog) -> None:
        iterate = clients.MODELS[find(model).slug]
        news = iterate(url, log.cursor, log=log, **options)
        async with contextlib.aclosing(news):
            async for update in news:
                if isinstance(update, Update):
                    log.deliver({"seq": update.seq})

    return client


async def live(schedule: Schedule, followers: Mapping[str, Client], clients: int) -> list[Run]:
    """All four at once, LIVE, on one feed, each behind a wire that counts its bytes."""
    feed = Feed()
    with contextlib.ExitStack() as ends:
        pairs = []
        for model, client in followers.items():
            server = ends.enter_context(serve(MAKE[model](feed)))
            wire = ends.enter_context(Wire(server.url))
            assert isinstance(server.app, Service)
            pairs.append((Wired(server.app, wire), client))
        return await side_by_side(pairs, schedule, clients=clients)


def simulated(schedule: Schedule, followers: Mapping[str, Client], clients: int, delay: float) -> list[Run]:
    """All four at once, VIRTUAL, on one feed, over links with this transit (s)."""

    async def four(net: Any) -> list[Run]:
        feed = Feed()
        async with contextlib.AsyncExitStack() as ends:
            pairs = []
            for port, (model, client) in enumerate(followers.items(), start=81):
                server = virtual.serve(MAKE[model](feed), port=port)
                pairs.append((await ends.enter_async_context(server), client))
            return await side_by_side(pairs, schedule, clients=clients)

    found: list[Run] = virtual.run_virtual(four, link=virtual.Link(delay=delay))
    return found


def received(run: Run) -> list[list[int]]:
    """What each client received, in its order."""
    by_client: list[list[int]] = [[] for _ in range(run.clients)]
    for client, seq, _ in run.all_deliveries:
        by_client[client].append(seq)
    return by_client


def both_sides(flip: float, low: float, high: float) -> tuple[float, float]:
    """Where to count: at half and at twice the flip; at the ends of the range where no flip is inside."""
    return (flip / 2, 2 * flip) if low <= flip <= high else (low, high)


def around(flip: float, low: float, high: float, *, per: float, seconds: float) -> dict[float, Schedule]:
    """News on both sides of a flip, by how many updates really come in `per` seconds."""
    found = {}
    for x in both_sides(flip, low, high):
        news = Schedule.poisson(x / per, seconds, seed=3)
        found[len(news) / news.seconds * per] = news
    return found


def as_said(flip: float, cheaper_beyond: Mapping[float, float], other: Mapping[float, float]) -> bool:
    """Whether the first is cheaper beyond the flip and the second before it, wherever that is clear."""
    clear = [x for x in other if not flip / CLEAR < x < flip * CLEAR]
    return all((cheaper_beyond[x] < other[x]) == (x > flip) for x in clear)


def pulled_and_pushed(
    models: Sequence[str], schedules: Mapping[float, Schedule], followers: Mapping[str, Client], delay: float
) -> dict[str, dict[float, Run]]:
    """Runs of each model on each schedule, VIRTUAL, by the number that the schedule stands for."""

    def run(model: str, news: Schedule) -> Run:
        return Trial(MAKE[model], followers[model], news, clients=2).virtual(delay=delay)

    return {model: {x: run(model, news) for x, news in schedules.items()} for model in models}


def conversation(model: str, share: float, news: Schedule, delay: float) -> tuple[Run, int]:
    """A client that says `share` messages for each update it gets, and how many it said: by frame, or by POST."""
    said: list[Any] = []
    client = functools.partial(_on_socket if model == SOCKET else _by_post, share, said)
    make = talking if model == STREAM else MAKE[model]
    return Trial(make, client, news).virtual(delay=delay), len(said)


def conversations(
    models: Sequence[str], shares: Sequence[float], news: Schedule, delay: float
) -> dict[str, dict[float, tuple[Run, int]]]:
    """Conversations by model and share."""
    return {model: {share: conversation(model, share, news, delay) for share in shares} for model in models}


async def _by_post(share: float, said: list[Any], url: str, log: ClientLog) -> None:
    news = clients.sse(url, log.cursor, log=log)
    async with contextlib.aclosing(news), httpx.AsyncClient(**HTTP) as http:
        async for update in news:
            assert isinstance(update, Update), "nothing expires here"
            log.deliver({"seq": update.seq})
            while len(said) < share * len(log.deliveries):
                answer = await http.post(f"{url}/say", content=SAID, headers={"Content-Type": "application/json"})
                said.append(answer.raise_for_status())


async def _on_socket(share: float, said: list[Any], url: str, log: ClientLog) -> None:
    address = url.replace("http", "ws", 1) + f"/ws?after={log.cursor}"
    with log.request():
        async with websockets.connect(address, proxy=None) as socket:
            async for message in socket:
                for update in json.loads(message).get("updates", ()):
                    log.deliver(update)
                while len(said) < share * len(log.deliveries):
                    await socket.send(SAID.decode())
                    said.append(SAID)


def weight(run: Run) -> float:
    """Bytes both ways per delivery."""
    return ((run.bytes_up or 0) + (run.bytes_down or 0)) / run.deliveries


def transported(size: int, wanted: float, delay: float, *, inline: bool) -> float:
    """Bytes both ways per update and client, with a file of that size sent along, or fetched by a share."""
    every, number = 4, 41
    edits = Schedule.poisson(1.0, 200, seed=2, payload=size if inline else 0).edits
    kept = [edit for edit in edits if edit.change != "deleted"][: number - 1]
    kept = [replace(edit, at=float(second)) for second, edit in enumerate(kept, start=1)]
    news = Schedule("one file a second", number, tuple(kept))

    async def client(url: str, log: ClientLog) -> None:
        stream = clients.sse(url, log.cursor, log=log)
        async with contextlib.aclosing(stream), httpx.AsyncClient(**HTTP) as http:
            async for update in stream:
                assert isinstance(update, Update), "nothing expires here"
                if not inline and log.number < wanted * every:
                    await http.get(f"{url}/files/{update.path}")
                log.deliver({"seq": update.seq})

    return weight(Trial(functools.partial(_with_files, size), client, news, clients=every).virtual(delay=delay))


def _with_files(size: int, feed: Feed) -> Service:
    app = sse.create_app(feed)

    @app.get("/files/{path:path}")
    async def file(path: str) -> Response:
        return Response(bytes(size))

    return app


def envelopes() -> dict[str, dict[str, int]]:
    """Bytes of one pushed update: the application's JSON, what its author put around it, what the protocol needs."""
    feed = Feed(epoch="1a2b3c4d")
    feed.publish("reports/q3.csv", "modified", size=1234, sha256="0" * 64)
    batch = feed.read(0)
    update = len(batch.updates[0].json)
    block, message = batch.encoded(update_blocks), batch.encoded(updates_message)
    needed = len(b"data: \n\n")
    frame = 2 if len(message) < 126 else 4
    return {
        STREAM: {"update": update, "of the application": len(block) - update - needed, "of the protocol": needed},
        SOCKET: {"update": update, "of the application": len(message) - update, "of the protocol": frame},
    }


async def endings() -> dict[str, Any]:
    """LIVE: one of each stream, closed by its client, and a WebSocket that its server closes."""
    seen: dict[str, Any] = {}
    with serve(MAKE[SOCKET](Feed())) as server:
        address = server.url.replace("http", "ws", 1) + "/ws"
        async with websockets.connect(address, proxy=None) as socket:
            await socket.recv()
        seen["a WebSocket held after its client left"] = await _left(server.app)
        async with websockets.connect(address, proxy=None) as socket:
            await socket.recv()
            await asyncio.to_thread(server.stop)
            await socket.wait_closed()
            seen["a WebSocket's code when its server left"] = socket.close_code
    with serve(MAKE[STREAM](Feed())) as server:
        async with httpx.AsyncClient(**HTTP) as http, http.stream("GET", f"{server.url}/events") as response:
            seen["a stream's status"] = response.status_code
            seen["a stream's type"] = response.headers["content-type"].partition(";")[0]
        seen["a stream held after its client left"] = await _left(server.app)
    return seen


async def _left(app: Any) -> int:
    """How many the server still holds, once that no longer changes or ten seconds have passed."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            while app.traffic.held:  # noqa: ASYNC110  # a server has no event for that
                await asyncio.sleep(0.01)
    return int(app.traffic.held)


def verdict(tests: Mapping[str, Any], condition: str = "") -> str:
    """What becomes of a claim: it holds in every test, under a condition in some, or in none.

    A test may be None: two costs that are not told apart. Where no test is passed, there is no verdict then.
    """
    passed = [bool(test) for test in tests.values()]
    if all(passed):
        return "holds"
    if any(passed):
        return f"holds if {condition}"
    return SILENT if None in tests.values() else "does not hold"


class Verdicts:
    """Claims that were judged: the verdict on each in `words`, and a table of all in a notebook."""

    def __init__(self) -> None:
        self.words: dict[str, str] = {}
        self.shown: dict[str, str] = {}

    def judge(self, claim: str, tests: Mapping[str, Any], shown: str, condition: str = "") -> str:
        """Judge a claim by these tests; `shown` is what was measured."""
        self.words[claim], self.shown[claim] = verdict(tests, condition), shown
        return self.words[claim]

    def __repr__(self) -> str:
        return "\n".join(f"{claim}: {word}" for claim, word in self.words.items())

    def _repr_markdown_(self) -> str:
        rows = [f"| {claim} | **{word}** | {self.shown[claim]} |" for claim, word in self.words.items()]
        return "\n".join(["| the claim | the verdict | measured |", "|---|---|---|", *rows])


def lines(thing: Any) -> int:
    """Of source."""
    return len(inspect.getsource(thing).splitlines())
