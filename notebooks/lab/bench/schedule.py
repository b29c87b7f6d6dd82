"""What happens in an experiment, planned beforehand, so that every model is told of the same edits.

    Schedule.poisson(rate=2, seconds=8, seed=1) ─▶ edits with planned times ─▶ the experiment publishes them

The same arguments give the same schedule, on every machine.
"""

import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from servers.sources import synthetic_edits
from servers.tree import Edit


@dataclass(frozen=True)
class Schedule:
    """Edits in the order of their planned times, all within `seconds`; `name` says what kind of arrivals they are."""

    name: str
    seconds: float
    edits: tuple[Edit, ...]

    def __len__(self) -> int:
        """How many edits are planned."""
        return len(self.edits)

    def __repr__(self) -> str:
        return f"Schedule({self.name}: {len(self)} edits in {self.seconds:g} s)"

    @property
    def times(self) -> NDArray[np.float64]:
        """The planned moments (s), ascending, counted from the schedule's beginning."""
        return np.array([edit.at for edit in self.edits])

    @classmethod
    def poisson(cls, rate: float, seconds: float, *, seed: int = 1, payload: int = 0) -> Self:
        """Independent edits, `rate` a second on average: nobody can tell when the next one comes."""
        edits = synthetic_edits(rate, seed=seed, payload=payload)
        return cls(f"Poisson, {rate:g}/s", seconds, tuple(itertools.takewhile(lambda edit: edit.at < seconds, edits)))

    @classmethod
    def periodic(cls, every: float, seconds: float, *, phase: float = 0.0, seed: int = 1) -> Self:
        """One edit each `every` seconds, the first after `phase`."""
        times = itertools.takewhile(lambda at: at < seconds, (phase + n * every for n in itertools.count()))
        return cls.at(times, seconds, seed=seed, name=f"every {every:g} s")

    @classmethod
    def bursts(cls, rate: float, size: int, seconds: float, *, within: float = 0.2, seed: int = 1) -> Self:
        """`rate` edits a second on average, but `size` at a time, `within` seconds; the bursts come at random."""
        rng = random.Random(seed)
        beginnings = list[float]()
        while (begin := (beginnings[-1] if beginnings else 0.0) + rng.expovariate(rate / size)) < seconds:
            beginnings.append(begin)
        times = (begin + rng.uniform(0, within) for begin in beginnings for _ in range(size))
        inside = sorted(at for at in times if at < seconds)
        return cls.at(inside, seconds, seed=seed, name=f"bursts of {size}, {rate:g}/s")

    @classmethod
    def at(cls, times: Iterable[float], seconds: float, *, seed: int = 1, name: str = "planned by hand") -> Self:
        """Edits at exactly these moments (s). Raises ValueError unless they ascend within `seconds`."""
        edits = tuple(replace(edit, at=at) for at, edit in zip(times, synthetic_edits(1.0, seed=seed), strict=False))
        moments = [edit.at for edit in edits]
        if moments != sorted(moments) or not all(0 <= at <= seconds for at in moments):
            raise ValueError(f"the planned times ascend from 0 to {seconds:g} s")
        return cls(name, seconds, edits)
