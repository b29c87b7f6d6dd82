"""The decision: what is asked is checked, the advice is an engineer's, and every flip is one."""

import functools
import io
import itertools
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from lab import theory
from lab.cost import Decision, Requirements, Threshold, cases, recommend
from lab.cost.advice import DATAGRAMS, MQTT, PLATFORM, RSYNC, WEBHOOK, choice
from lab.cost.decision import REFERENCE, REFERENCE_AT_LIMIT
from lab.cost.flips import QUANTITIES, flips, moved
from lab.cost.measuring import RUNS_DIFFER, TEACHING, Measured, result
from lab.cost.network import HEAD, RECORD, on_the_network
from lab.cost.processes import Window
from lab.figures import maps
from lab.theory import LONG, MODELS, SHORT, SOCKET, STREAM, Prices, Resources, Units, Work

PRICES = Prices()
FREE = Prices(gb_down=0)
NETWORK = on_the_network(REFERENCE)
AT_LIMIT = on_the_network(REFERENCE_AT_LIMIT)


def decided(**numbers: Any) -> Decision:
    """The decision for these requirements, by the reference's units."""
    return Decision(Requirements(**numbers), NETWORK, PRICES)


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ({"rate": -1}, "rate is a number from 0 up, not -1"),
        ({"rate": math.nan}, "rate is a number from 0 up, not nan"),
        ({"rate": math.inf}, "rate is a number from 0 up, not inf"),
        ({"rate": "1"}, "rate is a number, not '1'"),
        ({"rate": 1j}, "rate is a number, not 1j"),
        ({"budget": True}, "budget is a number, not True"),
        ({"clients": 1.5}, "clients are counted in whole numbers, not 1.5"),
        ({"clients": 0}, "clients is a number above 0, not 0"),
        ({"upstream": -1}, "upstream is a number from 0 up, not -1"),
        ({"payload": math.inf}, "payload is a number from 0 up, not inf"),
        ({"wanted": 1.5}, "wanted is a share of the clients, above 0 and at most 1, not 1.5"),
        ({"streams_pass": 1}, "streams pass is True or False, not 1"),
        ({"followers": "people"}, "followers are programs, browsers, phones, devices, servers, not 'people'"),
        ({"memory_limit": 0}, "memory limit is a number above 0, not 0"),
        (
            {"budget": 0.02},
            "nothing is fresher than one transit: with a round trip of 50 ms the budget is 25 ms or more, not 20 ms",
        ),
    ],
)
def test_what_cannot_be_is_refused(numbers: dict[str, Any], sentence: str) -> None:
    """A requirement that cannot be is answered with one clear sentence."""
    with pytest.raises(ValueError) as refusal:  # noqa: PT011  # the whole text is compared
        Requirements(**numbers)
    assert str(refusal.value) == sentence


@pytest.mark.parametrize("half", [0.5, Fraction(1, 2), Decimal("0.5"), np.float32(0.5), np.float64(0.5)])
def test_anybodys_numbers_are_taken(half: Any) -> None:
    """A number is taken whoever made it, and is Python's own from then on; whole ones count clients."""
    requirements = Requirements(clients=np.int64(1000), rate=half, budget=half)  # type: ignore[arg-type]
    assert requirements == Requirements(clients=1000, rate=0.5, budget=0.5)
    assert (type(requirements.clients), type(requirements.rate)) == (int, float)


