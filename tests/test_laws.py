"""The laws that the notebooks teach, held against the real servers and clients in virtual time.

Where a law is exact it is asserted to the rounding of a float. Where it is about chance, the tolerance is what
the size of the sample gives: four standard errors, so that a right law fails once in 16 000 seeds, and these are
fixed. Each has been seen to fail with the servers or the clients broken on purpose.
"""

import asyncio
import functools
import itertools
import json
import math
import time
from collections.abc import Callable
from typing import Any

import httpx
import httpx_sse
import numpy as np
import pytest
import websockets
from fastapi import Response

from lab import theory
from lab.bench.experiment import HTTP, ClientLog, Run, Schedule, experiment
from lab.virtual import Link, Net, run_virtual, serve
from servers import long_polling, short_polling, sse, websocket
from servers.feed import Feed
from servers.service import Service

EXACT = 1e-9  # s: what adding floats may cost
D = 0.025  # s, one way

MakeApp = Callable[[Feed], Service]
Client = Callable[[str, ClientLog], Any]


def virtual(
    make: MakeApp, client: Client, schedule: Schedule, *, clients: int = 1, delay: float = D, spread: float = 0.5
) -> Run:
    """The experiment in virtual time, over a link with `delay` s each way."""

    async def main(net: Net) -> Run:
        async with serve(make(Feed())) as server:
            return await experiment(server, client, schedule, clients=clients, spread=spread)

    return run_virtual(main, link=Link(delay=delay))


async def ask(http: httpx.AsyncClient, url: str, log: ClientLog, cursor: str, **question: float) -> str:
    """One poll from `cursor`; the cursor of the answer."""
    with log.request():
        answer = (await http.get(f"{url}/updates", params={"after": cursor, **question})).json()
        for update in answer["updates"]:
            log.deliver(update)
    return str(answer["cursor"])


async def on_grid(url: str, log: ClientLog, interval: float, jitter: float = 0.0) -> None:
    """Poll at 0, T, 2T, ... from the start; with jitter, at a step of T(1 ± j) each."""
    cursor, at = log.cursor, time.perf_counter()
    async with httpx.AsyncClient(**HTTP) as http:
        while True:
            await asyncio.sleep(at - time.perf_counter())
            cursor = await ask(http, url, log, cursor)
            at += interval * log.rng.uniform(1 - jitter, 1 + jitter) if jitter else interval


async def after_answer(url: str, log: ClientLog, interval: float) -> None:
    """Poll, and sleep T after each answer."""
    cursor = log.cursor
    async with httpx.AsyncClient(**HTTP) as http:
        while True:
            cursor = await ask(http, url, log, cursor)
            await asyncio.sleep(interval)


async def long_poll(url: str, log: ClientLog, wait: float = 30.0, pause: float = 0.0) -> None:
    """Ask, be held, ask again at once, or after a pause drawn from (0, `pause`)."""
    cursor = log.cursor
    async with httpx.AsyncClient(**HTTP) as http:
        while True:
            cursor = await ask(http, url, log, cursor, wait=wait)
            if pause:
                await asyncio.sleep(log.rng.uniform(0, pause))


async def listen(url: str, log: ClientLog) -> None:
    """Server-Sent Events by httpx-sse."""
    async with httpx.AsyncClient(**HTTP) as http:
        with log.request():
            async with httpx_sse.aconnect_sse(http, "GET", f"{url}/events?after={log.cursor}") as stream:
                async for event in stream.aiter_sse():
                    if event.event == "update":
                        log.deliver(event.json())


async def open_socket(url: str, log: ClientLog) -> None:
    """A WebSocket by the websockets library."""
    address = url.replace("http", "ws") + f"/ws?after={log.cursor}"
    with log.request():
        async with websockets.connect(address, compression=None, proxy=None) as socket:
            async for message in socket:
                for update in json.loads(message).get("updates", []):
                    log.deliver(update)


# ── short polling ────────────────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def polled(rate: float, interval: float, seconds: float, jitter: float = 0.0) -> Run:
    """One client on a grid, Poisson updates."""
    client = functools.partial(on_grid, interval=interval, jitter=jitter)
    return virtual(short_polling.create_app, client, Schedule.poisson(rate, seconds, seed=1))


def steady(run: Run, interval: float) -> list[int]:
    """Updates per poll of all polls made after a first interval, while the schedule lasts."""
    return [request.updates for request in run.requests_between(interval, run.schedule.seconds)]


@pytest.mark.parametrize(("seconds", "interval"), [(600, 5.0), (30, 0.1), (600, 7.5)])
def test_polls_on_a_grid_make_exactly_that_many_requests(seconds: float, interval: float) -> None:
    """A client on a grid makes t/T requests in t seconds, whatever the updates do."""
    for rate in (0.05, 1.0):
        run = polled(rate, interval, seconds)
        assert len(run.requests_between(0, seconds)) == theory.polling_requests(1, seconds, interval)


