"""What a decision depends on: how many follow what, how fresh, from where, and what stands in between.

One dataclass, every number with its unit, every impossible one refused in one sentence.
"""

import math
import numbers
from dataclasses import dataclass, fields
from decimal import Decimal
from fractions import Fraction
from typing import Any, get_type_hints

from lab import theory
from lab.bench.result import seconds
from lab.theory.numbers import fitting

FOLLOWERS = ("programs", "browsers", "phones", "devices", "servers")
FROM_NOTHING = ("rate", "upstream", "payload")  # may be 0
WITHOUT_END = ("memory_limit", "cut_after")  # may be infinite


@dataclass(frozen=True)
class Requirements:
    """What the decision depends on. Raises ValueError with one sentence on what cannot be.

    clients        how many follow
    rate           updates per second, for each client
    budget         freshness: 95 % of the updates are to be no later than this (s)
    rtt            round trip between client and server (s)
    upstream       messages that a client sends, per update that it gets
    payload        bytes of a changed file that clients want along with the news
    wanted         the share of clients that want it
    latest         True where only the newest state counts: what is overtaken need not be sent
    lossy          True where a late update is worth nothing, and may rather be lost (positions, voice)
    followers      who: "programs"; "browsers"; "phones", apps that sleep when nobody looks; "devices", small ones
                   on radio links; "servers", with addresses of their own where they can be called
    tabs           how many tabs a browser has open that follow
    http2          True where the whole way to the browser speaks HTTP/2 or 3
    headers        True where the client has to send a header of its own, such as Authorization
    shared         True where all clients get the same, so that a cache may answer for the server
    streams_pass   False where something on the way breaks what is not a short request and its answer
    sockets_pass   False where something on the way lets no WebSocket through
    cut_after      s after which the platform ends every answer, however busy; infinite where none does
    history        how many updates the server keeps
    memory_limit   bytes that the connections may take on the server, in all
    hold           the longest a long poll may be held (s)
    """

    clients: int = 1000
    rate: float = 1.0
    budget: float = 1.0
    rtt: float = 0.05
    upstream: float = 0.0
    payload: float = 0.0
    wanted: float = 1.0
    latest: bool = False
    lossy: bool = False
    followers: str = "programs"
    tabs: int = 1
    http2: bool = False
    headers: bool = False
    shared: bool = True
    streams_pass: bool = True
    sockets_pass: bool = True
    cut_after: float = math.inf
    history: int = 10_000
    memory_limit: float = math.inf
    hold: float = theory.HOLD

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for each in fields(self):
            value, name, kind = getattr(self, each.name), each.name.replace("_", " "), types[each.name]
            if kind is bool:
                _check_truth(name, value)
            elif kind is str:
                if value not in FOLLOWERS:
                    raise ValueError(f"{name} are {', '.join(FOLLOWERS)}, not {value!r}")
            else:
                object.__setattr__(self, each.name, _checked(each.name, name, value, kind))
        if self.wanted > 1:
            raise ValueError(f"wanted is a share of the clients, above 0 and at most 1, not {self.wanted!r}")
        if self.budget < self.rtt / 2:
            raise ValueError(
                f"nothing is fresher than one transit: with a round trip of {seconds(self.rtt)} "
                f"the budget is {seconds(self.rtt / 2)} or more, not {seconds(self.budget)}"
            )

    @property
    def transit(self) -> float:
        """One way through the network (s): half the round trip."""
        return self.rtt / 2

    @property
    def interval(self) -> float:
        """The longest polling interval (s) that keeps the budget, and after which the history still has what came.

        Where only the newest state counts, it always has.
        """
        rate = 0.0 if self.latest else self.rate
        longest = float(theory.interval_for(self.budget, self.transit, rate))
        return min(longest, self.bridged / rate) if rate else longest

    @property
    def bridged(self) -> float:
        """How many updates may come on average so that with five deviations more the history keeps them."""
        return fitting(self.history)

    @property
    def browsers(self) -> bool:
        """Whether the clients are pages in browsers."""
        return self.followers == "browsers"

    @property
    def talk(self) -> float:
        """Messages that a client sends in a second."""
        return self.upstream * self.rate


def _check_truth(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is True or False, not {value!r}")


def _checked(field: str, name: str, value: Any, kind: Any) -> float | int:
    """The number as Python's own, whoever's number it was."""
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, Fraction, Decimal)):
        raise ValueError(f"{name} is a number, not {value!r}")
    number = float(value)
    if field in FROM_NOTHING:
        if not 0 <= number < math.inf:
            raise ValueError(f"{name} is a number from 0 up, not {value!r}")
    elif not (0 < number < math.inf or (field in WITHOUT_END and number == math.inf)):
        raise ValueError(f"{name} is a number above 0, not {value!r}")
    if kind is int:
        if number != int(number):
            raise ValueError(f"{name} are counted in whole numbers, not {value!r}")
        return int(number)
    return number
