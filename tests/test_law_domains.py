"""The laws over wide ranges of parameters, each at its own error, against simulations that share no code with them.

random T, λ, H, d ─▶ a client's requests, one by one, or in numpy ─▶ the mean of independent cycles, and its error
                  └▶ the law                                      ─▶ how many of these errors the two lie apart

What is asserted: no case lies more than 5 errors off, and the mean square of all is that of a right law (about 1).
"""

import functools
import itertools
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytest

from lab import theory
from lab.theory import cost
from lab.theory.long_polling import within_a_batch
from servers.feed import Feed

CASES = 40
CYCLES = 2500  # of one case


class Case(NamedTuple):
    """Seconds, and updates per second."""

    rate: float
    interval: float
    hold: float
    transit: float
    pause: float
    jitter: float
    seed: int


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


@functools.cache
def cases() -> list[Case]:
    rng = random.Random(20)
    drawn = (
        Case(
            rate=log_uniform(rng, 1e-3, 1e3),
            interval=log_uniform(rng, 0.02, 600),
            hold=log_uniform(rng, 0.5, 120),
            transit=log_uniform(rng, 1e-3, 0.3),
            pause=rng.choice((0.0, log_uniform(rng, 0.01, 5))),
            jitter=rng.choice((0.0, 0.1, 0.5)),
            seed=number,
        )
        for number in itertools.count()
    )
    return list(itertools.islice((case for case in drawn if fits(case)), CASES))


def fits(case: Case) -> bool:
    """Whether an answer can carry what comes between two of them, of a long poll and of a poll."""
    return case.rate * max(2 * case.transit + case.pause, case.interval) < 300


def apart(law: float, sample: Sequence[float], rare: float = 0.0) -> float:
    """How many standard errors of the sample's mean the law lies off; 0 if there is no error and no difference.

    `rare` is the variance that each of the sample has by the law: of what is so rare that it may not be in the sample,
    the sample itself does not say how much it varies.
    """
    error = math.sqrt(max(statistics.variance(sample), rare) / len(sample))
    difference = statistics.fmean(sample) - law
    return 0.0 if math.isclose(difference, 0.0, abs_tol=1e-9 * abs(law) + 1e-12) else difference / error


def ratio_apart(law: float, over: Sequence[float], under: Sequence[float], rare: float = 0.0) -> float:
    """The same for a ratio of two means: its residuals have the mean 0, whatever the two are together."""
    return apart(0.0, [a - law * b for a, b in zip(over, under, strict=True)], rare)


def holds_for(scores: Iterator[float]) -> None:
    """Fail unless the scores are those of a right law."""
    found = list(scores)
    assert len(found) == CASES
    assert max(map(abs, found)) < 5
    assert math.sqrt(statistics.fmean(score**2 for score in found)) < 1.6


class Cycle(NamedTuple):
    """From one request's arrival at the server to the next."""

    period: float
    delays: float  # their sum (s)
    late: int  # updates later than the law's quantile
    updates: int
    lost: int


def long_polls(case: Case, *, cursor: bool = True, late: float = math.inf) -> list[Cycle]:
    """A client of a server that holds, request by request, update by update; answers carry any number of updates."""
    rng = random.Random(case.seed)
    coming = rng.expovariate(case.rate)  # the next update
    waiting: list[float] = []
    asked, cycles = 0.0, list[Cycle]()
    for _ in range(CYCLES):
        answered = asked
        if not waiting:
            hold = case.hold * rng.uniform(1 - case.jitter, 1)
            if coming < asked + hold:
                answered = coming
                waiting.append(coming)
                coming += rng.expovariate(case.rate)
            else:
                answered = asked + hold
        delays = [answered - at + case.transit for at in waiting]
        pause = rng.uniform(0, case.pause)
        following = answered + 2 * case.transit + pause
        waiting = []
        while coming < following:
            waiting.append(coming)
            coming += rng.expovariate(case.rate)
        missed = 0 if cursor else len(waiting)
        if not cursor:
            waiting = []
        cycles.append(Cycle(following - asked, sum(delays), sum(delay > late for delay in delays), len(delays), missed))
        asked = following
    return cycles


def test_the_rate_of_long_polls_whatever_the_parameters() -> None:
    """Requests per second follow the law for every rate, hold, jitter of the hold, pause and round trip."""

    def scores() -> Iterator[float]:
        for case in cases():
            periods = [cycle.period for cycle in long_polls(case)]
            law = theory.long_polling_request_rate(
                case.rate, 2 * case.transit, case.hold, case.pause, jitter=case.jitter
            )
            yield apart(1 / law, periods)

    holds_for(scores())