def test_a_polled_delay_is_uniform() -> None:
    """Delays on a grid have the mean, deviation, 95th percentile and maximum of a uniform wait on (0, T), plus d."""
    interval, run = 5.0, polled(1.0, 5.0, 2000)
    delays, n = run.delays, len(run.delays)
    error = theory.polling_delay_sd(interval) / math.sqrt(n)
    assert run.lost == run.duplicated == run.out_of_order == 0
    assert delays.mean() == pytest.approx(theory.polling_mean_delay(interval, D), abs=4 * error)
    # the fourth central moment of a uniform distribution is T⁴/80, so a sample's variance has error T²/√(180 n)
    assert delays.var() == pytest.approx(interval**2 / 12, abs=4 * interval**2 / math.sqrt(180 * n))
    assert np.quantile(delays, 0.95) == pytest.approx(
        theory.polling_delay_quantile(0.95, interval, D), abs=4 * interval * math.sqrt(0.95 * 0.05 / n)
    )
    assert D <= delays.min() <= delays.max() <= theory.polling_max_delay(interval, D) + EXACT
    assert delays.max() > interval + D - 20 * interval / n  # e^-20: the largest of n is as near the end as that


@pytest.mark.parametrize(("interval", "delay"), [(5.0, 0.025), (0.2, 0.1)])
def test_a_client_that_sleeps_after_the_answer_polls_every_interval_and_round_trip(
    interval: float, delay: float
) -> None:
    """`sleep(T)` after an answer asks every T + RTT."""
    client = functools.partial(after_answer, interval=interval)
    run = virtual(short_polling.create_app, client, Schedule.poisson(1.0, 60, seed=2), delay=delay)
    starts = np.array([request.start for request in run.all_requests[1:]])  # the first had to connect
    assert np.allclose(np.diff(starts), theory.polling_period(interval, delay), rtol=0, atol=EXACT)


@pytest.mark.parametrize("x", [0.25, 1.0, 3.0])
def test_the_wasted_share_is_that_of_an_empty_interval(x: float) -> None:
    """A poll brings nothing with probability e^-x."""
    interval = 5.0
    polls = steady(polled(x / interval, interval, 2000), interval)
    law = theory.polling_wasted_share(x)
    measured = sum(updates == 0 for updates in polls) / len(polls)
    assert measured == pytest.approx(law, abs=4 * math.sqrt(law * (1 - law) / len(polls)))


@pytest.mark.parametrize("x", [0.25, 1.0, 3.0])
def test_versions_skipped_by_a_poll_for_the_latest_state(x: float) -> None:
    """Of the updates that arrive together only the last is seen: 1 - (1 - e^-x)/x of all are skipped."""
    interval = 5.0
    polls = np.array(steady(polled(x / interval, interval, 2000), interval))
    seen = np.minimum(polls, 1)
    # the ratio of two means: its error by the usual linearisation
    share = seen.sum() / polls.sum()
    error = np.std(seen - share * polls) / polls.mean() / math.sqrt(len(polls))
    assert 1 - share == pytest.approx(theory.polling_skipped_share(x), abs=4 * error)


@pytest.mark.parametrize("rate", [0.05, 0.2, 1.0])
def test_how_fresh_and_how_old_a_polled_copy_is(rate: float) -> None:
    """The copy is T/2 + d old, the original for e^-λd (1 - e^-x)/x of the time, else out of date for so long."""
    interval, seconds = 5.0, 2000.0
    run = polled(rate, interval, seconds)
    published = np.array([publication.at for publication in run.published])
    copies = [(request.end, request.start + D) for request in run.all_requests]  # in hand, as the server was then
    fresh, stale, ages = list[float](), list[float](), list[float]()
    for (got, looked), (replaced, _) in itertools.pairwise(copies):
        later = published[published > looked]
        outdated = max(got, later[0]) if len(later) else math.inf
        if got >= 0 and replaced <= seconds:
            fresh.append((min(replaced, outdated) - got) / (replaced - got))
            since = later[0] if outdated < replaced else replaced  # the mean of a line that begins at outdated - since
            old = (outdated - since + replaced - since) / 2 if outdated < replaced else 0.0
            stale.append(old * (1 - fresh[-1]))
            ages.append((got + replaced) / 2 - looked)
    assert np.allclose(ages, theory.polling_copy_age(interval, D), rtol=0, atol=EXACT)
    for measured, law in (
        (fresh, theory.polling_fresh_share(rate, interval, D)),
        (stale, theory.polling_staleness(rate, interval, D)),
    ):
        assert np.mean(measured) == pytest.approx(law, abs=4 * float(np.std(measured)) / math.sqrt(len(measured)))


