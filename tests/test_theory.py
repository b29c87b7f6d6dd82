"""Every law against a simulation that knows nothing of the formula, within four standard errors of its sample."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lab import theory

T, D, RATE = 2.0, 0.05, 0.7  # interval (s), transit (s), updates per second


@pytest.fixture(scope="module")
def updates() -> NDArray[np.float64]:
    """The moments (s) of 200 000 Poisson updates."""
    return np.random.default_rng(1).exponential(1 / RATE, 200_000).cumsum()


@pytest.fixture(scope="module")
def delays(updates: NDArray[np.float64]) -> NDArray[np.float64]:
    """How late each is when the server is asked at 0, T, 2T, ... and the answer takes one transit."""
    return np.ceil(updates / T) * T - updates + D


def standard_error(sample: NDArray[np.float64]) -> float:
    return float(sample.std() / math.sqrt(len(sample)))


def test_mean_delay(delays: NDArray[np.float64]) -> None:
    """The mean delay of polling is half an interval and one transit."""
    assert abs(delays.mean() - theory.polling_mean_delay(T, D)) < 4 * standard_error(delays)


def test_delay_sd(delays: NDArray[np.float64]) -> None:
    """The delay's standard deviation is that of a uniform wait."""
    squares = (delays - delays.mean()) ** 2
    assert abs(squares.mean() - theory.polling_delay_sd(T) ** 2) < 4 * standard_error(squares)


@pytest.mark.parametrize("q", [0.05, 0.5, 0.95])
def test_delay_quantiles(delays: NDArray[np.float64], q: float) -> None:
    """A share q of the updates is no later than the q-quantile."""
    within = (delays <= theory.polling_delay_quantile(q, T, D)).mean()
    assert abs(within - q) < 4 * math.sqrt(q * (1 - q) / len(delays))


def test_max_delay(delays: NDArray[np.float64]) -> None:
    """No delay exceeds an interval and a transit, and the worst comes close to it."""
    assert 0.999 * theory.polling_max_delay(T, D) < delays.max() <= theory.polling_max_delay(T, D) + 1e-9


def test_delay_cdf(delays: NDArray[np.float64]) -> None:
    """The predicted distribution passes a Kolmogorov-Smirnov test, and is 0 before and 1 after its range."""
    measured = (np.arange(len(delays)) + 1) / len(delays)
    predicted = theory.polling_delay_cdf(np.sort(delays), T, D)
    assert np.abs(measured - predicted).max() < 1.95 / math.sqrt(len(delays))  # the 0.1 % point
    assert theory.polling_delay_cdf(D / 2, T, D) == 0
    assert theory.polling_delay_cdf(T + 2 * D, T, D) == 1


def test_requests() -> None:
    """Twenty clients that poll every half second for a minute make 2400 requests."""
    assert theory.polling_requests(20, 60, 0.5) == 2400


@pytest.mark.parametrize(
    ("seconds", "interval", "offset", "polls"),
    [(10, 0.5, 0.0, 20), (10, 0.5, 0.25, 20), (0.3, 0.1, 0.0, 3), (10, 3, 0, 4), (10, 3, 1.5, 3), (1, 2, 1.5, 0)],
)
def test_polls_on_grid(seconds: float, interval: float, offset: float, polls: int) -> None:
    """The count on a grid is exact: a poll at the very end is not in it, and decimals do not drift."""
    assert theory.polls_on_grid(seconds, interval, offset) == polls


@pytest.mark.parametrize("x", [0.1, 1.0, 5.0])
def test_wasted_share(x: float) -> None:
    """A share e^-x of the polls finds no update."""
    news = np.random.default_rng(2).poisson(x, 100_000)
    expected = theory.polling_wasted_share(x)
    assert abs((news == 0).mean() - expected) < 4 * math.sqrt(expected * (1 - expected) / len(news))


@pytest.mark.parametrize("x", [0.1, 1.0, 5.0])
def test_skipped_share(x: float) -> None:
    """Who polls for the latest state misses all versions of an interval but the last."""
    news = np.random.default_rng(3).poisson(x, 200_000)
    expected = theory.polling_skipped_share(x)
    residual = np.maximum(news - 1, 0) - expected * news  # mean 0, whatever the two are together
    assert abs(residual.mean()) < 4 * standard_error(residual)