R = Requirements
CASES: dict[str, tuple[Requirements, str]] = {
    "a page of a build, 50 viewers": (R(50, 0.01, 5, followers="browsers"), SHORT),
    "feature flags, half a minute": (R(200, 1e-5, 30), SHORT),
    "tokens of a language model": (R(1000, 50, 0.2, followers="browsers"), STREAM),
    "stock ticker": (R(10_000, 20, 0.5, followers="browsers", latest=True), STREAM),
    "positions in a game, 30 a second": (R(100, 30, 0.1, upstream=1, lossy=True), DATAGRAMS),
    "an app that sleeps": (R(10_000, 0.001, 10, followers="phones"), PLATFORM),
    "sensors on radio": (R(10_000, 0.01, 10, followers="devices"), MQTT),
    "weather, behind a CDN": (R(100_000, 1 / 60, 300, followers="browsers"), SHORT),
    "chat": (R(5000, 0.5, 0.5, upstream=0.6, followers="browsers"), SOCKET),
    "an editor for several": (R(50, 2, 0.2, upstream=1, followers="browsers"), SOCKET),
    "events from server to server": (R(20, 0.1, 5, followers="servers"), WEBHOOK),
    "files, once a night": (R(10, 0.01, 12 * 3600, payload=1e6), RSYNC),
    "file updates": (R(5000, 0.2, 0.5, rtt=0.06, payload=20_000, wanted=0.5), STREAM),
    "behind a strict proxy": (R(500, 0.05, 0.5, streams_pass=False), LONG),
    "log viewer, 20 lines a second": (R(50, 20, 2), SHORT),
    "progress of an upload": (R(200, 2, 0.3, followers="browsers"), STREAM),
    "typing and presence": (R(1000, 2, 0.3, upstream=0.5, followers="browsers", http2=True), SOCKET),
    "seven tabs on HTTP/1.1": (R(1000, 0.1, 0.5, followers="browsers", tabs=7), SOCKET),
    "seven tabs on HTTP/2": (R(1000, 0.1, 0.5, followers="browsers", tabs=7, http2=True), STREAM),
    "a platform that ends every answer": (R(1000, 0.1, 0.5, cut_after=25, sockets_pass=False), STREAM),
    "dashboard of a fleet, once a minute": (R(20, 0.5, 60), SHORT),
    "thousands of lines a poll could not carry": (R(10, 500, 600), SHORT),
    "a ticker in an app that is looked at": (R(50_000, 5, 0.5, followers="phones", latest=True), STREAM),
    "a driver's app, which says where it is": (R(10_000, 0.2, 1, upstream=5, followers="phones"), SOCKET),
    "a driver on a map": (R(10_000, 1, 1, followers="browsers", latest=True, http2=True), STREAM),
    "firmware, asked for once a day": (R(100_000, 1e-6, 86_400, followers="devices", payload=5e6), SHORT),
    "a picture of the day, in a browser": (R(1000, 1e-5, 86_400, followers="browsers", payload=1e6), SHORT),
    "a price on a kiosk": (R(500, 1e-4, 60), SHORT),
    "scores behind a CDN, ten seconds": (R(1_000_000, 0.05, 10, followers="browsers", http2=True), SHORT),
    "a game of chess": (R(5000, 0.1, 1, upstream=1, followers="browsers"), SOCKET),
    "a busy log from server to server": (R(30, 50, 0.5, followers="servers"), STREAM),
    "the tail of a log": (R(20, 20, 1, followers="browsers"), STREAM),
    "a function that is ended after ten seconds": (R(1000, 0.1, 5, cut_after=10, sockets_pass=False), SHORT),
    "backups of one server by another, by the morning": (R(3, 0.01, 43_200, followers="servers", payload=1e7), RSYNC),
    "an auction that is watched": (R(5000, 2, 0.5, upstream=0.01, followers="browsers", latest=True), STREAM),
    "a badge of unread mail": (R(10_000, 3e-4, 30, followers="browsers", shared=False), SHORT),
    "writing one text together": (R(500, 3, 0.2, upstream=0.4, followers="browsers", http2=True), SOCKET),
    "an app behind a strict proxy": (R(2000, 0.1, 1, rtt=0.15, followers="phones", streams_pass=False), LONG),
    "a private feed in browsers": (R(3000, 0.05, 1, followers="browsers", headers=True, shared=False), STREAM),
}


def scaled(units: Mapping[str, Units], factor: float) -> dict[str, Units]:
    """The same protocols by an implementation that takes so many times as much CPU time and memory."""
    return {model: Units(*(slower(part, factor) for part in vars(own).values())) for model, own in units.items()}


def slower(part: Resources, factor: float) -> Resources:
    """The same bytes, and so many times the CPU time and the memory."""
    return replace(part, cpu=factor * part.cpu, memory=factor * part.memory)


@pytest.mark.parametrize("name", CASES)
def test_an_engineer_would_say_the_same(name: str) -> None:
    """Each case gets an experienced engineer's answer, whether traffic is paid or free and servers slow or fast."""
    requirements, answer = CASES[name]
    for prices in (PRICES, FREE):
        for factor in (0.2, 1.0, 2.0):
            assert choice(requirements, scaled(NETWORK, factor), prices) == answer


