"""What keeps many clients from coming in one instant: a drain, full jitter, a spread relist, leases after a deploy.

The laws, the numpy herd and the real servers and clients in virtual time are held against each other.
"""

import asyncio
import itertools
import math
import signal
from typing import NamedTuple

import httpx
import numpy as np
import pytest

from lab import theory
from lab.bench import cures
from lab.theory import herd, lease
from lab.virtual import Link, Net, run_virtual, serve
from servers import long_polling
from servers.feed import Feed
from tests.support import PATIENCE, command, ended, events, on_a_loop, url_of


class Process(NamedTuple):
    """A server of its own, as far as a client knows it."""

    url: str


@pytest.mark.parametrize("fast", [False, True])
def test_a_drain_is_a_glide(fast: bool) -> None:
    """Over ten seconds the other server sees a hundred clients at N/S a second, and each has every update once."""
    moments, got, head = cures.drained(10, fast=fast)
    rate = lease.drain_arrival_rate(100, 10)
    assert len(moments) == 100
    assert herd.peak(moments, 1.0) <= rate + 3
    assert moments.min() >= 1.0
    assert moments.max() <= 10 + 1
    assert np.abs(np.sort(moments) - np.linspace(1, 10, 100)).max() < 1
    assert all(each == list(range(1, head + 1)) for each in got)


def test_without_a_drain_the_end_is_a_cliff() -> None:
    """All streams end in one instant, and all clients are back within a second of `retry` and jitter."""
    moments, got, head = cures.drained(0, 50)
    assert len(moments) == 50
    assert moments.max() - moments.min() <= 1 + 0.2
    assert all(each == list(range(1, head + 1)) for each in got)


@pytest.mark.parametrize("fast", [False, True])
def test_a_drain_answers_held_polls_one_after_the_other(fast: bool) -> None:
    """Held polls are answered between a tenth of the drain and its end, and their connections end with the answers."""

    async def main(net: Net) -> list[float]:
        app = long_polling.create_app(Feed(epoch="e"), seed=1, fast=fast)
        loop, answered = asyncio.get_running_loop(), list[float]()
        async with serve(app) as served, httpx.AsyncClient(trust_env=False, timeout=None) as http:

            async def poll() -> None:
                answer = await http.get(f"{served.url}/updates", params={"after": "e-0", "wait": "60"})
                assert (answer.status_code, answer.json()["updates"]) == (200, [])
                assert answer.headers["connection"] == "close"
                answered.append(loop.time() - begin)

            polls = [asyncio.create_task(poll()) for _ in range(20)]
            await asyncio.sleep(1)
            begin = loop.time()
            app.leases.drain(10)
            assert (await http.get(f"{served.url}/healthz")).status_code == 503
            await asyncio.gather(*polls)
        return answered

    answered = run_virtual(main, link=Link(delay=0.01))
    assert min(answered) >= 1
    assert max(answered) <= 10.2
    assert max(after - before for before, after in itertools.pairwise(answered)) < 1


@on_a_loop
async def test_the_first_signal_drains_and_the_second_ends_at_once() -> None:
    """After SIGTERM new connections are refused and streams end one by one; a second one ends what is left."""
    async with command("servers", "sse", "--port", 0, "--rate", 1, "--drain", 600) as process:
        url = await url_of(process, "sse")

        async with events(Process(url)) as stream, httpx.AsyncClient(trust_env=False) as http:  # type: ignore[arg-type]
            await stream.block()
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE):
                while (await http.get(f"{url}/healthz")).status_code != 503:  # noqa: ASYNC110  # another process
                    await asyncio.sleep(0.01)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await process.wait()
            process.send_signal(signal.SIGTERM)
            await stream.rest()
            assert await ended(process) == (0, "", "")


@on_a_loop
async def test_a_drain_ends_with_its_last_stream() -> None:
    """The command ends when all streams have, with status 0, and the last block says "renew"."""
    async with command("servers", "sse", "--port", 0, "--rate", 1, "--drain", 3) as process:
        url = await url_of(process, "sse")

        async with events(Process(url)) as stream:  # type: ignore[arg-type]
            await stream.block()
            process.send_signal(signal.SIGTERM)
            assert (await stream.rest()).endswith(b"event: renew\nretry: 100\ndata: {}\n\n")
        assert await ended(process) == (0, "", "")


# The reconnect herd


def test_full_jitter_has_the_lowest_peak() -> None:
    """Ten thousand at once: without jitter all in one window, with equal jitter a fifth, with full jitter a tenth."""
    seen = {kind: herd.reconnects(10_000, kind) for kind in ("none", "equal", "full")}
    peaks = {kind: herd.peak(moments) for kind, moments in seen.items()}
    assert peaks["none"] == 10_000
    assert peaks["equal"] == pytest.approx(theory.lease.herd_peak(10_000, 0.5, 0.1), rel=0.06)
    assert peaks["full"] == pytest.approx(theory.lease.herd_peak(10_000, 1.0, 0.1), rel=0.06)


