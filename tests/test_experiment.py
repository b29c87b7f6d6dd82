"""Schedules, runs and experiments; the experiments with real servers and real sockets."""

import asyncio
import contextlib
import dataclasses
import html.parser
import importlib
import json
import threading
import time
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import httpx
import httpx_sse
import numpy as np
import pytest
import websockets

from lab.bench.experiment import HTTP, ClientLog, ExperimentError, experiment, side_by_side
from lab.bench.result import LIVE, VIRTUAL, Delivery, Publication, Request, Run, count, seconds, table
from lab.bench.schedule import Schedule
from lab.bench.trial import Trial
from servers import file_updates, long_polling, short_polling, sse, websocket
from servers.background import Server, serve
from servers.feed import Feed
from servers.tree import Edit
from tests.support import until

module = importlib.import_module("lab.bench.experiment")  # by its name: the wing hands on the function so named

Result = TypeVar("Result")
SCHEDULE = Schedule.poisson(10, 1, seed=4)


def finish(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end, within half a minute, and leave no task behind."""

    async def bounded() -> Result:
        try:
            async with asyncio.timeout(30):
                return await coroutine
        finally:
            assert asyncio.all_tasks() == {asyncio.current_task()}

    return asyncio.run(bounded())


async def poll(url: str, log: ClientLog) -> None:
    async with httpx.AsyncClient(base_url=url, **HTTP) as http:
        cursor = log.cursor
        while True:
            cursor = await poll_once(http, log, cursor)
            await asyncio.sleep(0.05)


async def poll_once(http: httpx.AsyncClient, log: ClientLog, cursor: str) -> str:
    with log.request():
        answer = (await http.get("/updates", params={"after": cursor})).json()
    for update in answer["updates"]:
        log.deliver(update)
    return str(answer["cursor"])


async def long_poll(url: str, log: ClientLog) -> None:
    async with httpx.AsyncClient(base_url=url, **HTTP) as http:
        cursor = log.cursor
        while True:
            with log.request():
                answer = (await http.get("/updates", params={"after": cursor, "wait": 5})).json()
            for update in answer["updates"]:
                log.deliver(update)
            cursor = answer["cursor"]


async def converse(url: str, log: ClientLog) -> None:
    address = f"ws{url.removeprefix('http')}/ws?after={log.cursor}"
    with log.request():
        async with websockets.connect(address, proxy=None) as socket:
            async for message in socket:
                for update in json.loads(message).get("updates", []):
                    log.deliver(update)


async def listen(url: str, log: ClientLog) -> None:
    async with httpx.AsyncClient(base_url=url, **HTTP) as http:
        with log.request():
            async with httpx_sse.aconnect_sse(http, "GET", "/events", params={"after": log.cursor}) as stream:
                async for event in stream.aiter_sse():
                    if event.event == "update":
                        log.deliver(event.json())


@pytest.fixture
def server() -> Iterator[Server]:
    """A short-polling server."""
    with serve(short_polling.create_app(Feed())) as running:
        yield running


def make_run(deliveries: list[Delivery], requests: list[Request] | None = None, **changes: Any) -> Run:
    """Two clients, three updates at 1, 2 and 3 s, numbered 11 to 13."""
    published = [Publication(10 + n, n - 0.001 * n, float(n), f"file-{n}.txt") for n in (1, 2, 3)]
    run = Run(
        model="SSE",
        label="SSE",
        mode=LIVE,
        clients=2,
        schedule=Schedule.at([1, 2, 3], 4),
        begin=-0.5,
        end=5.0,
        server_requests=len(requests or []),
        published=published,
        all_requests=requests or [],
        all_deliveries=deliveries,
    )
    return dataclasses.replace(run, **changes)


COMPLETE = [Delivery(client, 10 + n, n - 0.001 * n + 0.25 * n) for n in (1, 2, 3) for client in (0, 1)]


class TestSchedule:
    def test_poisson_is_the_same_again(self) -> None:
        """The same arguments give the same edits, another seed gives others."""
        assert Schedule.poisson(5, 20, seed=3) == Schedule.poisson(5, 20, seed=3)
        assert Schedule.poisson(5, 20, seed=3) != Schedule.poisson(5, 20, seed=4)

    def test_poisson_rate(self) -> None:
        """Over a long time there are as many edits as the rate says, all within the time, in order."""
        schedule = Schedule.poisson(5, 2000)
        assert abs(len(schedule) - 10_000) < 4 * 100
        assert (np.diff(schedule.times) >= 0).all()
        assert 0 <= schedule.times[0] <= schedule.times[-1] < 2000

    def test_payload(self) -> None:
        """With a payload each edit that leaves a file carries so many bytes."""
        edits = Schedule.poisson(5, 20, payload=64).edits
        assert {len(edit.content or b"") for edit in edits if edit.change != "deleted"} == {64}

    def test_periodic(self) -> None:
        """A periodic schedule is a grid that begins at its phase."""
        assert Schedule.periodic(0.5, 2, phase=0.25).times == pytest.approx([0.25, 0.75, 1.25, 1.75])

    def test_bursts(self) -> None:
        """Bursts keep the mean rate, and come in groups as large and as short as asked for."""
        schedule = Schedule.bursts(2, 10, 10_000, within=0.1, seed=5)
        assert abs(len(schedule) - 20_000) < 4 * 10 * np.sqrt(2000)  # 2000 bursts, Poisson
        gaps = np.diff(schedule.times)
        assert (gaps < 0.1).mean() > 0.85  # nine of ten gaps lie within a burst
        assert len(Schedule.bursts(2, 10, 30, within=0.1, seed=5)) % 10 == 0

    def test_by_hand(self) -> None:
        """Planned moments are kept as they are, and must ascend within the schedule."""
        assert list(Schedule.at([0, 0.5, 0.5], 1).times) == [0, 0.5, 0.5]
        for wrong in ([0.5, 0.4], [-0.1], [1.5]):
            with pytest.raises(ValueError, match="ascend from 0 to 1 s"):
                Schedule.at(wrong, 1)

    def test_one_line(self) -> None:
        """A schedule prints itself in one line."""
        assert repr(Schedule.periodic(0.5, 2)) == "Schedule(every 0.5 s: 4 edits in 2 s)"


class TestRun:
    def test_all_arrived(self) -> None:
        """When every client has every update once and in order, nothing is counted as wrong."""
        run = make_run(COMPLETE)
        assert (run.expected, run.deliveries) == (6, 6)
        assert run.lost == run.duplicated == run.out_of_order == run.unexpected == 0

    def test_delays(self) -> None:
        """Delays count from the planned publication, not the real one, to the first delivery."""
        run = make_run([*COMPLETE, Delivery(0, 11, 4.9)])
        assert run.delays == pytest.approx([0.25, 0.25, 0.5, 0.5, 0.75, 0.75])
        assert run.mean_delay == pytest.approx(0.5)
        assert run.lateness == pytest.approx(0.003)

    def test_lost_updates_have_no_finite_delay(self) -> None:
        """A quantile is taken over the expected deliveries: those that never came are later than any."""
        run = make_run(COMPLETE[:3])
        assert run.lost == 3
        assert run.delay(0.5) == pytest.approx(0.5)
        assert run.delay(0.51) == float("inf")
        assert make_run([]).delay(0.5) == float("inf")
        assert np.isnan(make_run([]).mean_delay)

    def test_an_empty_run(self) -> None:
        """Where nothing was published there is no delay, and nothing divides by 0: a row of the table has a dash."""
        run = make_run([], published=[])
        assert (run.expected, run.lost, len(run.delays), run.lateness) == (0, 0, 0, 0)
        assert np.isnan(run.delay(0.5))
        assert np.isnan(run.mean_delay)
        assert "0/0 delivered, delay p50 -, p95 -" in repr(run)
        assert repr(table([run])).splitlines()[-1].split()[-2:] == ["-", "-"]

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"floor": 0.03}, "the clients' loop was 30 ms late"),
            ({"published": [Publication(11, 1.0, 1.5, "a")]}, "an update was published 500 ms late"),
            ({"waited": 0.5}, "somebody waited for a CPU 50% of the time"),
        ],
    )
    def test_too_busy(self, changes: dict[str, Any], why: str) -> None:
        """A late loop, a late publication and a full machine each make a run busy, and its table says which it was."""
        run = make_run(COMPLETE, **changes)
        assert run.busy
        assert run.busy_with == why
        assert f"too busy for its delays to be believed ({why})" in repr(table([run]))
        assert not make_run(COMPLETE).busy

    def test_duplicates_and_disorder(self) -> None:
        """A repeated delivery is a duplicate and not out of order; an overtaken one is out of order."""
        at = [Delivery(0, 12, 2.1), Delivery(0, 11, 2.2), Delivery(0, 12, 2.3), Delivery(1, 11, 2.4)]
        run = make_run(at)
        assert (run.duplicated, run.out_of_order, run.lost) == (1, 1, 3)

    def test_foreign_updates(self) -> None:
        """An update that the run did not publish is told apart, and is neither a delivery nor a loss."""
        run = make_run([*COMPLETE, Delivery(0, 99, 4.0)])
        assert (run.unexpected, run.lost, len(run.delays)) == (1, 0, 6)

    def test_requests(self) -> None:
        """Requests are useful or wasted; held are their seconds, added up, and the most at one moment."""
        requests = [
            Request(0, -0.5, 1.0, 2, False),
            Request(1, 0.0, 2.0, 0, False),
            Request(0, 1.0, 3.0, 1, False),
            Request(1, 2.5, 2.75, 0, True),
        ]
        run = make_run(COMPLETE, requests)
        assert (run.requests, run.useful, run.wasted) == (4, 2, 2)
        assert run.held_seconds == pytest.approx(5.75)
        assert run.held_peak == 2  # one ends when the next begins: they are not held together
        assert run.requests_between(0, 2.5) == requests[1:3]
        assert run.duration == 5.5
        assert make_run([]).held_peak == 0

    def test_what_was_coalesced_is_not_lost(self) -> None:
        """Where the server coalesces, an update that a later one of its file stands for is expected no more; in any
        other run, and for a file whose later update did not come either, it is lost."""
        published = [Publication(n, float(n), float(n), path) for n, path in enumerate("abaab", start=1)]
        deliveries = [Delivery(0, n, n + 0.5) for n in (1, 4, 5)] + [Delivery(1, n, n + 0.5) for n in (2, 3)]
        run = make_run(deliveries, published=published, coalescing=True)
        assert run.superseded == {(0, 2), (0, 3), (1, 1)}
        assert (run.coalesced, run.expected, run.lost) == (3, 7, 2)  # the second client has neither 4 nor 5
        assert run.delay(5 / 7) == 0.5
        assert run.delay(1) == float("inf")
        assert "5/7 delivered, 3 coalesced, delay" in repr(run)
        strict = dataclasses.replace(run, coalescing=False)
        assert (strict.coalesced, strict.expected, strict.lost) == (0, 10, 5)

    def test_one_line(self) -> None:
        """A run prints what was asked, what came and how late, in one line."""
        run = make_run(COMPLETE, [Request(0, 0.0, 4.0, 6, False)])
        assert repr(run) == (
            "Run(SSE, LIVE: 2 clients, 3 updates, 1 request (0 for nothing), 6/6 delivered, "
            "delay p50 500 ms, p95 750 ms)"
        )

    def test_table(self) -> None:
        """Runs side by side are an HTML table with a header for each row and column, and aligned text."""
        runs = table([make_run(COMPLETE), make_run(COMPLETE[:4], label="a <b>", mode=VIRTUAL)])
        found: list[str] = []
        parser = html.parser.HTMLParser()
        parser.handle_starttag = lambda tag, attrs: found.append(f"{tag} {dict(attrs).get('scope', '')}")  # type: ignore[method-assign]  # a stock parser with one event wired
        parser.feed(runs._repr_html_())
        assert found.count("th col") == len(runs.head) - 1
        assert found.count("th row") == 2
        assert found.count("td ") == 1 + 2 * (len(runs.head) - 1)
        assert "b " not in found
        caption, *lines = repr(runs).splitlines()
        assert caption == (
            "LIVE and VIRTUAL: 2 clients each, 3 updates; held: the most requests that were open at once; "
            "delays count from the plan, the latest update was published 3 ms after it"
        )
        assert len({len(line) for line in lines}) == 1
        assert [line.split()[0] for line in lines[1:]] == ["SSE", "a"]
        assert make_run(COMPLETE)._repr_html_().count("<tr>") == 2

    def test_numbers_as_one_says_them(self) -> None:
        """Durations and counts are written with the unit and the plural that they need."""
        says = {0.00123: "1.2 ms", 0.0123: "12 ms", 0.2519: "252 ms", 0.0: "0 ms", 4.031: "4.03 s", 1234.5: "1,234 s"}
        assert {value: seconds(value) for value in says} == says
        assert (seconds(float("inf")), seconds(float("nan"))) == ("never", "-")
        assert (count(1, "request"), count(1200, "request")) == ("1 request", "1,200 requests")


class TestClientLog:
    def test_a_request_counts_what_it_brings(self) -> None:
        """An update counts for the request begun last, also when the answer is read after it."""
        log = ClientLog(0, "e-0")
        with log.request():
            pass
        with log.request() as second:
            log.deliver({"seq": 1})
        log.deliver({"seq": 2})
        assert [span.updates for span in log.requests] == [0, 2]
        assert second is log.requests[1]
        assert log.seen == {1, 2}

    def test_a_failed_request_is_marked(self) -> None:
        """A request that raises is counted, closed and marked; a cancelled one has not failed."""
        log = ClientLog(0, "e-0")
        for error in (OSError, asyncio.CancelledError):
            with pytest.raises(error), log.request():
                raise error
        assert [span.failed for span in log.requests] == [True, False]
        assert all(span.end is not None for span in log.requests)

    def test_no_request_after_the_end(self) -> None:
        """Once the observation is over a client is cancelled where it would ask again, and nothing is counted."""
        log = ClientLog(0, "e-0")
        log.closed = True
        with pytest.raises(asyncio.CancelledError), log.request():
            raise AssertionError("the request was made")
        assert log.requests == []

    def test_each_client_has_its_own_seeded_randomness(self) -> None:
        """The same seed and number give the same numbers, another client has others."""
        draws = [ClientLog(number, "e-0", seed).rng.random() for number, seed in ((0, 1), (0, 1), (1, 1), (0, 2))]
        assert draws[0] == draws[1]
        assert len(set(draws)) == 3


class TestExperiment:
    def test_everybody_gets_everything(self, server: Server) -> None:
        """Polling clients get every update once, in order, and the server counts what they count."""
        run = finish(experiment(server, poll, SCHEDULE, clients=4, spread=0.2, label="T = 50 ms"))
        assert (run.model, run.label, run.mode) == ("short polling", "T = 50 ms", LIVE)
        assert run.expected == 4 * len(SCHEDULE) > 0
        assert run.lost == run.duplicated == run.out_of_order == run.unexpected == 0
        assert run.requests == run.server_requests
        assert run.requests_between(0, run.end), "the clients poll while the schedule runs"
        assert (run.delays > 0).all()
        assert run.bytes_up is run.bytes_down is None

    def test_the_schedule_is_kept(self, server: Server) -> None:
        """What is published is what was planned, in order, never before its time, from the run's zero on."""
        run = finish(experiment(server, poll, SCHEDULE, clients=1, spread=0.0))
        assert [publication.planned for publication in run.published] == list(SCHEDULE.times)
        assert [publication.path for publication in run.published] == [edit.path for edit in SCHEDULE.edits]
        assert all(publication.at > publication.planned - 0.02 for publication in run.published)
        assert run.begin < 0 < SCHEDULE.seconds <= run.end

    def test_four_models_side_by_side(self) -> None:
        """One publication reaches the clients of all four models; a stream asks once and is held all the time."""
        feed = Feed()
        models = (short_polling, long_polling, websocket, sse)
        with contextlib.ExitStack() as stack:
            running = [stack.enter_context(serve(model.create_app(feed))) for model in models]
            contenders = list(zip(running, (poll, long_poll, converse, listen), strict=True))
            runs = finish(side_by_side(contenders, SCHEDULE, clients=3, spread=0.1))
        assert [run.model for run in runs] == ["short polling", "long polling", "WebSocket", "SSE"]
        sequences = {tuple(d.seq for d in run.all_deliveries if d.client == n) for run in runs for n in range(3)}
        assert len(sequences) == 1
        assert all(run.requests == run.server_requests for run in runs)
        assert [(run.requests, run.wasted, run.held_peak) for run in runs[2:]] == [(3, 0, 3), (3, 0, 3)]
        assert runs[1].held_seconds > runs[0].held_seconds

    def test_a_finite_client_is_waited_for(self, server: Server) -> None:
        """Clients that make K requests and return have made exactly K, whatever was published."""

        async def poll_five_times(url: str, log: ClientLog) -> None:
            async with httpx.AsyncClient(base_url=url, **HTTP) as http:
                for _ in range(5):
                    await poll_once(http, log, log.cursor)
                    await asyncio.sleep(0.1)

        run = finish(experiment(server, poll_five_times, Schedule.at([], 0.1), clients=3, finite=True))
        assert [sum(request.client == n for request in run.all_requests) for n in range(3)] == [5, 5, 5]
        assert run.requests == run.server_requests == 15

    def test_a_request_on_its_way_is_waited_for(self, server: Server) -> None:
        """A request that has begun when everything has arrived still reaches the server, and both count it.

        With several such clients one is always on its way; the schedule begins all the same.
        """

        async def dawdle(url: str, log: ClientLog) -> None:
            async with httpx.AsyncClient(base_url=url, **HTTP) as http:
                while True:
                    with log.request():
                        await asyncio.sleep(0.3)
                        await http.get("/updates", params={"after": log.cursor})

        run = finish(experiment(server, dawdle, Schedule.at([], 0.1), clients=4, spread=0.2))
        assert run.requests == run.server_requests

    def test_clients_start_one_after_another(self, server: Server) -> None:
        """Each client starts in its own part of the spread, not before it."""
        called = time.perf_counter()
        starts: list[float] = []

        async def note_start(url: str, log: ClientLog) -> None:
            starts.append(time.perf_counter() - called)
            await poll(url, log)

        finish(experiment(server, note_start, Schedule.at([], 0), clients=4, spread=0.4))
        assert all(start >= 0.1 * n for n, start in enumerate(starts))
        assert starts == sorted(starts)

    def test_a_loss_ends_with_the_grace(self) -> None:
        """A client that drops every second update loses them, and the run does not wait for ever."""

        class Forgetful(ClientLog):
            def deliver(self, update: Any) -> None:
                if update["seq"] % 2:
                    ClientLog.deliver(self, update)

        async def forget(url: str, log: ClientLog) -> None:
            log.__class__ = Forgetful
            await poll(url, log)

        run = Trial(short_polling.create_app, forget, Schedule.periodic(0.05, 0.5), clients=2, grace=0.3).virtual()
        assert run.lost == run.expected // 2 == 10
        assert run.end == pytest.approx(0.5 + 0.3, abs=0.05)

    def test_a_stall_is_seen(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        """When a client blocks the loop again and again, updates are published in time all the same; those due in
        the stall are as late as the loop, and the run is busy."""

        stalled, in_a_stall = threading.Event(), list[bool]()
        publish = Feed.publish

        def noted(feed: Feed, *args: Any, **options: Any) -> Any:
            in_a_stall.append(stalled.is_set())
            return publish(feed, *args, **options)

        async def stall(url: str, log: ClientLog) -> None:
            listening = asyncio.create_task(poll(url, log))
            try:
                while True:
                    await asyncio.sleep(0.3)
                    stalled.set()
                    time.sleep(0.6)  # noqa: ASYNC251  # the mistake that this test is about
                    stalled.clear()
            finally:
                listening.cancel()
                await asyncio.wait({listening})

        monkeypatch.setattr(Feed, "publish", noted)
        run = finish(experiment(server, stall, Schedule.periodic(0.02, 6), clients=1))
        assert run.lost == 0
        assert len(run.published) == 300
        assert run.delay(0.99) > 0.3, "published by the stalled loop and counted from there it would be some 50 ms"
        assert run.floor > 0.2
        assert run.busy
        assert "the clients' loop was" in run.busy_with
        assert sum(in_a_stall) > 50, "on the stalled loop it would be none"

    def test_a_sender_that_cannot_keep_its_plan(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        """An update that goes out late is late from its planned moment on, and the run says how late it went out."""
        publish = Feed.publish

        def slowly(feed: Feed, *args: Any, **options: Any) -> Any:
            time.sleep(0.3)
            return publish(feed, *args, **options)

        monkeypatch.setattr(Feed, "publish", slowly)
        run = finish(experiment(server, poll, Schedule.at([0.1, 0.1, 0.1], 0.2), clients=1))
        assert run.lateness >= 0.9
        assert run.delays[-1] >= 0.9
        assert "published" in run.busy_with

    def test_the_sender_ends_with_the_experiment(self, server: Server) -> None:
        """An experiment that is given up publishes nothing more, and leaves no thread behind."""
        before = threading.active_count()

        app: Any = server.app

        async def give_up() -> None:
            running = asyncio.create_task(experiment(server, poll, Schedule.periodic(0.01, 60), clients=1, spread=0.0))
            await until(lambda: app.feed.head)
            running.cancel()
            await asyncio.wait({running})
            assert running.cancelled()

        finish(give_up())
        head = app.feed.head
        time.sleep(0.1)
        assert app.feed.head == head
        assert threading.active_count() <= before

    def test_a_sender_that_raises(self, server: Server) -> None:
        """An update that the feed refuses ends the experiment with the feed's own words."""
        with pytest.raises(ValueError, match="path"):
            finish(experiment(server, poll, Schedule("wrong", 1, (Edit(0.1, "/etc", "modified", 1, "a"),)), clients=1))

    def test_no_updates(self, server: Server) -> None:
        """A schedule of rate 0 is an experiment like any other: requests, and no delay."""
        run = finish(experiment(server, poll, Schedule.poisson(0, 0.3), clients=2, spread=0.1))
        assert (run.expected, run.lost) == (0, 0)
        assert run.wasted + run.still_open == run.requests > 2

    def test_a_client_that_raises(self, server: Server) -> None:
        """A client's exception ends the experiment long before its schedule, with its number and its cause."""

        async def stumble(url: str, log: ClientLog) -> None:
            async with httpx.AsyncClient(base_url=url, **HTTP) as http:
                await poll_once(http, log, log.cursor)
            await asyncio.sleep(0.7)
            if log.number == 2:
                raise KeyError("updates")
            await asyncio.sleep(60)

        with pytest.raises(ExperimentError, match=r"client 2 \(short polling\) raised KeyError: 'updates'") as caught:
            finish(experiment(server, stumble, Schedule.at([], 60), clients=4))
        assert isinstance(caught.value.__cause__, KeyError)

    def test_a_client_that_never_asks(self) -> None:
        """A client that makes no request, or does not say so, is named with a hint."""

        async def wait(url: str, log: ClientLog) -> None:
            if log.number == 0:
                await poll(url, log)
            await asyncio.sleep(60)

        with pytest.raises(
            ExperimentError, match=r"no request of client 1 \(short polling\) .* `with log.request\(\):`"
        ):
            Trial(short_polling.create_app, wait, SCHEDULE, clients=2, spread=0.0).virtual()

    def test_a_client_that_asks_somebody_else(self) -> None:
        """A request that the server never counts is not taken for one."""

        async def pretend(url: str, log: ClientLog) -> None:
            with log.request():
                await asyncio.sleep(60)

        with pytest.raises(ExperimentError, match="the servers have counted less"):
            Trial(short_polling.create_app, pretend, SCHEDULE, clients=1, spread=0.0).virtual()

    def test_a_client_that_will_not_end(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        """A client that swallows its cancellation is reported instead of being waited for."""
        monkeypatch.setattr(module, "END_LIMIT", 0.2)
        may_end = asyncio.Event()

        async def refuse(url: str, log: ClientLog) -> None:
            async with httpx.AsyncClient(base_url=url, **HTTP) as http:
                await poll_once(http, log, log.cursor)
            while not may_end.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await may_end.wait()

        async def body() -> None:
            with pytest.raises(ExperimentError, match=r"client 0 did not end within 0\.2 s"):
                await experiment(server, refuse, Schedule.at([], 0), clients=1, spread=0.0)
            may_end.set()
            await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})

        finish(body())

    def test_interrupted(self, server: Server) -> None:
        """A cell that gives up takes its clients with it."""

        async def give_up() -> None:
            async with asyncio.timeout(0.5):
                await experiment(server, poll, Schedule.at([], 60), clients=3, spread=0.0)

        with pytest.raises(TimeoutError):
            finish(give_up())

    def test_one_after_another_on_one_server(self, server: Server) -> None:
        """A second run on the same server counts only its own requests and updates."""
        first = finish(experiment(server, poll, SCHEDULE, clients=2))
        second = finish(experiment(server, poll, SCHEDULE, clients=2))
        assert second.requests == second.server_requests
        assert second.published[0].seq == first.published[-1].seq + 1
        assert second.lost == second.unexpected == 0

    def test_wrong_servers(self, server: Server) -> None:
        """Servers that share no feed, or are none of the course's, are refused with a sentence."""
        with serve(short_polling.create_app(Feed())) as other, pytest.raises(ValueError, match="share one feed"):
            finish(side_by_side([(server, poll), (other, poll)], SCHEDULE))
        with pytest.raises(TypeError, match=r"servers\.service\.Service"):
            finish(side_by_side([], SCHEDULE))


def test_the_end_is_looked_for_at_a_price_that_does_not_grow() -> None:
    """A client that never gets one of 20 000 updates is waited for, however long the grace, in a moment of CPU."""

    async def all_but_one(url: str, log: ClientLog) -> None:
        with log.request():
            async with websockets.connect(f"ws://server/ws?after={log.cursor}", proxy=None, compression=None) as socket:
                async for message in socket:
                    for update in json.loads(message).get("updates", []):
                        if update["seq"] != 10_000:
                            log.deliver(update)

    schedule = Schedule.periodic(0.001, 20)
    run = Trial(websocket.create_app, all_but_one, schedule, grace=200).virtual()  # within run_virtual's minute
    assert (run.expected, run.lost) == (20_000, 1)
    assert run.end > 220


def test_an_experiment_knows_what_its_server_coalesces() -> None:
    """A burst of updates of one file ends as soon as the last one has arrived; what was left out is not lost."""
    burst = Schedule("burst", 0.2, tuple(Edit(0.1, "a", "modified", 1, f"{n}") for n in range(50)))
    with serve(file_updates.create_app(Feed())) as server:
        run = finish(experiment(server, listen, burst, clients=3, grace=20))
    assert run.coalescing
    assert (run.lost, run.duplicated, run.out_of_order) == (0, 0, 0)
    assert run.coalesced + run.deliveries == 150
    assert run.coalesced > 0
    assert run.duration < 10