def test_the_mean_delay_of_long_polling_whatever_the_parameters() -> None:
    """The mean delay follows the law for every rate, hold, jitter, pause and round trip."""

    def scores() -> Iterator[float]:
        for case in cases():
            cycles = long_polls(case)
            law = theory.long_polling_mean_delay(case.rate, case.transit, case.hold, case.pause, jitter=case.jitter)
            longest = 2 * case.transit + case.pause
            rare = case.rate * longest * longest**2  # a cycle's updates that fall into a gap, and wait for its rest
            yield ratio_apart(law, [cycle.delays for cycle in cycles], [cycle.updates for cycle in cycles], rare)

    holds_for(scores())


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_the_quantiles_of_long_polling_whatever_the_parameters(q: float) -> None:
    """A share 1 - q of the updates is later than the q-quantile, where there is one above the transit itself."""

    def scores() -> Iterator[float]:
        for case in cases():
            steady = case._replace(pause=0.0)
            law = theory.long_polling_delay_quantile(
                q, case.rate, 2 * case.transit, case.hold, case.transit, jitter=case.jitter
            )
            cycles = long_polls(steady, late=law + 1e-12)
            if law <= case.transit + 1e-9:  # more than a share q is not late at all
                late, updates = sum(cycle.late for cycle in cycles), sum(cycle.updates for cycle in cycles)
                assert late <= (1 - q) * updates + 5 * math.sqrt(updates)
                yield 1.0
            else:
                rare = (1 - q) * statistics.fmean(cycle.updates for cycle in cycles)
                yield ratio_apart(1 - q, [cycle.late for cycle in cycles], [cycle.updates for cycle in cycles], rare)

    holds_for(scores())


def test_what_is_lost_without_a_cursor_whatever_the_parameters() -> None:
    """Without a cursor λG/(λG + 1 - e^-λH) of the updates are lost, for holds that end without news, too."""

    def scores() -> Iterator[float]:
        for case in cases():
            steady = case._replace(pause=0.0, jitter=0.0)
            cycles = long_polls(steady, cursor=False)
            law = theory.long_polling_lost_share(case.rate, 2 * case.transit, case.hold)
            all_of_them = [cycle.lost + cycle.updates for cycle in cycles]
            yield ratio_apart(law, [cycle.lost for cycle in cycles], all_of_them, law * statistics.fmean(all_of_them))

    holds_for(scores())


def test_the_limits_of_what_is_lost_without_a_cursor() -> None:
    """Rare news is lost as often as it falls into a gap, G/(G + H); news that always ends the hold by λG/(1 + λG)."""
    assert theory.long_polling_lost_share(1e-9, 0.1, 30.0) == pytest.approx(0.1 / 30.1)
    assert theory.long_polling_lost_share(0.0, 0.1, 30.0) == pytest.approx(0.1 / 30.1)
    assert theory.long_polling_lost_share(10.0, 0.1, 30.0) == pytest.approx(0.5)
    assert theory.long_polling_lost_share(10.0, 0.1) == 0.5


def test_the_deviation_of_the_period_whatever_the_parameters() -> None:
    """The period's deviation is the law's, for jittered holds, too."""
    for case in cases():
        steady = case._replace(pause=0.0)
        periods = [cycle.period for cycle in long_polls(steady)]
        law = theory.long_polling_period_sd(case.rate, 2 * case.transit, case.hold, case.jitter)
        squares = [(period - statistics.fmean(periods)) ** 2 for period in periods]
        seldom = case.rate * case.hold * case.hold**4  # a hold that ends with news, where few do
        error = math.sqrt(max(statistics.variance(squares), min(seldom, case.hold**4)) / len(squares))
        assert abs(statistics.fmean(squares) - law**2) <= 5 * error


def test_a_batch_is_the_end_of_the_laws() -> None:
    """Where an answer cannot carry what comes between two of them, the laws of the delay refuse to say anything."""
    for law in (
        lambda: theory.long_polling_mean_delay(4800.0, 0.05, 30.0),
        lambda: theory.long_polling_delay_quantile(0.95, 4800.0, 0.1, 30.0, 0.05),
        lambda: within_a_batch(np.array([1.0, 480.0])),
    ):
        with pytest.raises(
            ValueError, match=r"^with 480 updates between two answers they do not fit into one \(500\)$"
        ):
            law()
    assert theory.long_polling_mean_delay(3900.0, 0.05, 30.0) == pytest.approx(0.1, rel=0.01)


def polled(case: Case) -> tuple[list[float], list[float]]:
    """The moments at which a client on a grid is answered for, and what each update waits for, its way included."""
    rng = np.random.default_rng(case.seed)
    number = 20_000
    updates = np.cumsum(rng.exponential(1 / case.rate, number))
    due, free, looks = 0.0, 0.0, list[float]()
    while not looks or looks[-1] < updates[-1]:
        sent = max(due, free)  # not before the answer to the last is there
        looks.append(sent + case.transit)
        free = sent + 2 * case.transit
        due += case.interval
        if len(looks) > 200_000:
            break
    seen = updates[updates < looks[-1]]
    waits = np.asarray(looks)[np.searchsorted(looks, seen, "left")] - seen + case.transit
    return looks, [float(wait) for wait in waits]


