"""The ladder's rungs serve the same events, notice a client that leaves, end cleanly; their cost is a slope."""

import asyncio
import contextlib
import functools
import itertools
import json
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from fastapi import Request

from lab.clients.event_stream import Event, EventStreamParser
from lab.cost import ladder
from lab.cost.ladder import LADDER, RUNGS, Step
from lab.virtual import run_virtual
from servers import file_updates, sse
from servers.background import Server, serve
from servers.feed import Feed
from servers.service import Service
from servers.sources import synthetic_edits
from tests.support import Events, command, ended, events, on_a_loop, tasks_of, until, url_of
from tests.support_feed import client
from tests.test_processes import window

MAKE: dict[str, Callable[[Feed], Service]] = {
    **RUNGS,
    "sse": sse.create_app,
    "file-updates": functools.partial(file_updates.create_app, coalesce=False),
}
EDITS = 300


def following(app: Service) -> int:
    """How many of its clients a rung would tell of the next update."""
    queues = getattr(app.state, "queues", None)
    return app.traffic.held if queues is None else len(queues)


def app_of(server: Server) -> Service:
    assert isinstance(server.app, Service)
    return server.app


async def updates(stream: Events, number: int) -> list[Event]:
    """The next so many events that are updates."""
    parser, found = EventStreamParser(), list[Event]()
    while len(found) < number:
        found += parser.feed(f"{await stream.block()}\n\n".encode())
    return found


def told(event: Event) -> tuple[str, str, dict[str, Any]]:
    """An event, its id without the epoch, its data as an object."""
    return event.type, event.last_event_id.rpartition("-")[2], json.loads(event.data)


@on_a_loop
async def test_every_rung_serves_the_same_events() -> None:
    """All rungs on one feed tell each of its updates once, in order, with the same number and data; then they end."""
    feed = Feed()
    async with contextlib.AsyncExitStack() as all_of_them:
        servers = {rung: all_of_them.enter_context(serve(MAKE[rung](feed))) for rung in LADDER}
        streams = {r: await all_of_them.enter_async_context(events(server)) for r, server in servers.items()}
        await until(lambda: all(following(app_of(server)) == 1 for server in servers.values()))
        for edit in itertools.islice(synthetic_edits(1, seed=5), EDITS):
            feed.publish(edit.path, edit.change, size=edit.size, sha256=edit.sha256)
        expected = [("update", str(u.seq), json.loads(u.json)) for u in feed.read(0).updates]
        for rung, stream in streams.items():
            assert [told(event) for event in await updates(stream, EDITS)] == expected, rung
            await asyncio.to_thread(servers[rung].stop)
            assert EventStreamParser().feed(await stream.rest()) == [], rung


def waiters(feed: Feed) -> int:
    """How many wait for a feed's news."""
    return sum(len(bell._waiting) for bell in feed._bells.values())


@pytest.mark.parametrize("rung", RUNGS)
@on_a_loop
async def test_a_client_that_leaves_is_forgotten(rung: str) -> None:
    """When one of two clients leaves, its tasks, queue and waiter go with it; the other one is served on."""
    feed = Feed()
    with serve(RUNGS[rung](feed)) as server:
        app = app_of(server)
        async with events(server) as stays:
            await until(lambda: following(app) == waiters(feed) == 1)
            alone = tasks_of(server)
            async with events(server):
                await until(lambda: following(app) == 2 and len(tasks_of(server)) > len(alone))
            await until(lambda: app.traffic.held == following(app) == waiters(feed) == 1)
            await until(lambda: tasks_of(server) == alone)
            feed.publish("a.txt", "added")
            assert [json.loads(event.data)["path"] for event in await updates(stays, 1)] == ["a.txt"]