def test_freshness_and_staleness(updates: NDArray[np.float64]) -> None:
    """Looked at at random moments, the copy is as often true, and as long out of date, as predicted."""
    interval, transit = 1.5, 0.2
    moments = np.random.default_rng(4).uniform(10, updates[-1] - 10, 100_000)
    taken = np.floor((moments - transit) / interval) * interval  # when the server was as the copy is
    first_missed = updates[np.searchsorted(updates, taken, side="right")]
    stale = np.maximum(moments - first_missed, 0.0)
    fresh = theory.polling_fresh_share(RATE, interval, transit)
    assert abs((stale == 0).mean() - fresh) < 4 * math.sqrt(fresh * (1 - fresh) / len(moments))
    assert abs(stale.mean() - theory.polling_staleness(RATE, interval, transit)) < 4 * standard_error(stale)
    ages = moments - taken
    assert abs(ages.mean() - theory.polling_copy_age(interval, transit)) < 4 * standard_error(ages)


def test_a_file_that_never_changes_is_never_stale() -> None:
    """At rate 0 every copy is fresh."""
    assert theory.polling_fresh_share(0.0, T, D) == 1
    assert theory.polling_staleness(0.0, T, D) == 0


def test_period_of_a_client_that_sleeps_after_the_answer() -> None:
    """Sleeping T after each answer polls every T and a round trip, and the server's time."""
    moment, polls = 0.0, []
    for _ in range(5):
        polls.append(moment)
        moment += D + 0.01 + D + T  # request, service, answer, sleep
    assert np.diff(polls) == pytest.approx(theory.polling_period(T, D, 0.01))


def test_best_interval_is_where_the_cost_is_least() -> None:
    """No other interval is cheaper than the square-root law's, and there requests cost what waiting does."""
    request, delay = 0.003, 0.02
    best = theory.polling_best_interval(RATE, request, delay)
    least = theory.polling_cost(best, RATE, request, delay)
    around = np.linspace(0.2 * best, 5 * best, 10_001)
    assert (theory.polling_cost(around, RATE, request, delay) >= least * (1 - 1e-12)).all()
    assert request / best == pytest.approx(delay * RATE * best / 2)
    relative = theory.polling_cost(around, RATE, request, delay) / least
    assert relative == pytest.approx(theory.polling_cost_of_missing(around / best))
    assert theory.polling_best_interval(4 * RATE, request, delay) == pytest.approx(best / 2)


def test_price_of_jitter() -> None:
    """Intervals drawn from T(1 ± j) make the mean wait longer by j²/3."""
    rng = np.random.default_rng(5)
    jitter = 0.5
    polls = (T * rng.uniform(1 - jitter, 1 + jitter, 200_000)).cumsum()
    asked = rng.uniform(0, polls[-1], 200_000)
    waits = polls[np.searchsorted(polls, asked)] - asked
    assert abs(waits.mean() - T / 2 * theory.jitter_delay_factor(jitter)) < 4 * standard_error(waits)
    assert theory.jitter_delay_factor(0.1) == pytest.approx(1.0033, abs=1e-4)


@pytest.mark.parametrize(("every", "phase", "places"), [(2.0, 0.3, 1), (3.0, 0.3, 2), (0.8, 0.1, 5), (2.02, 0.0, 100)])
def test_aliasing(every: float, phase: float, places: int) -> None:
    """Periodic updates are late by as many different delays as they have places in the interval."""
    moments = np.array([float(Fraction(str(phase)) + n * Fraction(str(every))) for n in range(1000)])
    seen = np.unique(np.round((np.ceil(np.round(moments / T, 9)) * T - moments + D), 6))
    predicted = theory.aliased_delays(T, every, phase, D)
    assert len(predicted) == places
    assert predicted == pytest.approx(seen, abs=1e-6)


@pytest.mark.parametrize("every", [2.02, 1.98, 4.1, 6.04])
def test_beat(every: float) -> None:
    """After one beat the delay is back where it was, having moved once through the interval."""
    beat = theory.beat_period(T, every)
    updates = round(beat / every)
    assert updates * every == pytest.approx(beat)
    shift = (updates * every) % T
    assert min(shift, T - shift) == pytest.approx(0, abs=1e-9)
    assert all(1e-9 < (n * every) % T < T - 1e-9 for n in range(1, updates))


def test_no_beat_without_drift() -> None:
    """Updates at a multiple of the interval keep their delay for ever."""
    assert theory.beat_period(T, 3 * T) == math.inf


