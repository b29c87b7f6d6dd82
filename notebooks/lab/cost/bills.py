"""Bills: what a month costs, by the laws and by counts, and where the bills of two models are equal.

Units, Prices ─▶ Bills ─▶ month(model, rate): by law │ counted(run): by what happened │ where two of them cross
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lab import theory
from lab.bench import Run
from lab.theory import LONG, SHORT, SOCKET, STREAM, Prices, Units, Work

MONTH = 365.25 / 12 * 86400  # seconds
BILLED = 1000  # clients


def counted(run: Run, messages: int = 0) -> Work:
    """A run as work per client and second."""
    seconds = run.clients * run.schedule.seconds
    asked = len(run.requests_between(0, run.schedule.seconds))
    return Work(asked / seconds, len(run.first_deliveries) / seconds, 1.0, messages / seconds)


def monthly(work: Work, units: Units, prices: Prices) -> Any:
    """What a month costs for BILLED clients."""
    return BILLED * MONTH * work.cost(units).price(prices)


@dataclass(frozen=True)
class Bills:
    """Of one column's units, at these prices. Months are those of a thousand clients."""

    units: Mapping[str, Units]
    prices: Prices

    def month(self, model: str, rate: Any, **options: Any) -> Any:
        """By the laws: `rate` updates a second; the options are those of theory.work."""
        return monthly(theory.work(model, rate, **options), self.units[model], self.prices)

    def counted(self, run: Run, messages: int = 0) -> float:
        """By what happened in a run, and the messages that its clients said."""
        return float(monthly(counted(run, messages), self.units[run.model], self.prices))

    def all_counted(self, runs: Mapping[str, Mapping[float, Run | tuple[Run, int]]]) -> dict[str, dict[float, float]]:
        """The same of several runs or conversations, by model and by the number that was varied."""

        def bill(one: Run | tuple[Run, int]) -> float:
            return self.counted(*one) if isinstance(one, tuple) else self.counted(one)

        return {model: {x: bill(one) for x, one in each.items()} for model, each in runs.items()}

    def price(self, model: str, unit: str) -> float:
        """Of one request, delivery, message, or second held."""
        return float(getattr(self.units[model], unit).price(self.prices))

    def poll_or_push(self, interval: float) -> float:
        """Flip 1: the λT from which on a poll is cheaper than an event stream."""
        kept = theory.poll_kept(interval, self.price(SHORT, "held"), self.price(STREAM, "held"))
        a, inside = self.price(SHORT, "request"), self.price(SHORT, "delivery")
        return theory.poll_or_push(a, inside, self.price(STREAM, "delivery"), kept=kept)

    def long_poll_or_push(self, rtt: float) -> float:
        """Flip 2: the λ·RTT from which on a long poll is cheaper than an event stream."""
        kept = self.price(LONG, "held") - self.price(STREAM, "held")
        a, inside = self.price(LONG, "request"), self.price(LONG, "delivery")
        return theory.long_poll_or_push(a, inside, self.price(STREAM, "delivery"), rtt=rtt, kept=kept)

    def stream_or_socket(self, rate: float) -> float:
        """Flip 3: the messages up per update from which on a WebSocket is cheaper than an event stream."""
        kept = (self.price(SOCKET, "held") - self.price(STREAM, "held")) / rate
        down = self.price(STREAM, "delivery"), self.price(SOCKET, "delivery")
        up = self.price(STREAM, "message"), self.price(SOCKET, "message")
        return theory.stream_or_socket(down[0], up[0], down[1], up[1], kept=kept)
