"""The checks of notebook 05: what a delivery costs, where pushing costs the same, whether polling fits.

Cases are drawn at random, the same each time, and no result is a round number: a wrong rule or a rounded answer
cannot be right by chance.
"""

import math
import random
from collections.abc import Callable
from typing import Any

from lab import theory
from lab.checks.verdict import Verdict, compared

RULE = 0.95  # share of the updates that must come within the budget


def cost_per_delivery(function: Callable[[float, float, float, float], float]) -> Verdict:
    """Exercise: `cost_per_delivery(request, delivery, rate, interval)`: what polling pays for an update."""
    mistakes: dict[str, Callable[..., Any]] = {
        "It looks as if only the polls that bring something were paid; the empty ones cost as much.": (
            lambda request, delivery, rate, interval: (
                request * (1 - math.exp(-rate * interval)) / (rate * interval) + delivery
            )
        ),
        "That is what one poll with one update costs; a poll brings λT updates on average, or is in vain.": (
            lambda request, delivery, rate, interval: request + delivery
        ),
        "That is the cost of a poll and all it brings; divide by the updates that it brings.": (
            lambda request, delivery, rate, interval: request + rate * interval * delivery
        ),
        "That is the cost of a second; the question is the cost of an update.": (
            lambda request, delivery, rate, interval: request / interval + rate * delivery
        ),
        "The update itself costs something too, in the answer that brings it.": (
            lambda request, delivery, rate, interval: request / (rate * interval)
        ),
        "The delivery is paid for each update, once; this shares it among them.": (
            lambda request, delivery, rate, interval: (request + delivery) / (rate * interval)
        ),
        "That multiplies by λT, the updates of an interval; they share the poll, so divide by it.": (
            lambda request, delivery, rate, interval: request * rate * interval + delivery
        ),
        "It looks as if an interval had at least one update; most have none if λT is small, and cost a poll each.": (
            lambda request, delivery, rate, interval: request / max(rate * interval, 1) + delivery
        ),
    }
    cases = [(100.0, 2.3, 0.7, 3.7), (131.7, 2.0, 0.013, 5.0), (80.0, 3.1, 19.0, 1.3), (1e-4, 8e-7, 0.3, 0.7)]
    praise = "Every poll is paid, and shared by the λT updates of its interval."

    def right(request: float, delivery: float, rate: float, interval: float) -> float:
        return request / (rate * interval) + delivery

    return compared(function, right, mistakes, cases, praise)


def break_even(function: Callable[[float, float, float], float]) -> Verdict:
    """Exercise: `break_even(request, poll_delivery, push_delivery)`: λT at which polling and pushing cost the same.

    It is infinite if pushing an update costs no more than a poll's answer adds for it.
    """
    mistakes: dict[str, Callable[..., Any]] = {
        "An update costs something inside a poll's answer too: only the difference of the deliveries counts.": (
            lambda request, poll_delivery, push_delivery: request / push_delivery
        ),
        "It is upside down: how many deliveries' difference pays for one poll?": (
            lambda request, poll_delivery, push_delivery: (push_delivery - poll_delivery) / request
        ),
        "That charges the poll's delivery once a poll; it is paid for each of the λT updates.": (
            lambda request, poll_delivery, push_delivery: (request + poll_delivery) / push_delivery
        ),
        "The deliveries are subtracted, not added: both sides pay for each update.": (
            lambda request, poll_delivery, push_delivery: request / (push_delivery + poll_delivery)
        ),
        "The sign is turned round: it is the push that must be dearer for polling ever to pay.": (
            lambda request, poll_delivery, push_delivery: request / (poll_delivery - push_delivery)
        ),
    }
    cheaper = {
        "The sign counts: a push that is cheaper than a poll's share stays so, and polling never catches up.": (
            lambda request, poll, push: request / abs(push - poll)
        ),
        "No interval has a negative number of updates: a push that is the cheaper one is so at any λT (`math.inf`).": (
            lambda request, poll, push: request / (push - poll)
        ),
    }
    cases = [(100.0, 2.0, 12.7), (131.0, 179.0, 214.0), (90.0, 1.0, 4.3), (100.0, 12.0, 2.7), (7.0, 3.0, 3.0)]
    never = "Where pushing an update costs no more than a poll's share of it, there is no such λT: say `math.inf`."
    praise = "A poll pays when the updates it saves from being pushed are worth it."

    def guarded(formula: Callable[..., float]) -> Callable[..., float]:
        return lambda request, poll, push: formula(request, poll, push) if push > poll else math.inf

    named: dict[str, Any] = {text: (formula, guarded(formula)) for text, formula in mistakes.items()}
    return compared(function, theory.poll_or_push, named | cheaper, cases, praise, only={never: (3, 4)})