def test_the_price_of_jitter() -> None:
    """Intervals drawn from T(1 ± j) make the mean wait longer by 1 + j²/3."""
    interval, jitter = 5.0, 0.9  # large, so that the price is larger than the error
    run = polled(1.0, interval, 4000, jitter)
    mean = interval / 2 * theory.jitter_delay_factor(jitter) + D
    assert mean > interval / 2 + D + 4 * theory.polling_delay_sd(interval) / math.sqrt(len(run.delays))
    # waits within one interval are not independent: the error is that of the intervals, not of the updates
    batches = [float(np.sum(run.delays[lo : lo + 50])) / 50 for lo in range(0, len(run.delays) - 50, 50)]
    error = float(np.std(batches)) / math.sqrt(len(batches))
    assert run.delays.mean() == pytest.approx(mean, abs=4 * error)


@pytest.mark.parametrize(("every", "phase"), [(10.0, 1.3), (7.5, 0.4), (4.0, 2.0)])
def test_aliasing_leaves_only_a_few_delays(every: float, phase: float) -> None:
    """Periodic updates polled on a grid have the few delays that the two rhythms leave, and no others."""
    interval = 5.0
    client = functools.partial(on_grid, interval=interval)
    run = virtual(short_polling.create_app, client, Schedule.periodic(every, 200, phase=phase))
    looked = run.requests_between(interval, 200)[0].start + D  # when the server looks, a point of its grid
    possible = theory.aliased_delays(interval, every, phase=round(phase - looked, 9), transit=D)
    assert len(possible) == {10.0: 1, 7.5: 2, 4.0: 5}[every]
    assert np.allclose(np.unique(np.round(run.delays, 6)), possible, rtol=0, atol=1e-6)


# ── long polling ─────────────────────────────────────────────────────────────────────────────────────────────────────


def forgetful(feed: Feed) -> Service:
    """A long-polling server without a cursor: each request begins at "now"."""
    app = Service("long polling", feed, path="/updates")

    @app.get("/updates")
    async def updates(wait: float = 30) -> Response:
        position = feed.head
        try:
            async with asyncio.timeout(wait):
                await feed.wait(position, app.closing)
        except TimeoutError:
            pass
        return Response(feed.read(position).body, media_type="application/json")

    return app


def patient(feed: Feed) -> Service:
    """The course's long-polling server, with holds of exactly the length asked for."""
    return long_polling.create_app(feed, jitter=0.0)


@pytest.mark.parametrize(("rate", "delay"), [(1.0, 0.05), (10.0, 0.05)])
def test_long_polling_without_a_cursor_loses_what_the_law_says(rate: float, delay: float) -> None:
    """Without a cursor λG/(1 + λG) of the updates are lost, those published in the gap G = RTT."""
    run = virtual(forgetful, long_poll, Schedule.poisson(rate, 600 / rate, seed=3), delay=delay)
    law = theory.long_polling_lost_share(rate, 2 * delay)
    # lost in one gap: Poisson with mean m; of n gaps, the share m/(1 + m) has error √(m/n)/(1 + m)²
    missed, gaps = rate * 2 * delay, run.deliveries
    error = math.sqrt(missed / gaps) / (1 + missed) ** 2
    assert run.lost / run.expected == pytest.approx(law, abs=4 * error)


@pytest.mark.parametrize("rate", [1.0, 10.0])
def test_long_polling_with_a_cursor_loses_nothing_within_three_transits(rate: float) -> None:
    """With a cursor nothing is lost, and no delay is below one transit or above three (RFC 6202, section 2.2)."""
    run = virtual(patient, long_poll, Schedule.poisson(rate, 300 / rate, seed=4))
    assert run.lost == run.duplicated == run.out_of_order == 0
    assert run.delays.min() == pytest.approx(D, abs=EXACT)
    assert run.delays.max() <= 3 * D + EXACT
    assert run.delays.max() > 2 * D


@pytest.mark.parametrize(("rate", "hold"), [(0.01, 5.0), (1.0, 5.0), (20.0, 5.0)])
def test_the_rate_of_long_polls(rate: float, hold: float) -> None:
    """Requests per second follow 1/(G + e^-λG (1 - e^-λH)/λ), from an empty poll each G + H to one each G."""
    gap, seconds = 0.1, {0.01: 1500, 1.0: 300, 20.0: 30}[rate]
    client = functools.partial(long_poll, wait=hold)
    run = virtual(patient, client, Schedule.poisson(rate, seconds, seed=5), delay=gap / 2)
    starts = [request.start for request in run.requests_between(0, seconds)]
    periods = np.diff(starts)
    law = 1 / theory.long_polling_request_rate(rate, gap, hold)
    error = theory.long_polling_period_sd(rate, gap, hold) / math.sqrt(len(periods))
    assert periods.mean() == pytest.approx(law, abs=4 * error)


