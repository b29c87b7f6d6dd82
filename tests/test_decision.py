"""The decision: what is asked is checked, what is cheapest wins, and every flip is one."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lab import theory
from lab.cost.decision import QUANTITIES, REFERENCE, Decision, Requirements, recommend
from lab.cost.processes import Line, Measured, Window
from lab.figures import maps
from lab.theory import LONG, MODELS, SHORT, SOCKET, STREAM, Prices, Resources, Work

PRICES = Prices()


def decided(**numbers: Any) -> Decision:
    """The decision for these requirements, by the reference's units."""
    return Decision(Requirements(**numbers), REFERENCE, PRICES)


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ({"rate": 0.0}, "rate is a number above 0, not 0.0"),
        ({"rate": math.nan}, "rate is a number above 0, not nan"),
        ({"rate": math.inf}, "rate is a number above 0, not inf"),
        ({"rate": "1"}, "rate is a number, not '1'"),
        ({"budget": True}, "budget is a number, not True"),
        ({"clients": 1.5}, "clients are counted in whole numbers, not 1.5"),
        ({"clients": 0}, "clients is a number above 0, not 0"),
        ({"upstream": -1}, "upstream is a number from 0 up, not -1"),
        ({"payload": math.inf}, "payload is a number from 0 up, not inf"),
        ({"wanted": 1.5}, "wanted is a share of the clients, above 0 and at most 1, not 1.5"),
        ({"streams_pass": 1}, "streams pass is True or False, not 1"),
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


@pytest.mark.parametrize(
    ("numbers", "model"),
    [
        ({}, STREAM),
        ({"budget": 60}, SHORT),
        ({"rate": 20, "budget": 2}, SHORT),
        ({"rate": 0.001, "budget": 5}, SOCKET),
        ({"upstream": 1}, SOCKET),
        ({"streams_pass": False, "budget": 0.1}, LONG),
        ({"streams_pass": False, "budget": 20, "rate": 1}, SHORT),
        ({"memory_limit": 12 * 2**20, "budget": 3}, SHORT),
        ({"rate": 1, "budget": 0.1, "upstream": 0.05}, STREAM),
    ],
)
def test_recommendation(numbers: dict[str, Any], model: str) -> None:
    """The reference's units and the assumed prices give the model that the notebook's table has for the case."""
    assert recommend(Requirements(**numbers)).model == model


@pytest.mark.parametrize("rate", [0.003, 0.1, 2.0, 50.0])
@pytest.mark.parametrize("budget", [0.06, 0.5, 5.0, 200.0])
@pytest.mark.parametrize("others", [{}, {"upstream": 1.0}, {"streams_pass": False}, {"browsers": True}])
def test_the_cheapest_wins(rate: float, budget: float, others: dict[str, Any]) -> None:
    """Nobody who is fresh enough is cheaper than the choice, but for a WebSocket within a tenth of SSE."""
    decision = decided(rate=rate, budget=budget, **others)
    if decision.model is None:
        assert set(decision.excluded) == set(MODELS)
        return
    least = min(decision.costs.values())
    assert decision.costs[decision.model] <= (1.1 if decision.model == STREAM else 1.0) * least
    assert all(theory.meets(model, budget, rate, 0.05) for model in decision.costs)


@pytest.mark.parametrize(
    "numbers",
    [{}, {"budget": 60}, {"rate": 0.001, "budget": 5}, {"upstream": 1}, {"streams_pass": False}, {"browsers": True}],
)
def test_every_flip_is_one(numbers: dict[str, Any]) -> None:
    """Just before a flip the choice is still the same, just behind it the one that the flip names; nearest first."""
    decision = decided(**numbers)
    flips = decision.flips()
    assert flips
    assert [flip.factor for flip in flips] == sorted(flip.factor for flip in flips)
    for flip in flips:
        out = 1.001 if flip.value > flip.now else 1 / 1.001
        before = decision.moved(flip.quantity, flip.value / out)
        behind = decision.moved(flip.quantity, flip.value * out)
        assert before is not None
        assert behind is not None
        assert before.model == decision.model != flip.model == behind.model
        assert flip.quantity in QUANTITIES


def test_the_flip_in_the_rate_is_the_closed_form() -> None:
    """Where polling takes over from SSE is where the law of the flip says, from the same units and prices."""
    decision = decided(budget=1.0, rate=1.0)
    [flip] = [f for f in decision.flips() if f.quantity == "rate" and f.model == SHORT]
    price = {model: {name: part.price(PRICES) for name, part in vars(REFERENCE[model]).items()} for model in MODELS}
    interval = decision.requirements.interval
    law = theory.poll_or_push(
        price[SHORT]["request"], price[SHORT]["delivery"], price[STREAM]["delivery"],
        kept=theory.poll_kept(interval, price[SHORT]["held"], price[STREAM]["held"]),
    )  # fmt: skip
    assert flip.value * interval == pytest.approx(law, rel=1e-6)