def test_the_fast_path_sends_the_same_for_less() -> None:
    """At the limit a model's bytes are those of its teaching server; CPU time and memory are no more."""
    for model in MODELS:
        for part in ("request", "delivery", "held", "message"):
            taught, fast = (getattr(units[model], part) for units in (REFERENCE, REFERENCE_AT_LIMIT))
            assert (fast.up, fast.down) == (taught.up, taught.down)
            assert fast.cpu <= taught.cpu
            assert fast.memory <= taught.memory


@pytest.mark.parametrize("units", [NETWORK, AT_LIMIT], ids=["taught", "at the limit"])
def test_no_advice_hangs_on_what_runs_differ_by(units: dict[str, Units]) -> None:
    """Each CPU time off by the factor by which runs differ, up or down: whoever shares files is told the same."""
    folder = Requirements(5000, 0.2, 0.5, rtt=0.06)
    asking = [
        folder,
        replace(folder, upstream=1.0),
        replace(folder, budget=300.0, clients=50),
        replace(folder, streams_pass=False),
        Requirements(50, 0.01, 5.0, followers="browsers"),
    ]
    chance = random.Random(1)
    for prices, requirements in itertools.product((PRICES, FREE), asking):
        told = choice(requirements, NETWORK, prices)
        for _ in range(10):
            assert choice(requirements, off(units, chance), prices) == told, requirements


def off(units: Mapping[str, Units], chance: random.Random) -> dict[str, Units]:
    """Units whose CPU times are each off by the factor, one way or the other."""

    def each(of: Resources) -> Resources:
        return replace(of, cpu=of.cpu * RUNS_DIFFER ** chance.choice((-1, 1)))

    return {m: Units(*map(each, (u.request, u.delivery, u.held, u.message))) for m, u in units.items()}


def test_others_chose_the_same_or_it_is_said_why() -> None:
    """Twelve systems in public: ours is their choice, or the case says in a sentence why not."""
    assert len(cases.CASES) == 12
    for prices in (PRICES, FREE):
        table = cases.chosen(prices=prices)
        differing = {name for name, (theirs, ours, _) in table.items() if theirs != ours}
        assert differing == {case.name for case in cases.CASES if case.differs}
    text = cases.as_markdown(cases.chosen())
    assert text.count("https://") == 12
    assert len(text.splitlines()) == 14


@pytest.mark.parametrize(
    ("requirements", "sentences"),
    [
        (CASES["stock ticker"][0], ["every 500 ms: that is a stream in disguise", "send the newest state only"]),
        (CASES["seven tabs on HTTP/1.1"][0], ["SSE is out: 7 tabs would hold all of the six HTTP/1.1 connections"]),
        (CASES["a platform that ends every answer"][0], ["ends every answer after 25 s", "40 times a second in all"]),
        (CASES["a page of a build, 50 viewers"][0], ["Cost does not decide", "Poll with an ETag", "a cache or CDN"]),
        (R(1_000_000, 1, 0.5), ["One process uses one core: this takes"]),
        (R(1000, 50, 0.2), ["join what comes into one message, within 175 ms, 8.75 at a time"]),
        (R(streams_pass=False, payload=50_000, wanted=0.1), ["SSE is out: streams do not get through.", "announce it"]),
        (R(followers="browsers", headers=True, budget=0.5), ["a WebSocket is not counted", "let a cookie carry"]),
        (
            R(upstream=1, followers="browsers", headers=True),
            ["WebSocket sends no header", "the token, or say it first"],
        ),
        (R(2000, 1, 0.5, upstream=0.05), ["The server answers 100 requests a second, 2,000 connections"]),
        (R(payload=50_000, wanted=0.1, budget=0.5), ["The server answers 100 requests a second"]),
        (R(1000, 0.2, 1, cut_after=50, sockets_pass=False), ["The server answers 20 requests a second"]),
        (R(200_000, 0.2, 10, followers="browsers"), ["Without that cache the server answers 19,048 requests"]),
        (R(3000, 0.005, 60, shared=False), ["Cache-Control: private", "The server answers 47.5 requests a second"]),
        (R(200, 1e-5, 30, latest=True), ["who comes back is told it, whatever was missed"]),
        (R(200, 1e-5, 30), ["bridges an absence of 30.2 years"]),
        (R(100, 0.5, 1, followers="browsers", tabs=8), ["Cost does not decide: nobody else is left"]),
        (R(2000, 0.05, 2, upstream=1), ["for short polling at 842 clients (now 2,000)"]),
        (CASES["an app that sleeps"][0], ["While it is awake, it follows the log by"]),
        (R(1, 1e6, 1), ["could come within 25 ms", "within 9.5 ms, 9,512 at a time", "One client alone is more than"]),
        (R(10**9, 1, 1), ["the work is that of 14,200 cores", "One process uses one core"]),
        (R(10_000, 1 / 86400, 86400), ["A poll every 25.3 hours", "within the 24 hours allowed"]),
        (R(100, 0.1, 0.5, history=1), ["A history of 1 update bridges"]),
        (R(100, 0.1, 1, cut_after=29), ["let the server end them a little sooner", "come within 25 ms"]),
        (R(100, 0.1, 1, cut_after=1), ["95 % of the updates come within 165 ms"]),
    ],
)
def test_each_step_is_said(requirements: Requirements, sentences: list[str]) -> None:
    """What decides is said in a sentence: what is possible, how fresh, what it costs, what to build it with."""
    advice = recommend(requirements)
    text = "\n".join(advice.reasons)
    assert all(sentence in text for sentence in sentences), text
    assert all(reason.endswith(".") for reason in advice.reasons)
    assert repr(advice).startswith(advice.model)
    assert advice._repr_markdown_().startswith(f"**{advice.model}**")


