"""What happens in an experiment, planned beforehand, so that every model is told of the same edits.

    Schedule.poisson(rate=2, seconds=8, seed=1) ─▶ edits with planned times ─▶ the experiment publishes them

The same arguments give the same schedule, on every machine. A rate of 0 gives an empty one; what would be endless, or
more than MOST_EDITS, is a ValueError at once.
"""

import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from servers.limits import check_finite, check_positive, check_whole
from servers.sources import synthetic_edits
from servers.tree import Edit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_EDITS = 1_000_000  # of one schedule: each is an object in memory
MOST_BYTES = 2**28  # of one schedule's payloads


@dataclass(frozen=True)
class Schedule:
    """Edits in the order of their planned times, all within `seconds`; `name` says what kind of arrivals they are.

    Raises ValueError unless the times ascend from 0 to `seconds`.
    """

    name: str
    seconds: float
    edits: tuple[Edit, ...]

    def __post_init__(self) -> None:
        check_finite(seconds=self.seconds)
        moments = [0.0, *(edit.at for edit in self.edits), self.seconds]
        if not all(earlier <= later for earlier, later in itertools.pairwise(moments)):
            raise ValueError(f"the planned times ascend from 0 to {self.seconds:g} s")

    def __len__(self) -> int:
        """How many edits are planned."""
        return len(self.edits)

    def __repr__(self) -> str:
        return f"Schedule({self.name}: {len(self)} edits in {self.seconds:g} s)"

    @property
    def times(self) -> "NDArray[np.float64]":
        """The planned moments (s), ascending, counted from the schedule's beginning."""
        import numpy as np  # for those who reckon: an experiment does without

        return np.array([edit.at for edit in self.edits])

    @classmethod
    def poisson(cls, rate: float, seconds: float, *, seed: int = 1, payload: int = 0) -> Self:
        """Independent edits, `rate` a second on average: nobody can tell when the next one comes."""
        check_finite(rate=rate, seconds=seconds)
        check_whole(payload=payload, most=MOST_BYTES)
        _bounded(rate * seconds, payload)
        edits = synthetic_edits(rate, seed=seed, payload=payload) if rate else ()
        return cls(f"Poisson, {rate:g}/s", seconds, tuple(itertools.takewhile(lambda edit: edit.at < seconds, edits)))

    @classmethod
    def periodic(cls, every: float, seconds: float, *, phase: float = 0.0, seed: int = 1) -> Self:
        """One edit each `every` seconds, the first after `phase`."""
        check_positive(every=every)
        check_finite(seconds=seconds, phase=phase)
        _bounded(seconds / every)
        times = itertools.takewhile(lambda at: at < seconds, (phase + n * every for n in itertools.count()))
        return cls.at(times, seconds, seed=seed, name=f"every {every:g} s")

    @classmethod
    def bursts(cls, rate: float, size: int, seconds: float, *, within: float = 0.2, seed: int = 1) -> Self:
        """`rate` edits a second on average, but `size` at a time, `within` seconds; the bursts come at random."""
        check_finite(rate=rate, seconds=seconds, within=within)
        check_whole(size=size, least=1, most=MOST_EDITS)
        _bounded(rate * seconds + size * (rate > 0))  # a single burst may come
        rng, bursts = random.Random(seed), rate / size
        beginnings = list[float]()
        while bursts and (begin := (beginnings[-1] if beginnings else 0.0) + rng.expovariate(bursts)) < seconds:
            beginnings.append(begin)
        times = (begin + rng.uniform(0, within) for begin in beginnings for _ in range(size))
        inside = sorted(at for at in times if at < seconds)
        return cls.at(inside, seconds, seed=seed, name=f"bursts of {size}, {rate:g}/s")

    @classmethod
    def at(cls, times: Iterable[float], seconds: float, *, seed: int = 1, name: str = "planned by hand") -> Self:
        """Edits at exactly these moments (s). Raises ValueError unless they ascend within `seconds`."""
        check_finite(seconds=seconds)
        moments = list(itertools.islice(times, MOST_EDITS + 1))
        _bounded(len(moments))
        edits = tuple(replace(edit, at=at) for at, edit in zip(moments, synthetic_edits(1.0, seed=seed), strict=False))
        return cls(name, seconds, edits)


def _bounded(edits: float, payload: int = 0) -> None:
    """Raise ValueError for a schedule that would be too large to keep."""
    if edits > MOST_EDITS:
        raise ValueError(f"a schedule has {MOST_EDITS:,} edits at most, not {edits:,.6g}")
    if edits * payload > MOST_BYTES:
        raise ValueError(f"a schedule's contents are {MOST_BYTES:,} bytes at most, not {edits * payload:,.6g}")