def test_the_limits_of_long_polling() -> None:
    """The law of the request rate has the two limits that it should: 1/(G + H) without news, 1/G in a flood."""
    assert theory.long_polling_request_rate(1e-9, 0.1, 5.0) == pytest.approx(1 / 5.1)
    assert theory.long_polling_request_rate(1e3, 0.1, 5.0) == pytest.approx(1 / 0.1)
    assert theory.long_polling_request_rate(1e3, 0.1, 5.0, pause=1.0) == pytest.approx(1 / 0.6, rel=1e-3)


def batch_error(values: Any, size: int = 20) -> float:
    """The standard error of a mean of values of which neighbours are not independent: that of batches of `size`."""
    batches = [float(np.mean(values[at : at + size])) for at in range(0, len(values) - size + 1, size)]
    return float(np.std(batches)) / math.sqrt(len(batches))


@pytest.mark.parametrize(("rate", "pause"), [(1.0, 0.0), (10.0, 0.0), (1.0, 1.0), (5.0, 0.5)])
def test_the_mean_delay_of_long_polling_and_the_price_of_a_pause(rate: float, pause: float) -> None:
    """The mean delay is d + r E[g²]/2, and a pause before asking makes fewer requests, as the law says."""
    hold, transit, seconds = 5.0, 0.05, (1500 if pause else 600) / rate
    client = functools.partial(long_poll, wait=hold, pause=pause)
    run = virtual(patient, client, Schedule.poisson(rate, seconds, seed=7), delay=transit)
    law = theory.long_polling_mean_delay(rate, transit, hold, pause)
    assert run.lost == run.duplicated == 0
    assert run.mean_delay == pytest.approx(law, abs=4 * batch_error(run.delays))
    periods = np.diff([request.start for request in run.requests_between(0, seconds)])
    mean = 1 / theory.long_polling_request_rate(rate, 2 * transit, hold, pause)
    assert periods.mean() == pytest.approx(mean, abs=4 * float(np.std(periods)) / math.sqrt(len(periods)))


# ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("make", "client"), [(sse.create_app, listen), (websocket.create_app, open_socket)])
def test_a_stream_delivers_after_one_transit(make: MakeApp, client: Client) -> None:
    """SSE and WebSocket deliver every update after exactly one transit, in order, once, on one request a client."""
    run = virtual(make, client, Schedule.poisson(2.0, 120, seed=6), clients=3)
    assert run.lost == run.duplicated == run.out_of_order == 0
    assert run.requests == run.server_requests == 3
    assert np.allclose(run.delays, D, rtol=0, atol=EXACT)


@pytest.mark.parametrize(("dark", "noticed"), [(30.0, 60.0), (45.0, 80.0)])
def test_a_dead_websocket_is_noticed_at_the_next_ping_and_the_timeout(dark: float, noticed: float) -> None:
    """A black-holed WebSocket raises at the first ping that gets no answer plus the timeout."""

    async def main(net: Net) -> float:
        async with serve(websocket.create_app(Feed())) as server:
            url = server.url.replace("http", "ws") + "/ws"
            options: dict[str, Any] = {"ping_interval": 20, "ping_timeout": 20, "close_timeout": 0, "proxy": None}
            async with websockets.connect(url, **options) as socket:
                opened = time.perf_counter()
                await socket.recv()  # hello
                asyncio.get_running_loop().call_at(opened + dark, net.link.blackhole)
                with pytest.raises(websockets.ConnectionClosedError):
                    await socket.recv()
                moment = time.perf_counter() - opened
            net.link.heal()
            net.link.cut()
            return moment

    assert run_virtual(main, link=Link(delay=D), limit=200) == pytest.approx(noticed, abs=1e-6)


@pytest.mark.parametrize("heartbeat", [15.0, 4.0])
def test_sse_heartbeats_come_at_their_seconds(heartbeat: float) -> None:
    """On a quiet stream a comment is sent each heartbeat, counted from the response's beginning."""

    async def main(net: Net) -> list[float]:
        async with (
            serve(sse.create_app(Feed(), heartbeat=heartbeat)) as server,
            httpx.AsyncClient(**HTTP) as http,
            http.stream("GET", f"{server.url}/events") as response,
        ):
            began = time.perf_counter() - D  # the first bytes left the server one transit ago
            moments = list[float]()
            async for chunk in response.aiter_raw():
                if b": heartbeat" in chunk:
                    moments.append(time.perf_counter() - D - began)
                if len(moments) == 5:
                    return moments
        raise AssertionError("the stream ended")

    moments = run_virtual(main, link=Link(delay=D), limit=100)
    assert np.allclose(moments, heartbeat * np.arange(1, 6), rtol=0, atol=EXACT)