def polls_fit(function: Callable[[int, float, float, float, float, float], bool]) -> Verdict:
    """Exercise: `polls_fit(clients, rate, budget, transit, request, cores)`: whether polling keeps budget and cores.

    It does not if the transit alone takes more than the budget.
    """

    def by(interval: Callable[[float, float], float]) -> tuple[Callable[..., bool], Callable[..., bool]]:
        """The rule with an interval of budget and transit: with a look at its sign, and without."""

        def careless(n: float, rate: float, budget: float, transit: float, request: float, cores: float) -> bool:
            return n * request / interval(budget, transit) <= cores

        def careful(n: float, rate: float, budget: float, transit: float, request: float, cores: float) -> bool:
            return budget > transit and careless(n, rate, budget, transit, request, cores)

        return careful, careless

    right, careless = by(lambda budget, transit: (budget - transit) / RULE)

    def useful(n: float, rate: float, budget: float, transit: float, request: float, cores: float) -> bool:
        interval = (budget - transit) / RULE
        return interval > 0 and n * request * -math.expm1(-rate * interval) / interval <= cores

    mistakes: dict[str, Callable[..., Any] | tuple[Callable[..., Any], ...]] = {
        "With that interval the *mean* delay keeps the budget; it is the 95 % that have to.": (
            by(lambda budget, transit: 2 * (budget - transit))
        ),
        "That is one client's load: where are the others?": tuple(
            lambda n, *rest, rule=rule: rule(1, *rest) for rule in (right, careless)
        ),
        "Polls come with the clock, not with the updates: the rate has nothing to do with it.": (
            lambda n, rate, budget, transit, request, cores: n * rate * request <= cores,
            lambda n, rate, budget, transit, request, cores: budget > transit and n * rate * request <= cores,
        ),
        "Of the budget the answer's way takes its part: the interval has to fit into what is left.": (
            by(lambda budget, transit: budget / RULE)
        ),
        "It looks as if only polls that bring something were counted; the empty ones cost as much.": useful,
        "With that interval *every* update keeps the budget, at more polls than needed; 95 % have to.": (
            by(lambda budget, transit: budget - transit)
        ),
        "95 % of the updates wait less than 0.95 T: what is left of the budget is divided by that, not multiplied.": (
            by(lambda budget, transit: RULE * (budget - transit))
        ),
        "An update waits for the next poll, and the answer travels once: one transit, not two.": (
            by(lambda budget, transit: (budget - 2 * transit) / RULE)
        ),
        "It looks as if the interval were the budget itself: an update waits up to *T*, and then travels.": (
            by(lambda budget, transit: budget)
        ),
        "It is turned round: polling fits as long as the polls take *no more* than the cores.": (
            lambda *case: not right(*case),
            lambda *case: not careless(*case),
        ),
        "An interval cannot be negative: what travels for longer than the budget never keeps it.": careless,
    }
    praise = "The budget gives the interval, the interval the polls, and all clients' polls the load."
    return compared(function, right, mistakes, _deployments(), praise)


def _deployments() -> list[tuple[Any, ...]]:
    """Cases around the point where polling just fits; in a few the transit is longer than the budget."""
    rng = random.Random("polls_fit")
    cases: list[tuple[Any, ...]] = [
        (1000, 1.0, 1.0, 0.025, 1e-4, 0.5),  # fits well
        (10_000, 0.001, 1.0, 0.025, 1e-4, 0.5),  # does not, though one client would, and the useful polls alone
        (2, 1.0, 1.0, 0.1, 2.0, 0.5),  # does not, by far: not even one client would
    ]
    for n in range(60):
        clients, budget, request = rng.randint(2, 5000), rng.uniform(0.5, 5.0), rng.uniform(5e-5, 5e-4)
        transit = budget * rng.uniform(0.03, 0.4)
        share = rng.choice((rng.uniform(0.5, 2.0), rng.uniform(0.86, 1.14)))  # of the cores that is needed
        cores = share * clients * request * RULE / (budget - transit)
        if n % 10 == 9:
            budget, transit = transit, budget
        cases.append((clients, rng.choice((0.01, 1.0, 50.0)) / budget, budget, transit, request, cores))
    return cases