def test_a_websocket_has_to_be_clearly_cheaper() -> None:
    """SSE is the choice where a WebSocket is cheaper by less than a tenth, and the reasons say so."""
    decision = decided(upstream=0.2)
    assert decision.costs[STREAM] / 1.1 < decision.costs[SOCKET] < decision.costs[STREAM]
    answer = recommend(decision.requirements)
    assert answer.model == STREAM
    assert answer.margin < 1
    assert any("within the error" in reason for reason in answer.reasons)
    assert recommend(Requirements(upstream=0.5)).model == SOCKET


def test_messages_up_are_per_update() -> None:
    """A client that answers every other update says twice as much when twice as many come."""
    assert decided(rate=4.0, upstream=0.5).work(SOCKET).messages == 2.0


def test_margin_is_the_runner_ups_price() -> None:
    """The margin is how many times as much the next one costs; alone, a model has no runner-up."""
    answer = recommend(Requirements(upstream=1))
    assert answer.runner_up == STREAM
    assert answer.margin == pytest.approx(answer.costs[STREAM] / answer.costs[SOCKET])
    alone = recommend(Requirements(streams_pass=False, budget=0.05, rate=0.1))
    assert (alone.model, alone.runner_up, alone.margin) == (LONG, None, math.inf)


def test_reasons_are_sentences_with_numbers() -> None:
    """A recommendation says what it costs, how fresh it is, what is out and why, and where it would change."""
    answer = recommend(Requirements(streams_pass=False, payload=50_000, wanted=0.1, browsers=True))
    text = "\n".join(answer.reasons)
    assert "a month for 1,000 clients" in text
    assert "SSE is out: streams do not get through." in text
    assert "announce it, and let those who want it fetch" in text
    assert "You would change your mind for" in text
    assert all(reason.endswith(".") and any(c.isdigit() for c in reason + "0") for reason in answer.reasons)
    assert repr(answer).startswith(answer.model)
    assert answer._repr_markdown_().startswith(f"**{answer.model}**")


def test_when_nobody_will_do_it_says_why() -> None:
    """Without a model that will do, every model's obstacle is named."""
    with pytest.raises(ValueError, match=r"no model will do: short polling: it cannot bring .* SSE: streams do not"):
        recommend(Requirements(streams_pass=False, budget=0.03, rate=100))
    with pytest.raises(ValueError, match="memory, and 1,000 bytes are allowed"):
        recommend(Requirements(memory_limit=1000))


def test_free_of_charge_is_no_division_by_zero() -> None:
    """With all prices at 0 there is still an answer."""
    free = Prices(cpu_hour=0, gib_hour=0, gb_up=0, gb_down=0)
    assert recommend(Requirements(), prices=free).margin == math.inf


@pytest.mark.parametrize(("size", "down"), [(10.0, 4 / 3 * 10.0), (10_000.0, 0.1 * (10_000.0 + 131))])
def test_files_travel_the_cheaper_way(size: float, down: float) -> None:
    """Small files are paid for inline, large ones by those who fetch them, on top of what the news cost."""
    without, with_file = decided(), decided(payload=size, wanted=0.1)
    more = with_file.resources(STREAM).down - without.resources(STREAM).down
    assert more == pytest.approx(down)


def test_browsers_carry_more_up_with_every_request() -> None:
    """What a browser adds is paid for each request, and not for a frame."""
    prices = replace(PRICES, gb_up=PRICES.gb_down)
    for model, times in ((SHORT, 1 / 1.0263), (SOCKET, 0.0), (STREAM, 0.5)):
        plain = Decision(Requirements(upstream=0.5), REFERENCE, prices)
        browser = Decision(Requirements(upstream=0.5, browsers=True), REFERENCE, prices)
        more = browser.resources(model).up - plain.resources(model).up
        expected = 500 * (times + (0.5 if model == SHORT else 0))
        assert more == pytest.approx(expected, rel=1e-3)


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
    picture = maps.decision_map(panels, REFERENCE, PRICES)
    listen, blocked = picture.alt.split("blocked: ")
    assert "SSE on" in listen
    assert "SSE" not in blocked
    assert "long polling on" in blocked
    assert len(picture.axes) == 2
    names = [text.get_text() for axes in picture.axes for text in axes.texts]
    assert {"SSE", "Web-\nSocket", "short\npolling", "long\npolling"} <= set(names)


def test_slopes_draw_every_window() -> None:
    """A point for each window with connections, a line for each model, and the costs in the text."""
    ramp = [
        Window(n, 1.0, 0.01 + n / 1000, 2**20 + 2**15 * n, 10 * n, 50 * n, 0, 0, 0, 0, floor=0.0) for n in (0, 5, 10)
    ]
    units = REFERENCE[SHORT]
    cpu = Line.through([0, 50, 100], [w.cpu for w in ramp])
    memory = Line.through([5, 10], [w.memory for w in ramp[1:]])
    picture = maps.slopes([Measured(model, "requests", ramp, [], cpu, memory, units) for model in MODELS])
    assert "SSE: 100 µs of CPU for each of its requests, 32 KiB a connection." in picture.alt
    left, right = picture.axes
    assert len(left.lines) == len(right.lines) == 8
    slope = right.lines[0].get_ydata()
    assert np.allclose(np.asarray(slope), [2**15 * 5 / 2**20, 2**15 * 10 / 2**20])


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