@pytest.mark.parametrize(
    ("requirements", "sentence"),
    [
        (R(2000, 5, 0.5), "a hidden tab's timers"),
        (R(50, 0.01, 5, followers="browsers"), "holds one of six connections"),
        (R(50, 0.01, 60, followers="browsers", headers=True), "let a cookie carry the token"),
        (R(3000, 0.005, 60, shared=False), "CDN"),
        (R(50_000, 10, 0.25, latest=True), "history"),
        (R(100, 1, 60, latest=True), "lists again"),
    ],
)
def test_what_does_not_concern_the_case_is_not_said(requirements: Requirements, sentence: str) -> None:
    """No program has tabs, no poll holds a stream or lacks a header, what is private has no CDN, a state no history."""
    assert sentence not in repr(recommend(requirements))


def test_an_ended_stream_is_away_until_its_client_is_back() -> None:
    """Ended after each second, a stream is not there for a sixth of the time: what came meanwhile waits for it."""
    rng = np.random.default_rng(3)
    cut, rtt = 1.0, 0.05
    away = 2 * rtt + 0.1
    into = rng.uniform(0, cut + away, 100_000)  # when in a cycle an update comes; it begins with the absence
    delays = rtt / 2 + np.maximum(0, away - into)
    assert decided(budget=1, cut_after=cut).late(STREAM) == pytest.approx(np.quantile(delays, 0.95), rel=0.02)
    assert STREAM in decided(budget=0.15, cut_after=cut).excluded
    assert STREAM not in decided(budget=0.15, cut_after=60).excluded


def test_where_only_the_newest_counts_no_rate_is_too_high_for_a_pull() -> None:
    """A poll brings the newest state, whatever was overtaken: it needs no history, and no answer is ever full."""
    dense, denser = (decided(rate=rate, budget=4, latest=True, history=1) for rate in (1e3, 1e7))
    for model in (SHORT, LONG):
        assert denser.requests(model) == pytest.approx(dense.requests(model))
        assert denser.costs[model] == pytest.approx(dense.costs[model])
    assert denser.requirements.interval == pytest.approx((4 - 0.025) / 0.95)
    assert recommend(R(300, 5000, 5, latest=True)).model == SHORT


def test_a_message_now_and_then_is_no_conversation() -> None:
    """However rare the updates that it answers: a POST every few minutes is no reason for a WebSocket."""
    assert recommend(R(500, 0.001, 1, upstream=1)).model == STREAM
    assert recommend(R(500, 0.1, 1, upstream=1)).model == SOCKET


