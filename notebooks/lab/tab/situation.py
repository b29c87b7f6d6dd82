"""A situation: what happens on a stage, as the controls of a page say it, and as a link carries it.

{"models": ["sse"], "rate": 0.5, "cut": 20, ...} ─▶ Situation.of ─▶ a Situation, or a ValueError in one line
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from servers.limits import check_finite, check_whole
from servers.models import MODELS

SLUGS = tuple(model.slug for model in MODELS)


class Control(NamedTuple):
    """A control of a page: a number from `least` to `most`, `unit` behind it, and the models that it matters to."""

    name: str
    label: str
    least: float
    most: float
    step: float
    unit: str = ""
    models: tuple[str, ...] = SLUGS

    @property
    def usual(self) -> float:
        """Where it stands at first."""
        value: float = getattr(Situation, self.name)
        return value


CONTROLS = (
    Control("rate", "Updates a second", 0, 10, 0.1),
    Control("interval", "Polling interval", 0.5, 60, 0.5, "s", ("short-polling",)),
    Control("hold", "Longest hold", 1, 60, 1, "s", ("long-polling",)),
    Control("delay", "One-way delay", 0, 2, 0.005, "s"),
    Control("loss", "Share of packets lost", 0, 0.5, 0.01),
    Control("clients", "Clients of each model", 1, 10, 1),
    Control("seconds", "The schedule lasts", 10, 3600, 10, "s"),
    Control("cut", "Connections cut at, 0: never", 0, 3600, 1, "s"),
    Control("dark", "Black hole from, 0: never", 0, 3600, 1, "s"),
    Control("darkness", "The black hole lasts", 1, 300, 1, "s"),
    Control("heartbeat", "Heartbeat", 1, 60, 1, "s", ("websocket", "sse")),
    Control("seed", "Seed", 0, 9999, 1),
)
WHOLE = ("clients", "seed")


@dataclass(frozen=True)
class Situation:
    """Clients of some models follow one schedule over one network. Times in seconds, `loss` is a share of the packets.

    `cut` and `dark` count from the schedule's beginning; 0 means that it does not happen. Raises ValueError for what
    no control could say.
    """

    models: tuple[str, ...]
    rate: float = 0.5
    interval: float = 5
    hold: float = 30
    delay: float = 0.05
    loss: float = 0
    clients: int = 3
    seconds: float = 60
    cut: float = 0
    dark: float = 0
    darkness: float = 20
    heartbeat: float = 15
    seed: int = 1

    def __post_init__(self) -> None:
        known = [slug for slug in SLUGS if slug in self.models]
        if not self.models or list(self.models) != known:
            raise ValueError(f"models are some of {', '.join(SLUGS)}, in this order, not {', '.join(self.models)!r}")
        for control in CONTROLS:
            value = getattr(self, control.name)
            if control.name in WHOLE:
                check_whole(**{control.name: value}, least=int(control.least), most=int(control.most))
            else:
                check_finite(**{control.name: value}, most=control.most)
                if value < control.least:
                    raise ValueError(f"{control.name} is at least {control.least:g}, not {value:g}")

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Self:
        """From what a page or a link says; what it leaves out is as usual. Raises ValueError."""
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(said) - set(names)):
            raise ValueError(f"a situation has no {unknown[0]!r}: it has {', '.join(names)}")
        models = said.get("models", SLUGS)
        if not isinstance(models, list | tuple) or not all(isinstance(each, str) for each in models):
            raise ValueError("models are a list of names")
        numbers = {name: value for name, value in said.items() if name != "models"}
        if wrong := [
            n for n, value in numbers.items() if isinstance(value, bool) or not isinstance(value, int | float)
        ]:
            raise ValueError(f"{wrong[0]} is a number, not {numbers[wrong[0]]!r}")
        return cls(models=tuple(models), **numbers)

    @property
    def calm(self) -> bool:
        """Whether nothing disturbs the network: what the laws hold for."""
        return not (self.loss or self.cut or self.dark)