def test_numbers_give_numbers_and_arrays_arrays() -> None:
    """A law prints as a plain number in a notebook, and sweeps over an array."""
    laws: list[Callable[[Any], Any]] = [
        theory.polling_wasted_share,
        theory.polling_skipped_share,
        lambda x: theory.polling_delay_cdf(x, T),
        lambda x: theory.polling_best_interval(x, 1.0, 1.0),
        lambda x: theory.polling_staleness(RATE, x),
    ]
    for law in laws:
        assert type(law(0.5)) is float
        assert law(np.array([0.5, 1.0]))[0] == pytest.approx(law(0.5))
    assert theory.polling_skipped_share(0.0) == 0
    assert theory.polling_skipped_share(np.array([0.0, 1e-9])) == pytest.approx([0, 5e-10], rel=1e-6)


@pytest.mark.parametrize("rate", [0.5, 3.0, 10.0, 60.0])
@pytest.mark.parametrize("hold", [0.5, 30.0])
def test_delay_quantiles_of_long_polling(rate: float, hold: float) -> None:
    """An update waits for the end of the gap that it falls into, and not at all while a request is held."""
    gap, transit = 0.1, 0.05
    at = np.random.default_rng(4).exponential(1 / rate, 60_000).cumsum()
    delays, here, update = list[float](), 0.0, 0
    while update < len(at):  # `here`: when a request arrives at the server
        upto = int(np.searchsorted(at, here, side="right"))
        if upto > update:
            delays += list(here - at[update:upto] + transit)
            update, here = upto, here + gap
        elif at[update] < here + hold:
            delays.append(transit)
            here, update = at[update] + gap, update + 1
        else:
            here += hold + gap
    for q in (0.2, 0.5, 0.95):
        law = theory.long_polling_delay_quantile(q, rate, gap, hold, transit)
        within = np.mean(np.array(delays) <= law + 1e-9)
        assert within > q - 4 * math.sqrt(q * (1 - q) / len(delays))
        assert np.mean(np.array(delays) <= law - 0.002) < q + 4 * math.sqrt(q * (1 - q) / len(delays))


def test_requests_of_a_long_poll_without_news() -> None:
    """Without any update a long poll ends with its hold, and the law says so without dividing by the rate."""
    assert theory.long_polling_request_rate(0.0, gap=0.1, hold=30.0) == pytest.approx(1 / 30.1)


UNITS = theory.Units(
    request=theory.Resources(cpu=1e-4, up=100, down=130),
    delivery=theory.Resources(cpu=2e-6, down=180),
    held=theory.Resources(memory=10_000),
    message=theory.Resources(cpu=1e-4, up=100, down=130),
)
MONEY = theory.Prices(cpu_hour=3.6e3, gib_hour=3.6e3 * 2**30, gb_up=1e9, gb_down=2e9, connection_hour=3.6e3)


def test_cost_adds_up_what_work_takes() -> None:
    """A bill is every unit times how often it happens, and the price of every resource in it."""
    bill = theory.Work(requests=2, deliveries=3, held=4, messages=1).cost(UNITS)
    assert bill == theory.Resources(cpu=pytest.approx(3.06e-4), up=300, down=930, memory=40_000, connections=4)
    assert bill.price(MONEY) == pytest.approx(3.06e-4 + 300 + 2 * 930 + 40_000 + 4)
    assert theory.Resources().price(MONEY) == 0


@pytest.mark.parametrize("prices", [{"cpu_hour": -1.0}, {"gb_up": math.nan}, {"gib_hour": math.inf}])
def test_a_price_is_a_number_from_0_up(prices: dict[str, float]) -> None:
    """What cannot be a price is refused."""
    with pytest.raises(ValueError, match=r"^a price is a number from 0 up$"):
        theory.Prices(**prices)


def test_work_of_each_model() -> None:
    """A poll's work follows its clock, a long poll's the law of its requests, and a stream's only the updates."""
    assert theory.work("short polling", 2.0, interval=5.0) == theory.Work(0.2, 2.0, 1.0, 0.0)
    assert theory.work("short polling", 2.0, interval=150.0).held == 0.5
    assert theory.work("long polling", 2.0, rtt=0.1, hold=20.0, upstream=0.5) == theory.Work(
        theory.long_polling_request_rate(2.0, 0.1, 20.0, jitter=0.1), 2.0, 1.0, 0.5
    )
    for model in ("WebSocket", "SSE"):
        assert theory.work(model, 2.0, upstream=0.5) == theory.Work(0.0, 2.0, 1.0, 0.5)