@pytest.mark.parametrize("asks", [True, False], ids=["tutorial", "unasked"])
@on_a_loop
async def test_only_the_tutorial_asks(asks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The question whether the client is still there is put once for each update, and once more; or never."""
    asked = []

    async def is_disconnected(request: Request) -> bool:
        asked.append(request)
        return False

    monkeypatch.setattr(Request, "is_disconnected", is_disconnected)
    feed = Feed()
    with serve(ladder.tutorial(feed, asks=asks)) as server:
        async with events(server) as stream:
            await until(lambda: following(app_of(server)) == 1)
            for number in range(3):
                feed.publish(f"{number}.txt", "added")
            await updates(stream, 3)
            await until(lambda: len(asked) == (4 if asks else 0))


@on_a_loop
async def test_a_stream_that_resumes_too_late_is_reset() -> None:
    """Without sse-starlette, too, a cursor whose updates are gone is answered by a reset, from which it goes on."""
    feed = Feed(history=1)
    old = feed.cursor
    for name in ("a", "b"):
        feed.publish(name, "added")
    with serve(ladder.woken(feed)) as server:
        async with events(server, {"Last-Event-ID": old}) as stream:
            assert (await stream.block()).startswith(f"event: reset\nid: {feed.cursor}\n")
            feed.publish("c", "added")
            assert (await stream.update())["path"] == "c"
        assert (app_of(server).traffic.resets, app_of(server).traffic.delivered) == (1, 1)


@pytest.mark.parametrize(("rung", "sign"), [("tutorial", signal.SIGTERM), ("woken", signal.SIGINT)])
@on_a_loop
async def test_a_rung_is_a_command(rung: str, sign: signal.Signals) -> None:
    """The seed's edits come; a signal ends command and open stream, with status 0."""
    async with command("lab.cost.ladder", rung, "--port", "0", "--rate", "200", "--seed", "5") as process:
        seen = [update async for update in first(20, await url_of(process, rung))]
        process.send_signal(sign)
        assert await ended(process) == (0, "", "")
    start = seen[0]["seq"] - 1
    edits = itertools.islice(synthetic_edits(200, seed=5), start, start + 20)
    assert [(u["path"], u["change"], u["size"], u["sha256"]) for u in seen] == [
        (edit.path, edit.change, edit.size, edit.sha256) for edit in edits
    ]


def test_its_updates_come_evenly_spaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --rate 4 there is one more update each quarter of a second, in virtual time exactly."""
    served: list[Service] = []
    monkeypatch.setattr(ladder, "run", lambda app, *_, **__: served.append(app))
    ladder.main(["woken", "--rate", "4"])

    async def main(_: object) -> list[int]:
        assert served[0].source
        source, heads = asyncio.create_task(served[0].source()), []
        await asyncio.sleep(0.125)
        for _ in range(8):
            heads.append(served[0].feed.head)
            await asyncio.sleep(0.25)
        source.cancel()
        await asyncio.wait([source])
        return heads

    assert run_virtual(main) == list(range(8))


async def first(number: int, url: str) -> AsyncIterator[dict[str, Any]]:
    """The first updates of a stream that stays open until they have been used."""
    async with client() as http, http.stream("GET", f"{url}/events") as response:
        for event in await updates(Events(response), number):
            yield json.loads(event.data)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: RUNG"),
        (["sse"], "argument RUNG: invalid choice: 'sse'"),
        (["woken", "--rate", "0"], "argument --rate: a number above 0, not '0'"),
        (["woken", "--port", "65536"], "argument --port: a whole number from 0 to 65535, not '65536'"),
    ],
)
def test_a_mistake_is_named_in_one_line(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is wrong with the arguments, the command says it on one line of stderr and exits with status 2."""
    with pytest.raises(SystemExit) as caught:
        ladder.main(arguments)
    out, err = capsys.readouterr()
    assert (caught.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"python -m lab.cost.ladder: {sentence}")


@on_a_loop
async def test_the_ladder_is_climbed_in_processes_of_their_own() -> None:
    """A rung that stands here and a real server are loaded alike, and every connection is told of every update."""
    steps = await ladder.climb(("woken", "file-updates"), rate=50, counts=(1, 20), seconds=1.5)
    assert list(steps) == ["woken", "file-updates"]
    for step in steps.values():
        assert (step.few.connections, step.many.connections) == (1, 20)
        few, many = (window.deliveries / window.seconds for window in (step.few, step.many))
        assert many > 2 * few > 0  # 20 times as many, unless the machine stands still in one of the windows
        assert step.many.cpu > 0


def test_a_step_is_a_slope() -> None:
    """What a server needs without clients is in neither cost; one window that is not to be believed is enough."""
    few = window(10, 0.2 + 10 * 0.003, deliveries=1000)
    many = window(100, 0.2 + 100 * 0.003, deliveries=10_000)
    step = Step("woken", few, many)
    assert step.cpu == pytest.approx(0.003 / 100)
    assert step.memory == pytest.approx(10)
    assert not step.busy
    assert replace(step, few=replace(few, floor=1.0)).busy
    assert replace(step, many=replace(many, floor=1.0)).busy