def test_the_threshold_is_the_readers() -> None:
    """Who minds every cent gets the cheapest; who minds none gets the simplest that is fresh enough."""
    requirements = R(50, 0.01, 5)
    cents, none = Threshold(bill=0, margin=1), Threshold(bill=1e12)
    cheapest = recommend(requirements, threshold=cents)
    assert cheapest.costs is not None
    assert cheapest.costs[cheapest.model] == min(cheapest.costs.values())
    assert recommend(requirements, threshold=none).model == SHORT
    with pytest.raises(ValueError, match="a margin one from 1 up"):
        Threshold(margin=0.5)


def test_a_poll_carries_no_more_than_the_history_keeps() -> None:
    """However much delay is allowed, what comes between two polls fits the history, with room for chance."""
    dense = Requirements(rate=100, budget=600)
    x = dense.rate * dense.interval
    assert x + 5 * math.sqrt(x) <= 1.000001 * dense.history
    assert Requirements(rate=100, budget=600, history=100).interval < 1


def test_nothing_ever_happens() -> None:
    """A rate of 0 has an answer."""
    assert recommend(Requirements(clients=10, rate=0, budget=60)).model == SHORT


@pytest.mark.parametrize("rate", [0.0, 0.003, 2.0, 50.0])
@pytest.mark.parametrize("budget", [0.06, 0.5, 200.0])
@pytest.mark.parametrize("others", [{}, {"upstream": 1.0}, {"streams_pass": False}, {"followers": "browsers"}])
def test_the_cheapest_is_the_cheapest(rate: float, budget: float, others: dict[str, Any]) -> None:
    """Nobody who is fresh enough is cheaper than the decision's, but for a WebSocket within a tenth of SSE."""
    decision = decided(rate=rate, budget=budget, **others)
    if decision.model is None:
        assert set(decision.excluded) == set(MODELS)
        return
    least = min(decision.costs.values())
    assert decision.costs[decision.model] <= (1.1 if decision.model == STREAM else 1.0) * least
    assert all(theory.meets(model, budget, rate, 0.05) for model in decision.costs)


@pytest.mark.parametrize("numbers", [{}, {"budget": 60}, {"upstream": 1}, {"streams_pass": False}])
def test_every_flip_is_one(numbers: dict[str, Any]) -> None:
    """Just before a flip the choice is still the same, just behind it the one that the flip names; nearest first."""
    requirements = Requirements(**numbers)
    choose = functools.cache(choice)
    found = flips(requirements, choose)
    assert found
    assert [flip.factor for flip in found] == sorted(flip.factor for flip in found)
    for flip in found:
        out = 1.001 if flip.value > flip.now else 1 / 1.001
        before, behind = (moved(requirements, flip.quantity, flip.value * by) for by in (1 / out, out))
        assert before is not None
        assert behind is not None
        assert choose(before) == choose(requirements) != flip.model == choose(behind)
        assert flip.quantity in QUANTITIES


def test_the_flip_in_the_rate_is_the_closed_form() -> None:
    """Where polling becomes the cheapest is where the law of the flip says, from the same units and prices."""
    requirements = Requirements(budget=1.0, rate=1.0)
    found = flips(requirements, lambda r: Decision(r, NETWORK, PRICES).model)
    [flip] = [flip for flip in found if flip.quantity == "rate" and flip.model == SHORT]
    price = {model: {name: part.price(PRICES) for name, part in vars(NETWORK[model]).items()} for model in MODELS}
    interval = requirements.interval
    law = theory.poll_or_push(
        price[SHORT]["request"], price[SHORT]["delivery"], price[STREAM]["delivery"],
        kept=theory.poll_kept(interval, price[SHORT]["held"], price[STREAM]["held"]),
    )  # fmt: skip
    assert flip.value * interval == pytest.approx(law, rel=1e-5)


def test_joined_news_comes_in_fewer_deliveries() -> None:
    """A window opens with the first update after the last has closed: λ/(1 + λJ) in a second, by a count of them."""
    rate, window, chance = 7.0, 0.4, random.Random(3)
    decision = Decision(Requirements(rate=rate, budget=window + 0.025), REFERENCE, PRICES, joined=True)
    now = opened = 0.0
    closes, seconds = 0.0, 20_000.0
    while now < seconds:
        now += chance.expovariate(rate)
        if now >= closes:
            opened, closes = opened + 1, now + window
    first, inside = decision.pushes(decision.work(STREAM))
    assert first == pytest.approx(opened / seconds, rel=0.02)
    assert first + inside == pytest.approx(rate)


