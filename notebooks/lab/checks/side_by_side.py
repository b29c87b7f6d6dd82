"""The checks of notebook 05: what a delivery costs, where pushing costs the same, whether polling fits."""

import math
from collections.abc import Callable
from typing import Any

from lab.checks.verdict import Verdict, compared


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
    }
    cases = [(100.0, 2.0, 0.5, 4.0), (100.0, 2.0, 0.01, 5.0), (80.0, 3.0, 20.0, 1.0)]
    praise = "Every poll is paid, and shared by the λT updates of its interval."

    def right(request: float, delivery: float, rate: float, interval: float) -> float:
        return request / (rate * interval) + delivery

    return compared(function, right, mistakes, cases, praise)


def break_even(function: Callable[[float, float, float], float]) -> Verdict:
    """Exercise: `break_even(request, poll_delivery, push_delivery)`: λT at which polling and pushing cost the same."""
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
    }
    cases = [(100.0, 2.0, 12.0), (131.0, 179.0, 214.0), (90.0, 1.0, 4.0)]
    praise = "A poll pays when the updates it saves from being pushed are worth it."

    def right(request: float, poll_delivery: float, push_delivery: float) -> float:
        return request / (push_delivery - poll_delivery)

    return compared(function, right, mistakes, cases, praise)


def polls_fit(function: Callable[[int, float, float, float, float, float], bool]) -> Verdict:
    """Exercise: `polls_fit(clients, rate, budget, transit, request, cores)`: whether polling keeps budget and cores."""

    def fits(interval: float, clients: float, request: float, cores: float) -> bool:
        return clients * request / interval <= cores

    mistakes: dict[str, Callable[..., Any]] = {
        "With that interval the *mean* delay keeps the budget; it is the 95 % that have to.": (
            lambda n, rate, budget, transit, request, cores: fits(2 * (budget - transit), n, request, cores)
        ),
        "That is one client's load: where are the others?": (
            lambda n, rate, budget, transit, request, cores: fits((budget - transit) / 0.95, 1, request, cores)
        ),
        "Polls come with the clock, not with the updates: the rate has nothing to do with it.": (
            lambda n, rate, budget, transit, request, cores: n * rate * request <= cores
        ),
        "Of the budget the answer's way takes its part: the interval has to fit into what is left.": (
            lambda n, rate, budget, transit, request, cores: fits(budget / 0.95, n, request, cores)
        ),
        "It looks as if only polls that bring something were counted; the empty ones cost as much.": (
            lambda n, rate, budget, transit, request, cores: (
                n * request * -math.expm1(-rate * (budget - transit) / 0.95) / ((budget - transit) / 0.95) <= cores
            )
        ),
    }
    cases = [
        (1000, 1.0, 1.0, 0.025, 1e-4, 0.5),  # fits well
        (10_000, 0.001, 1.0, 0.025, 1e-4, 0.5),  # does not: one client would, and so would the useful polls alone
        (10_000, 1.0, 2.0, 0.1, 1e-4, 0.3),  # does not, but its mean would
        (1000, 50.0, 2.0, 0.1, 1e-4, 0.3),  # fits, although updates come often
        (1000, 1.0, 1.0, 0.5, 1e-4, 0.15),  # does not, because of the way back
        (2, 1.0, 1.0, 0.1, 2.0, 0.5),  # does not, by far
    ]
    praise = "The budget gives the interval, the interval the polls, and all clients' polls the load."

    def right(n: int, rate: float, budget: float, transit: float, request: float, cores: float) -> bool:
        return fits((budget - transit) / 0.95, n, request, cores)

    return compared(function, right, mistakes, cases, praise)
