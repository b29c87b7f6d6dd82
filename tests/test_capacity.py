"""Tests of the plan for a fleet: its laws, the simulation that shares nothing with them, and what a plan says."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lab.cost import REFERENCE, Capacity, Limits, capacity, sensitivity
from lab.cost.capacity import MOVED, moved
from lab.cost.reported import REPORTED, as_markdown
from lab.theory import LONG, MODELS, SHORT, SOCKET, STREAM, fleet
from lab.theory.simulated_fleet import simulated_process, smallest_fleet
from servers.feed import HEARTBEAT


def tried(plan: Capacity, **options: Any) -> int:
    """The smallest fleet by simulation, for a plan of a push."""
    beat = plan.kept * plan.heartbeat
    found = smallest_fleet(plan.clients, plan.rate, plan.deadline - plan.transit, plan.burst,
                           publish=plan.publish, beat=beat, every=plan.heartbeat, **options)  # fmt: skip
    assert isinstance(found, int)
    return found


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("load", [0.1, 0.4, 0.7])
def test_the_wait_of_the_queue_is_that_of_a_simulation(load: float) -> None:
    """P(wait <= t) of M/D/1 is the share of updates that a simulated process begins by then."""
    found = simulated_process(100, load, 0.01, updates=200_000, seed=3)
    for turns in (0.0, 0.5, 1.0, 2.5, 5.0):
        assert fleet.served_within(turns, load) == pytest.approx(found.within(1 + turns + 1e-9), abs=0.01)
    assert found.busy == pytest.approx(load, rel=0.02)


def test_a_queue_is_empty_with_the_probability_that_nobody_is_served() -> None:
    """P(no wait) is 1 - u exactly; nobody waits for less than nothing, and at full load everybody waits for ever."""
    assert fleet.served_within(0.0, 0.3) == pytest.approx(0.7)
    assert fleet.served_within(-0.1, 0.3) == 0
    assert fleet.served_within(5.0, 1.0) == 0
    assert fleet.served_within(1e6, 0.7) > 0.999


@pytest.mark.parametrize("rate", [1 / 600, 1 / 15, 0.5])
def test_heartbeats_fill_the_silences(rate: float) -> None:
    """λ/(e^(λh) - 1) heartbeats a second is what the gaps of drawn updates have room for."""
    gaps = np.random.default_rng(1).exponential(1 / rate, 200_000)
    beats = np.floor(gaps / 15).sum()
    assert fleet.heartbeats(rate, 15.0) == pytest.approx(beats / gaps.sum(), rel=0.05)
    assert fleet.heartbeat_share(rate, 15.0) == pytest.approx(beats / (beats + len(gaps)), rel=0.05)


def test_a_quiet_feed_has_heartbeats_only() -> None:
    """Without updates both laws are 1/h, and their share is all; arrays are taken as numbers are."""
    for silence in (True, False):
        assert fleet.heartbeats(0.0, 15.0, silence=silence) == pytest.approx(1 / 15)
        assert fleet.heartbeat_share(0.0, 15.0, silence=silence) == 1
    rates: Any = np.array([0.0, 0.1])
    both = fleet.heartbeats(rates, 15.0)
    assert both == pytest.approx([1 / 15, fleet.heartbeats(0.1, 15.0)])


def test_what_is_heard_without_a_shared_log() -> None:
    """A client of one of W workers hears 1/W; fewer workers than one are none."""
    assert fleet.heard_without_a_shared_log(4) == 0.25
    with pytest.raises(ValueError, match="one worker or more, not 0"):
        fleet.heard_without_a_shared_log(0)


# ── the plan ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", [SOCKET, STREAM])
@pytest.mark.parametrize(("rate", "deadline"), [(1.0, 0.1), (20.0, 0.2), (100.0, 0.3), (3.0, 0.05)])
def test_plan_and_simulation_agree(model: str, rate: float, deadline: float) -> None:
    """The formula's fleet is the smallest that will do by trying, within 15 % or one process."""
    plan = capacity(30_000, rate, deadline, model)
    assert abs(plan.processes - (by := tried(plan, updates=600))) <= max(1, 0.15 * by)


def test_services_that_vary_need_more_room_than_the_plan_has() -> None:
    """Where an update takes now less and now more, the deadline takes more processes than the law of equal ones."""
    plan = capacity(30_000, 20.0, 0.1)
    assert tried(plan, updates=2000, spread=1.0) > plan.processes


def test_what_binds() -> None:
    """Urgent news is bound by the deadline, dense news by the load, a quiet fleet by descriptors."""
    assert capacity(1_000_000, 1.0, 0.1).binds == "deadline"
    assert capacity(1_000_000, 50.0, 1.0).binds == "load"
    quiet = capacity(1_000_000, 0.001, 5.0)
    assert quiet.binds == "descriptors"
    assert quiet.quiet > 0.9


def test_no_process_holds_more_than_its_limits() -> None:
    """A plan's process keeps its deadline, its load and its descriptors, and one client more would break one."""
    for rate, deadline in ((1.0, 0.1), (50.0, 1.0), (0.001, 5.0)):
        plan = capacity(1_000_000, rate, deadline)
        assert plan.per_process <= min(plan.holds.values()) < plan.per_process + 1
        assert plan.load <= 0.7 + 1e-9
        assert (plan.processes - 1) * plan.per_process < plan.clients <= plan.processes * plan.per_process