def test_messages_up_are_per_update() -> None:
    """A client that answers every other update says twice as much when twice as many come."""
    assert decided(rate=4.0, upstream=0.5).work(SOCKET).messages == 2.0


def test_margin_is_the_runner_ups_price() -> None:
    """The margin is how many times as much the next one costs; alone, a model has no runner-up."""
    answer = recommend(Requirements(upstream=1))
    assert answer.costs is not None
    assert answer.margin == pytest.approx(answer.costs[answer.runner_up or ""] / answer.costs[answer.model])
    alone = recommend(Requirements(streams_pass=False, budget=0.05, rate=0.1))
    assert (alone.model, alone.runner_up, alone.margin) == (LONG, None, math.inf)


def test_when_nobody_will_do_it_says_why() -> None:
    """Without a model that will do, every model's obstacle is named."""
    with pytest.raises(ValueError, match=r"no model will do: short polling: it cannot bring .* SSE: streams do not"):
        recommend(Requirements(streams_pass=False, budget=0.03, rate=100))
    with pytest.raises(ValueError, match="memory, and 1 byte are allowed"):
        recommend(Requirements(memory_limit=1))


def test_free_of_charge_is_no_division_by_zero() -> None:
    """With all prices at 0 there is still an answer."""
    free = Prices(cpu_hour=0, gib_hour=0, gb_up=0, gb_down=0)
    assert recommend(Requirements(), prices=free).margin == math.inf


@pytest.mark.parametrize("announced", [False, True])
def test_files_travel_the_cheaper_way(announced: bool) -> None:
    """Small files are paid for inline, large ones by those who fetch them, on top of what the news cost."""
    size = 10_000.0 if announced else 5.0
    answer = NETWORK[SHORT].request.down
    down = 0.1 * (size + answer) if announced else 4 / 3 * size
    more = decided(payload=size, wanted=0.1).resources(STREAM).down - decided().resources(STREAM).down
    assert more == pytest.approx(down)


def test_browsers_carry_more_up_with_every_request() -> None:
    """What a browser adds is paid for each request, not for a frame, and by HTTP/2 for an eighth."""
    for model, times in ((SHORT, 1 / 1.0263), (SOCKET, 0.0), (STREAM, 0.5)):
        plain, browser, compressed = (
            Decision(Requirements(upstream=0.5, followers=who, http2=h2), NETWORK, PRICES).resources(model).up
            for who, h2 in (("programs", False), ("browsers", False), ("browsers", True))
        )
        expected = 500 * (times + (0.5 if model == SHORT else 0))
        assert browser - plain == pytest.approx(expected, rel=1e-3)
        assert compressed - plain == pytest.approx(0.12 * expected, rel=1e-3)


def test_a_network_carries_more_than_the_protocol() -> None:
    """A pushed update is one packet and its receipt; a poll a packet each way and a receipt; TLS adds to each."""
    push, poll, talk = REFERENCE[STREAM].delivery, REFERENCE[SHORT].request, REFERENCE[SOCKET].message
    assert NETWORK[STREAM].delivery == replace(push, down=push.down + HEAD, up=HEAD)
    assert NETWORK[SHORT].request == replace(poll, down=poll.down + HEAD, up=poll.up + 2 * HEAD)
    assert NETWORK[SOCKET].message == replace(talk, down=talk.down + HEAD, up=talk.up + 2 * HEAD)
    assert NETWORK[SHORT].delivery.down == pytest.approx(REFERENCE[SHORT].delivery.down * 1500 / 1448)
    private = on_the_network(REFERENCE, tls=True)
    assert private[STREAM].delivery.down == push.down + HEAD + RECORD


def test_boundaries_of_the_map() -> None:
    """In every column the stretches follow one another, and each belongs to the choice made inside it."""
    decision = decided()
    for rate in (0.002, 0.3, 30.0):
        stack = maps.boundaries(decision, rate, (0.01, 600.0))
        starts = [start for start, _ in stack]
        assert starts == sorted(starts)
        for (start, model), end in zip(stack, [*starts[1:], 600.0], strict=True):
            assert maps._choice(decision, rate, math.sqrt(start * end)) == model
        assert stack[0] == (0.01, None)
        assert stack[1][0] == pytest.approx(0.025, rel=1e-4)


