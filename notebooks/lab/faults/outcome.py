"""What became of one cell: who noticed, what was lost, when it was over; the moments are kept, the words come last."""

import math
from dataclasses import dataclass

from lab.bench.result import Run, seconds

LETTERS = {"n": "nobody", "c": "the client", "s": "the server", "b": "both"}


@dataclass(frozen=True)
class Outcome:
    """One fault, one subject, one kind of client. Moments in seconds from the world's beginning.

    `client` and `server` are when each first noticed anything, None if it never did while the fault lasted; `back` is
    when the client had asked again with success and had all that there was; `resets` how often a client was told that
    something is gone. `run` holds every request and delivery. `aside` is what only this fault has to say.
    """

    fault: str
    subject: str
    mode: str
    keeps: bool
    began: float
    ended: float
    client: float | None
    server: float | None
    back: float
    resets: int
    run: Run
    aside: str = ""

    @property
    def lost(self) -> int:
        """Updates that never arrived."""
        return self.run.lost

    @property
    def duplicated(self) -> int:
        """Updates that were handed over again."""
        return self.run.duplicated

    @property
    def detected_in(self) -> float:
        """Seconds from the fault's beginning until the client noticed; infinite if it never did."""
        return math.inf if self.client is None else self.client - self.began

    @property
    def recovered_in(self) -> float:
        """Seconds from the fault's end until the client was connected again and had everything."""
        return max(0.0, self.back - self.ended)

    @property
    def seen_by(self) -> str:
        """A letter: n(obody), c(lient), s(erver), b(oth)."""
        return {(False, False): "n", (True, False): "c", (False, True): "s", (True, True): "b"}[
            self.client is not None, self.server is not None
        ]

    def __repr__(self) -> str:
        noticed = {"client": self.client, "server": self.server}
        seen = ", ".join(f"{who} in {seconds(at - self.began)}" for who, at in noticed.items() if at is not None)
        parts = [f"seen by {seen or 'nobody'}", f"lost {self.lost}"]
        if self.resets:
            parts[-1] += " (told so)"
        if self.duplicated:
            parts.append(f"twice {self.duplicated}")
        parts.append(f"recovered in {seconds(self.recovered_in)}" if self.recovered_in else "recovered at once")
        return "; ".join(parts + ([self.aside] if self.aside else []))