def test_work_of_a_swept_curve() -> None:
    """An array of rates gives an array of each kind of work, and of costs."""
    rates = np.array([0.0, 1.0, 2.0])
    for model in theory.MODELS:
        done = theory.work(model, rates, interval=5.0, rtt=0.1)
        assert np.shape(done.requests) == np.shape(done.held) == np.shape(done.deliveries) == (3,)
        assert np.shape(done.cost(UNITS).price(theory.Prices())) == (3,)


def test_freshness_sets_the_interval() -> None:
    """The interval for a budget puts the 95 % quantile of the delay exactly on the budget."""
    assert theory.polling_delay_quantile(0.95, theory.interval_for(3.0, 0.05), 0.05) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("model", "least"), [("short polling", 0.145), ("long polling", 0.0500001), ("WebSocket", 0.05), ("SSE", 0.05)]
)
def test_who_meets_a_budget(model: str, least: float) -> None:
    """A stream needs one transit, so does a long poll when news is rare; polling cannot ask twice in a round trip."""
    assert not theory.meets(model, 0.99 * least, 0.001, 0.1)
    assert theory.meets(model, 1.01 * least, 0.001, 0.1)


def test_a_long_poll_on_dense_news_is_up_to_three_transits_late() -> None:
    """When every update falls into a gap, 95 % of them come within d + 0.95 RTT, and not earlier."""
    assert not theory.meets("long polling", 0.14, 1000.0, 0.1)
    assert theory.meets("long polling", 0.146, 1000.0, 0.1)


def test_where_a_poll_costs_what_pushing_costs() -> None:
    """At the flip both cost the same; below it the push is cheaper, above it the poll; dearer deliveries end that."""
    request, inside, pushed, kept, interval = 10.0, 1.0, 3.0, -2.0, 4.0
    flip = theory.poll_or_push(request, inside, pushed, kept)

    def dearer(x: float) -> float:
        return request / interval + kept / interval + (inside - pushed) * x / interval

    assert dearer(flip) == pytest.approx(0)
    assert dearer(flip / 2) > 0 > dearer(2 * flip)
    assert theory.poll_or_push(request, 3.0, 3.0) == math.inf
    assert theory.poll_or_push(1.0, 1.0, 3.0, kept=-5.0) == 0


def test_where_a_long_poll_costs_what_pushing_costs() -> None:
    """The root solves the equation of costs, and for dense news it is near the price of a request in deliveries."""
    flip = theory.long_poll_or_push(20.0, 1.0, 3.0, rtt=0.1)
    rate = flip / 0.1
    requests = theory.long_polling_request_rate(rate, 0.1, theory.HOLD)
    assert 20 * requests + 1.0 * rate == pytest.approx(3.0 * rate)
    assert flip == pytest.approx(20 / (3 - 1), rel=0.01)
    assert theory.long_poll_or_push(20.0, 3.0, 3.0, rtt=0.1) == math.inf
    assert theory.long_poll_or_push(20.0, 1.0, 3.0, rtt=0.1, kept=-1e6) == 0


def test_where_sse_costs_what_a_websocket_costs() -> None:
    """At the flip the messages up have used up what SSE saves on every delivery."""
    flip = theory.stream_or_socket(delivery=10.0, message=100.0, socket_delivery=13.0, socket_message=40.0, kept=3.0)
    assert 10 + flip * 100 == pytest.approx(13 + 3 + flip * 40)
    assert theory.stream_or_socket(10.0, 40.0, 13.0, 40.0) == math.inf
    assert theory.stream_or_socket(14.0, 100.0, 13.0, 40.0) == 0


@pytest.mark.parametrize("wanted", [0.1, 0.5, 1.0])
def test_where_announcing_costs_what_sending_along_costs(wanted: float) -> None:
    """At that size both are the same number of bytes, even if everybody fetches: base64 costs a third."""
    size = theory.notify_or_inline(300.0, wanted)
    assert size * 4 / 3 == pytest.approx(wanted * (300 + size))


def test_announcing_never_pays_when_more_is_fetched_than_sent() -> None:
    """Sent along without base64 and wanted by everybody, a file is cheapest inline, whatever its size."""
    assert theory.notify_or_inline(300.0, 1.0, inflation=1.0) == math.inf


def test_crossing() -> None:
    """A crossing is found to full precision; without one the answer says on which side it would lie."""
    assert theory.crossing(lambda x: 7 - x, 1e-3, 1e6) == pytest.approx(7)
    assert theory.crossing(lambda x: -x, 1.0, 2.0) == 0
    assert theory.crossing(lambda x: 1.0, 1.0, 2.0) == math.inf