def test_real_followers_come_back_as_the_herd_does() -> None:
    """A hundred real clients cut in one instant: their moments are spread evenly over the base, as in numpy."""
    real, law = cures.herd(100), herd.reconnects(100, "full")
    assert len(real) == 100
    assert real.mean() == pytest.approx(0.5, abs=4 / math.sqrt(12 * 100))
    assert np.abs(np.quantile(real, [0.1, 0.5, 0.9]) - np.quantile(law, [0.1, 0.5, 0.9])).max() < 0.2
    assert herd.peak(real) < 30


def test_while_the_server_is_down_the_herd_thins_out() -> None:
    """After a longer outage the attempts come in rounds without jitter, and evenly with it."""
    none, full = (herd.reconnects(10_000, kind, down=20) for kind in ("none", "full"))
    assert herd.peak(none) == 10_000
    back = full[full >= 20]
    assert len(back) == 10_000
    assert herd.peak(back) < 1500


# The relist


def test_mirrors_list_spread_after_a_reset_and_end_identical() -> None:
    """Ten mirrors that are reset at once list within `relist` seconds, and all end with what the server has."""
    at_once, same = cures.relisted(0.0, 10)
    spread, same_too = cures.relisted(10.0, 10)
    assert all(same)
    assert all(same_too)
    assert len(at_once) == len(spread) == 10
    assert at_once.max() < 0.5
    assert spread.max() - spread.min() > 4
    assert spread.mean() == pytest.approx(5, abs=4 * 10 / math.sqrt(12 * 10))


# Evenness


def test_a_rolling_deploy_leaves_the_last_server_empty() -> None:
    """Servers restarted one by one end with very different shares: the last has nobody, the first three fifths."""
    shares = herd.rolling_deploy(3, 30_000)[-1] / 30_000
    assert shares == pytest.approx([0.625, 0.375, 0], abs=0.01)


def test_leases_even_out_a_deploy_as_the_law_says() -> None:
    """After a third of an age the shares are as the residual life says; after S all servers have the same."""
    held, ages = herd.rolling_deploy(3, 30_000)[-1], np.array([0.0, 0.3, 0.6, 0.9, 1.2, 2.0])
    shares = herd.rebalanced(held, ages)
    for row, age in zip(shares, ages, strict=True):
        assert row == pytest.approx(lease.shares_after(held / held.sum(), age), abs=0.012)
    assert shares[-1] == pytest.approx([1 / 3] * 3, abs=0.012)


# The cost curve of the lease


@pytest.mark.parametrize(("model", "gap"), [("SSE", 0.1 + 4 * 0.02), ("WebSocket", 6 * 0.02)])
@pytest.mark.parametrize("age", [2.0, 10.0])
def test_the_cost_of_a_lease_is_the_laws(model: str, gap: float, age: float) -> None:
    """Handshakes per second and the delay they add are the laws'; the gap is 100 ms and 4 transits, or 6 transits.

    They are what `retry: 100` and a new TCP connection take, or the close of the old one and then a new one.
    """
    run = cures.leased(model, age, seconds=200, count=6, delay=0.02)
    expected = lease.lease_request_rate(age, gap, clients=6.0)
    counted = run.server_requests / (run.end - run.begin)
    renewals = run.server_requests / 6
    assert run.lost == run.duplicated == run.out_of_order == 0
    assert counted == pytest.approx(expected, rel=4 * 0.2 / math.sqrt(renewals * 6) + 1 / renewals)
    added = run.mean_delay - 0.02
    assert added == pytest.approx(lease.lease_mean_delay(age, gap, 0.0), rel=0.5)


def test_the_two_ends_of_the_axis() -> None:
    """Age 0 is polling at the gap, an infinite one is push."""
    assert lease.lease_request_rate(0.0, 5.0) == pytest.approx(theory.polling_requests(1, 1, 5.0), rel=1e-9)
    assert lease.lease_mean_delay(0.0, 5.0, 0.02) == pytest.approx(theory.polling_mean_delay(5.0, 0.02), rel=1e-9)
    assert lease.lease_request_rate(1e12, 5.0) < 1e-9
    assert lease.lease_mean_delay(1e12, 5.0, 0.02) == pytest.approx(0.02)


def test_a_half_dead_connection_is_held_for_what_is_left_of_its_age() -> None:
    """The mean of what is left at a random moment is the law's, and never more than the age."""
    rng = np.random.default_rng(1)
    ages = rng.uniform(0.5, 1, 200_000)
    moments = rng.uniform(0, ages.sum(), 200_000)
    ends = ages.cumsum()
    left = ends[np.searchsorted(ends, moments)] - moments
    assert left.mean() == pytest.approx(lease.lease_half_dead(1.0), rel=0.01)
    assert left.max() <= 1
