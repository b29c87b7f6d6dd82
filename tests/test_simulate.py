"""The simulation without protocol code, held against the real code in virtual time and against the laws."""

import functools
import math

import numpy as np
import pytest

from lab import theory
from lab.bench.experiment import Run, Schedule
from lab.bench.trial import Trial
from lab.theory import simulate
from servers import long_polling, short_polling
from tests.test_laws import forgetful, long_poll, on_grid

D = 0.025  # s, one way


def moments(run: Run) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([publication.at for publication in run.published])


def test_short_polling_equals_virtual_time() -> None:
    """On a grid the simulated requests and the mean delay equal the real code's, to the rounding of a float."""
    interval, seconds = 5.0, 300.0
    trial = Trial(
        short_polling.create_app, functools.partial(on_grid, interval=interval), Schedule.poisson(1.0, seconds, seed=2)
    )
    run = trial.virtual(delay=D)
    first = run.all_requests[0].start + D
    simulated = simulate.polling(moments(run), run.end, simulate.every(interval), starts=np.array([first]), transit=D)
    assert simulated.requests == run.requests
    assert simulated.wasted == run.wasted
    assert simulated.deliveries == run.deliveries
    assert simulated.mean_delay == pytest.approx(run.mean_delay, abs=1e-6)


@pytest.mark.parametrize("rate", [0.05, 1.0, 8.0])
def test_long_polling_equals_virtual_time(rate: float) -> None:
    """Held requests, empty answers and delays equal the real code's, request for request."""
    hold = 5.0
    trial = Trial(
        functools.partial(long_polling.create_app, jitter=0.0),
        functools.partial(long_poll, wait=hold),
        Schedule.poisson(rate, 100 / rate, seed=3),
    )
    run = trial.virtual(delay=D)
    first = run.all_requests[0].start + 3 * D  # it had to connect
    last = run.published[-1].at + 1e-6
    simulated = simulate.polling(
        moments(run), last, simulate.every(0.0), starts=np.array([first]), transit=D, hold=hold
    )
    assert simulated.deliveries == run.deliveries
    assert simulated.mean_delay == pytest.approx(run.mean_delay, abs=1e-6)
    asked = [request for request in run.all_requests[1:] if request.start + D < last]
    assert simulated.requests == 1 + len(asked)


def test_long_polling_without_a_cursor_loses_what_the_real_code_loses() -> None:
    """Without a cursor the same updates are lost as by the real code, and as many as the law says, within 4 sigma."""
    schedule = Schedule.poisson(5.0, 20, seed=3)
    run = Trial(forgetful, long_poll, schedule).virtual(delay=0.05)
    first = run.all_requests[0].start + 3 * 0.05
    simulated = simulate.polling(
        moments(run), run.end, simulate.every(0.0), starts=np.array([first]), transit=0.05, hold=30, cursor=False
    )
    assert simulated.deliveries == run.deliveries
    rate, gap, seconds = 5.0, 0.1, 4000.0
    many = simulate.polling(
        simulate.poisson(rate, seconds), seconds, simulate.every(0.0), transit=gap / 2, hold=30, cursor=False
    )
    share = many.lost / (many.lost + many.deliveries)
    missed = rate * gap
    error = math.sqrt(missed / many.deliveries) / (1 + missed) ** 2
    assert share == pytest.approx(theory.long_polling_lost_share(rate, gap), abs=4 * error)


def test_many_clients_obey_the_laws() -> None:
    """A hundred thousand pollers for an hour make as many requests, and wait as long, as the law says."""
    seconds, interval, rate, clients = 3600.0, 60.0, 1 / 60, 100_000
    times = simulate.poisson(rate, seconds)
    result = simulate.polling(times, seconds, simulate.every(interval), clients=clients)
    assert result.requests == theory.polling_requests(clients, seconds, interval)
    # the clients' grid is even, so each update's mean over them is T/2 to a hundred-thousandth of T
    settled = result.deliveries / clients / len(times)
    assert settled > 0.9
    assert result.mean_delay == pytest.approx(theory.polling_mean_delay(interval), abs=0.02 * interval)
    assert result.delay(1.0) <= theory.polling_max_delay(interval) * (1 + 1 / simulate.BINS) + 1e-6


@pytest.mark.parametrize("jitter", [0.1, 0.9])
def test_the_price_of_jitter(jitter: float) -> None:
    """Jitter makes the mean wait longer by 1 + j²/3, within 4 sigma."""
    seconds, interval = 20_000.0, 5.0
    times = simulate.poisson(1.0, seconds)
    result = simulate.polling(times, seconds, simulate.every(interval, jitter), clients=200)
    law = interval / 2 * theory.jitter_delay_factor(jitter)
    # independent intervals: clients times periods; a wait's deviation is below 0.6 T whatever the jitter
    error = 0.6 * interval / math.sqrt(200 * seconds / interval)
    assert result.mean_delay == pytest.approx(law, abs=4 * error + interval * 5 / seconds)


def test_backing_off_wins_on_bursts_that_are_large_and_last_and_loses_on_all_others() -> None:
    """At equal requests an adaptive poller is later than a fixed one, unless bursts outlast its slowest pause."""
    seconds, rate = 50_000.0, 0.05
    for times, adaptive_is_better in (
        (simulate.poisson(rate, seconds), False),
        (simulate.bursts(rate, 5, seconds, within=60.0), False),  # few: over before they are noticed
        (simulate.bursts(rate, 40, seconds, within=5.0), False),  # short: one poll brings all of it
        (simulate.bursts(rate, 40, seconds, within=60.0), True),
    ):
        adaptive = simulate.polling(times, seconds, simulate.adaptive(2.0, 60.0), clients=20)
        interval = 20 * seconds / adaptive.requests
        fixed = simulate.polling(times, seconds, simulate.every(interval), clients=20)
        assert fixed.requests == pytest.approx(adaptive.requests, rel=0.01)
        assert (adaptive.mean_delay < fixed.mean_delay) is adaptive_is_better


def test_a_log_without_updates_is_all_waste() -> None:
    """Without news every request is wasted, and there is no delay to speak of."""
    result = simulate.polling(np.array([]), 100.0, simulate.every(5.0), clients=3)
    assert (result.requests, result.wasted, result.deliveries) == (60, 60, 0)
    assert math.isnan(result.mean_delay)