def test_the_sums_are_those_of_the_clients() -> None:
    """CPU, memory, descriptors and bytes are the unit costs times the clients, and what each process takes."""
    plan, own = capacity(10_000, 2.0, 0.5, STREAM, heartbeat=HEARTBEAT), REFERENCE[STREAM]
    each = 2.0 * own.delivery.cpu + own.held.cpu
    assert plan.cpu == pytest.approx(10_000 * each + plan.processes * 2.0 * plan.publish)
    assert plan.memory == pytest.approx(10_000 * own.held.memory + plan.processes * 75 * 2**20)
    assert plan.descriptors == 10_000 + 64 * plan.processes
    assert plan.down == pytest.approx(10_000 * (2.0 * own.delivery.down + own.held.down))


def test_a_shorter_heartbeat_costs() -> None:
    """Half the heartbeat's interval is twice what a client makes without updates."""
    assert capacity(1000, 0.01, 1.0, heartbeat=7.5).kept == pytest.approx(2 * capacity(1000, 0.01, 1.0).kept)


def test_pulls_are_planned_too() -> None:
    """A poll is bound by its load, a long poll by all its requests at once, and lets seldom-used connections go."""
    assert capacity(100_000, 1.0, 1.0, SHORT).binds == "load"
    assert capacity(100_000, 1.0, 1.0, LONG).processes > capacity(100_000, 1.0, 1.0, STREAM).processes
    assert capacity(100_000, 0.001, 600.0, SHORT).connections < 15_000


@pytest.mark.parametrize("model", MODELS)
def test_a_plan_says_itself_in_a_line(model: str) -> None:
    """It names the model, the processes, what binds, and what the hosts are for."""
    text = repr(capacity(1_000_000, 1.0, 1.0, model))
    assert text.startswith(f"{model}, 1,000,000 clients, λ = 1/s, 95 % within 1 s: ")
    assert " binds), " in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"model": "carrier pigeon"}, "there is no model 'carrier pigeon'"),
        ({"clients": 0}, "clients"),
        ({"rate": -1.0}, "rate"),
        ({"rate": math.nan}, "rate"),
        ({"deadline": 0.0}, "deadline"),
        ({"deadline": 0.01}, "cannot bring 95 %"),
        ({"rate": 1e6}, "no room"),
        ({"heartbeat": 0.0}, "heartbeat"),
        ({"publish": math.inf}, "publish"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, Any], words: str) -> None:
    """A number that cannot be, and a deadline that no fleet keeps, are told in a sentence."""
    with pytest.raises(ValueError, match=words):
        capacity(**{"clients": 1000, "rate": 1.0, "deadline": 1.0} | asked)


@pytest.mark.parametrize("asked", [{"load": 1.0}, {"load": 0.0}, {"descriptors": 64}, {"cores": 0}, {"memory": -1.0}])
def test_limits_that_cannot_be_are_refused(asked: dict[str, Any]) -> None:
    """So are limits, and a load of 1: who is always busy is late without end."""
    with pytest.raises(ValueError, match=next(iter(asked))):
        Limits(**asked)


# ── sensitivity ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_plan_hinges_on() -> None:
    """Twice the clients or half the deadline about double the processes; memory and descriptors do nothing here."""
    found = sensitivity(capacity(1_000_000, 1.0, 0.1))
    assert list(found)[:2] == ["deadline", "clients"]
    assert found["clients"] == pytest.approx((0.5, 2.0), rel=0.02)
    assert found["memory"] == found["descriptors"] == (1.0, 1.0)
    assert found["deadline"][0] > 2
    assert found["rate"][1] < 1.5


def test_where_there_is_no_plan_there_is_no_number() -> None:
    """A deadline that cannot be halved has NaN there, and comes first."""
    found = sensitivity(capacity(1000, 1.0, 0.04))
    assert math.isnan(found["deadline"][0])
    assert next(iter(found)) == "deadline"


def test_only_what_has_a_name_is_moved() -> None:
    """Each of the names moves something, another is refused."""
    plan = capacity(1000, 1.0, 0.5)
    assert all(moved(plan, name, 2.0) != plan for name in MOVED)
    assert replace(moved(plan, "rate", 2.0), rate=1.0) == plan
    with pytest.raises(ValueError, match="nothing is called 'luck'"):
        moved(plan, "luck", 2.0)


def test_an_elasticity_is_a_power() -> None:
    """Of x^3 it is 3, wherever."""
    assert fleet.elasticity(lambda x: 5 * x**3, 7.0) == pytest.approx(3)


# ── what others report ───────────────────────────────────────────────────────────────────────────────────────────────


def test_each_report_has_a_source_and_says_how_it_is_known() -> None:
    """Nothing is reported without an address, and every kind is one of three."""
    assert {report.kind for report in REPORTED} <= {"counted", "load test", "said"}
    assert all(report.source.startswith("https://") and report.measured for report in REPORTED)
    assert as_markdown().count("](https://") == len(REPORTED)