def test_polling_below_a_round_trip_is_polling_at_the_round_trip() -> None:
    """A client on a grid asks every T, or every RTT if that is longer, and the delays follow from that."""

    def scores(measured: Callable[[Case, list[float], list[float]], float]) -> Iterator[float]:
        for case in cases():
            looks, waits = polled(case)
            yield measured(case, looks, waits)

    for case in cases():
        looks, _ = polled(case)
        rate = theory.polling_requests(1, 1.0, case.interval, case.transit)
        assert (len(looks) - 1) / (looks[-1] - looks[0]) == pytest.approx(rate, rel=1.5 / len(looks))

    def blocks(waits: list[float], size: int) -> list[float]:
        return [statistics.fmean(waits[at : at + size]) for at in range(0, len(waits) - size + 1, size)]

    def mean(case: Case, looks: list[float], waits: list[float]) -> float:
        law = theory.polling_mean_delay(case.interval, case.transit)
        size = max(1, min(len(waits) // 30, int(5 * case.rate * max(case.interval, 2 * case.transit)) + 1))
        return apart(law, blocks(waits, size))  # what falls into one interval is not independent

    holds_for(scores(mean))


def test_the_worst_delay_of_polling_whatever_the_parameters() -> None:
    """No polled update is later than the law's worst, and none earlier than one transit."""
    for case in cases():
        _, waits = polled(case)
        assert case.transit - 1e-9 <= min(waits)
        assert max(waits) <= theory.polling_max_delay(case.interval, case.transit) + 1e-6


def test_an_idle_connection_costs_a_handshake() -> None:
    """A client that sleeps longer than it keeps a connection asks every T + 2 RTT, and else every T + RTT."""
    assert theory.polling_period(5.0, 0.1) == pytest.approx(5.2)
    assert theory.polling_period(6.0, 0.1) == pytest.approx(6.4)
    assert theory.polling_period(6.0, 0.1, keep_alive=75.0) == pytest.approx(6.2)
    assert theory.polling_period(np.array([1.0, 60.0]), 0.1) == pytest.approx([1.2, 60.4])


# Where one choice becomes another, against the costs written out, at every place


def poisson_requests(mean: float) -> float:
    """1 + E[N // 500]: the requests that bring N Poisson updates, 500 at a time, until one is not full."""
    n = np.arange(max(0, int(mean - 12 * math.sqrt(mean) - 20)), int(mean + 12 * math.sqrt(mean) + 40))
    logs = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n[-1] + 1)))))
    return float(1 + (np.exp(n * math.log(mean) - mean - logs[n]) * (n // 500)).sum())


def test_a_full_answer_is_asked_for_again_at_once() -> None:
    """Short polling makes the requests that a client makes which goes on until an answer is not full."""
    rng = np.random.default_rng(5)
    for mean in (1.0, 300.0, 440.0, 500.0, 560.0, 1010.0, 3333.0, 9400.0):
        drawn = 1 + rng.poisson(mean, 40_000) // 500
        law = theory.polling_answers(mean)
        assert abs(law - drawn.mean()) < 5 * drawn.std() / 200 + 1e-9 + 1e-2 * (law - 1)
        assert law == pytest.approx(poisson_requests(mean), rel=3e-3)
        assert theory.work("short polling", mean / 7, interval=7.0).requests == law / 7


def test_more_than_the_history_keeps_is_the_end_of_polling() -> None:
    """What would be lost is refused; an interval for a budget is short enough; without news it is the budget's."""
    assert Feed().history == theory.HISTORY
    with pytest.raises(ValueError, match=r"^with 11000 updates between two polls some are lost: 10,000 are kept$"):
        theory.work("short polling", 1100.0, interval=10.0)
    with pytest.raises(ValueError, match=r"^with 600 updates between two answers they do not fit into one \(500\)$"):
        theory.work("long polling", 6000.0, rtt=0.1)
    with pytest.raises(ValueError, match=r"^short polling takes an interval: a number above 0$"):
        theory.work("short polling", 1.0)
    interval = theory.interval_for(600.0, 0.0, 100.0)
    assert interval * 100 + 5 * math.sqrt(interval * 100) == pytest.approx(10_000)
    assert theory.interval_for(95.0, 0.0, 90.0) == theory.interval_for(95.0, 0.0) == 100
    for rate in np.geomspace(20, 1e6, 500).tolist():  # whatever the product of the two is rounded to
        assert theory.work("short polling", rate, interval=theory.interval_for(1e4, 0.0, rate)).requests > 0
    assert not theory.meets("long polling", 60.0, 6000.0, 0.1)
    assert not theory.meets("short polling", 600.0, 1e6, 0.1)


def test_a_poll_is_cheaper_just_above_the_flip_whatever_the_parameters() -> None:
    """Intervals to 10 minutes, connections that close after 75 s, full answers: costs cross there, for good."""
    rng = random.Random(11)
    places = [float(x) for x in np.geomspace(0.01, 9500, 150)]
    requests = {x: poisson_requests(x) for x in places}
    found = {"0": 0, "inf": 0, "below a batch": 0, "above": 0, "closed": 0}
    for _ in range(400):
        interval = log_uniform(rng, 0.5, 600)
        request, inside, pushed = log_uniform(rng, 1, 5000), log_uniform(rng, 0.1, 10), log_uniform(rng, 0.1, 10)
        poll_held, push_held = (log_uniform(rng, 0.01, 100) * rng.choice((0, 1)) for _ in range(2))

        def push_is_dearer(x: float, asked: float) -> float:
            poll = request * asked + inside * x + poll_held * min(interval, 75)  # noqa: B023  # called in this round
            return pushed * x + push_held * interval - poll  # noqa: B023  # as above

        kept = theory.poll_kept(interval, poll_held, push_held)
        flip = theory.poll_or_push(request, inside, pushed, kept)
        if math.isinf(flip):
            assert push_is_dearer(places[-1], requests[places[-1]]) < 0 or pushed < inside
        else:
            assert all(push_is_dearer(x, requests[x]) > 0 for x in places if x > 1.01 * flip)
            if flip:
                assert push_is_dearer(0.995 * flip, poisson_requests(0.995 * flip)) < 0
        found["0" if flip == 0 else "inf" if math.isinf(flip) else "below a batch" if flip < 400 else "above"] += 1
        found["closed"] += interval > 75
    assert min(found.values()) >= 10, found


def test_a_long_poll_is_cheaper_between_its_crossings_whatever_the_parameters() -> None:
    """One interval, two, none or all: at every place the cheaper is the one that the law names."""
    rng = random.Random(12)
    places = np.concatenate(([0.0], np.geomspace(1e-7, 399, 3001)))
    found = {0: 0, 1: 0, 2: 0}
    for _ in range(1500):
        rtt, hold = log_uniform(rng, 0.002, 1), log_uniform(rng, 1, 120)
        request, inside, saved = log_uniform(rng, 0.1, 100), rng.uniform(0, 5), log_uniform(rng, 0.01, 100)
        kept = rng.choice((0.0, rng.gauss(0, 1), -rng.uniform(0.5, 2) / (rtt + hold))) * request
        prices: dict[str, float] = {"rtt": rtt, "hold": hold, "kept": kept}
        cheaper = theory.long_poll_cheaper(request, inside, inside + saved, **prices)
        rate = places[1:] / rtt
        shorter, width = np.exp(-0.9 * rate * hold), 0.1 * rate * hold  # a hold is drawn from the last tenth
        over = shorter * -np.expm1(-width) / width
        cycle = rtt + np.exp(-rate * rtt) * (1 - over) / rate
        dearer = np.concatenate(([request / (rtt + 0.95 * hold) + kept], request / cycle + kept - saved * rate))
        named = np.any([(low <= places) & (places < high) for low, high in cheaper], axis=0) if cheaper else places < 0
        wrong = np.flatnonzero(named != (dearer < 0))
        ends = np.array([end for interval in cheaper for end in interval])
        assert all(np.any(np.abs(places[at] - ends) < 0.02 * places[at]) for at in wrong), (prices, cheaper)
        root = theory.long_poll_or_push(request, inside, inside + saved, **prices)
        assert root == (cheaper[-1][0] if cheaper and cheaper[-1][1] == math.inf else math.inf)
        found[len(cheaper)] += 1
    assert min(found.values()) >= 20, found


def test_where_equal_deliveries_leave_the_choice_to_the_rest() -> None:
    """If a delivery costs the same either way, what is cheaper without news is cheaper whatever comes."""
    assert theory.poll_or_push(1.0, 2.0, 2.0, kept=-3.0) == 0
    assert theory.long_poll_or_push(1.0, 2.0, 2.0, rtt=0.1, kept=-1e3) == 0
    assert theory.stream_or_socket(3.0, 9.0, 2.0, 9.0) == 0
    assert theory.stream_or_socket(2.0, 9.0, 2.0, 9.0) == math.inf


def test_a_sign_that_changes_at_0_is_found_and_no_search_is_endless() -> None:
    """A function that is negative at 0 only has an interval too small to matter: halving never goes on for ever."""
    ((begin, end),) = cost._negative(lambda x: np.where(x > 0, 1.0, -1.0), np.linspace(0.0, 10.0, 20))
    assert begin == 0.0
    assert 0.0 < end < 1e-50