def test_map_says_what_it_shows() -> None:
    """The map names the models that win on each panel in its text, and only those."""
    panels = {"listen": Requirements(), "blocked": Requirements(streams_pass=False)}
    picture = maps.decision_map(panels, NETWORK, PRICES)
    listen, blocked = picture.alt.split("blocked: ")
    assert "SSE on" in listen
    assert "SSE" not in blocked
    assert "long polling on" in blocked
    assert len(picture.axes) == 2
    names = [text.get_text() for axes in picture.axes for text in axes.texts]
    assert {"SSE", "short\npolling", "long\npolling"} <= set(names)


def ramp(model: str, cost: float = 1e-4, each: int = 2**15, most: int = 10) -> Measured:
    """Windows whose server takes 100 µs for each of its load and 32 KiB for each connection, and a tenth of a core."""
    seen = [
        Window(n, 1.0, 0.1 + 50 * n * cost, 2**20 + each * n, 50 * n, 50 * n, 0, 0, 50, 100, floor=0.0, others=0.25)
        for n in (0, most // 2, most, 0, most // 2, most)
    ]
    found = result(LONG, TEACHING, (tuple(seen),))
    return replace(found, model=model, cpu={**found.cpu, "deliveries": found.main})


def test_slopes_draw_every_window() -> None:
    """A point for each window, a line for each model, the costs with their intervals, and what others took."""
    measured = [ramp(model) for model in MODELS]
    picture = maps.slopes(measured)
    low, high = 100 / RUNS_DIFFER, 100 * RUNS_DIFFER
    assert f"long polling: 100 ({low:.0f} to {high:.0f}) µs of CPU for each of its requests, 32 KiB" in picture.alt
    assert any("others took 25% of the machine" in text.get_text() for text in picture.texts)
    left, right = picture.axes
    assert len(left.lines) == len(right.lines) == 8
    assert np.allclose(np.asarray(right.lines[0].get_ydata()), [2**15 * 5 / 2**20, 2**15 * 10 / 2**20])


@pytest.mark.parametrize("seed", range(6))
def test_a_lines_name_lies_on_nothing(seed: int) -> None:
    """Wherever lines end, close together or one behind another: no name covers a point, a line or another name."""
    rng = random.Random(seed)
    spread = (1.0, 1.02, 1.1, 1.5, 2.0, 4.0)[seed]

    def near(value: float) -> float:
        return value * math.exp(math.log(spread) * rng.uniform(-1, 1))

    measured = [ramp(m, near(1e-4), round(near(2**15)), rng.choice((10, 12, 20))) for m in MODELS]
    picture = maps.slopes(measured)
    picture.savefig(io.BytesIO(), dpi=100)  # which lays it out
    for axes in picture.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == 4
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other)
        for line in axes.lines:
            ends = axes.transData.transform(np.asarray(line.get_xydata()))
            drawn = (
                [ends]
                if line.get_linestyle() == "None"
                else [np.linspace(a, b, 50) for a, b in itertools.pairwise(ends)]
            )
            covered = [box for box in boxes if any(box.contains(*point) for point in np.concatenate(drawn))]
            assert not covered, (line, covered)


def test_flip_figure_says_where() -> None:
    """The figure of a flip has the laws, the counted points on both sides, and the crossing in its text."""
    laws = {SHORT: lambda x: 4.0 + 0 * x, STREAM: lambda x: x}
    picture = maps.flip("Four", "x", laws, 4.0, {SHORT: {2.0: 4.0, 8.0: 4.0}, STREAM: {2.0: 2.0, 8.0: 8.0}})
    assert "the curves cross at 4" in picture.alt
    assert "SSE 2 then 8" in picture.alt


def test_work_that_was_counted_is_priced_as_work_by_law() -> None:
    """A Work is a Work: counts in all, divided by client-seconds, cost what the law's rates cost."""
    law = Work(requests=0.5, deliveries=1.0, held=1.0)
    counted = Work(requests=50, deliveries=100, held=100)
    per_second = counted.cost(REFERENCE[SHORT]) * (1 / 100)
    expected = law.cost(REFERENCE[SHORT])
    assert [*vars(per_second).values()] == pytest.approx([*vars(expected).values()])
    assert isinstance(per_second, Resources)
