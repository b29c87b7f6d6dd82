"""What the clients of all models share: where one stands in the log, and how it fails and recovers."""

import asyncio
import contextlib
import math
import random
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import httpx

from lab.clients.answers import (
    LONGEST_CURSOR,
    Answer,
    BadAnswer,
    BadCursor,
    GaveUp,
    News,
    Renewed,
    Reset,
    Unavailable,
    split,
)
from lab.clients.connections import address_below

PASSING = (Unavailable, httpx.RequestError, OSError)  # OSError: refused, reset, timed out, no such host

Attempt = Callable[[], AsyncGenerator[Answer | Reset, None]]


@dataclass(frozen=True, slots=True)
class Retry:
    """How long to pause after failure number n (from 0), and when to stop trying.

    The pause is what the server asks for (Retry-After, `retry:`) and, on top, a number of seconds drawn from
    [0, min(cap, base 2^n)]: "full jitter" (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015), so that
    clients that broke together do not come back together. What ends the count is an attempt that went well for `base`
    seconds: to be let in, and out again, is no recovery. `rng` draws; without one, the `random` module.
    """

    base: float = 1.0
    cap: float = 30.0
    give_up_after: float | None = None
    rng: random.Random | None = None

    def __post_init__(self) -> None:
        pauses = 0 <= self.base < math.inf and 0 <= self.cap < math.inf
        if not (pauses and (self.give_up_after is None or self.give_up_after > 0)):
            raise ValueError(f"pauses are 0 s or more, and giving up takes more than 0 s, not {self}")

    def ceiling(self, failures: int) -> float:
        """The most that jitter adds after this many failures (s)."""
        return min(self.cap, self.base * 2.0 ** min(failures, 100))  # 2.0 ** 1024, hours later, is an OverflowError

    def jitter(self, failures: int) -> float:
        """What it adds (s)."""
        return (self.rng or random).uniform(0, self.ceiling(failures))


class Log(Protocol):
    """What counts requests; `lab.bench.experiment.ClientLog` is one."""

    def request(self) -> contextlib.AbstractContextManager[object]:
        """The context of one handshake, poll or reconnect, until its answer or its stream is over."""


RETRY = Retry()


class Follower:
    """What all models share: where a client stands in the log, and how it fails and recovers."""

    def __init__(self, url: str, path: str, cursor: str | None, retry: Retry, log: Log | None) -> None:
        if cursor is not None and not re.fullmatch(f"[!-~]{{0,{LONGEST_CURSOR}}}", cursor):
            raise BadCursor(f"a cursor is plain ASCII without spaces, and short, not {cursor[:64]!r}")
        self.url = address_below(url, path)
        self.cursor = "0" if cursor == "" else cursor  # both are the oldest kept; only this one fits in a header
        self.retry, self.log = retry, log
        self.floor = 0.0  # the pause after a failure that the server has asked for (s)
        self.failures = 0  # in a row
        self.answered = math.inf  # loop time of this attempt's first answer
        self.cause: BaseException | None = None
        self.deadline = math.inf  # loop time; finite while there has been no answer since a failure, or since the start

    @property
    def left(self) -> float:
        """Seconds until it gives up; infinite while all is well."""
        return self.deadline - now()

    def address(self, **parameters: str) -> httpx.URL:
        """Where to ask for what is later than the cursor."""
        after = {} if self.cursor is None else {"after": self.cursor}
        return self.url.copy_merge_params(after | parameters)

    def request(self) -> contextlib.AbstractContextManager[object]:
        """The context of one request, counted."""
        return self.log.request() if self.log else contextlib.nullcontext()

    async def follow(self, attempt: Attempt) -> AsyncGenerator[News, None]:
        """Attempt after attempt until the server says stop, refuses, or has not answered for too long."""
        self.start_clock()
        while True:
            self.answered = math.inf
            try:
                async with contextlib.aclosing(attempt()) as answers:
                    while (answer := await self.next(answers)) is not None:
                        for news in self.take(answer):
                            yield news
                return
            except PASSING as error:
                await self.pause(error)

    def start_clock(self) -> None:
        if self.retry.give_up_after is not None and self.deadline == math.inf:
            self.deadline = now() + self.retry.give_up_after

    async def next(self, answers: AsyncGenerator[Answer | Reset, None]) -> Answer | Reset | None:
        """The next answer, None at the end. Raises GaveUp at the deadline, and what the attempt raises."""
        limit = asyncio.timeout_at(None if self.deadline == math.inf else self.deadline)
        try:
            async with limit:
                answer = await anext(answers)
        except StopAsyncIteration:
            return None
        except TimeoutError as error:
            if limit.expired():
                raise self.gave_up(error) from self.cause or error
            raise
        self.answered = min(self.answered, now())
        self.deadline = math.inf
        return answer

    def take(self, answer: Answer | Reset) -> Iterator[News]:
        """What of an answer is news, and the cursor moved past it."""
        if isinstance(answer, Reset):
            self.cursor = answer.cursor
            yield answer
            return
        for update in answer.updates:
            if self.moves_to(update.cursor):
                yield update
        if answer.cursor is not None:
            self.moves_to(answer.cursor)

    def moves_to(self, cursor: str) -> bool:
        """Go forward to a cursor of the server's; say no, and stay, if it does not lie ahead."""
        epoch, seq = split(cursor)
        if self.cursor not in (None, "0"):
            known_epoch, known_seq = split(self.cursor)
            if epoch != known_epoch:
                raise BadAnswer(f"the log changed from {self.cursor} to {cursor} without a reset")
            if seq <= known_seq:
                return False
        self.cursor = cursor
        return True

    async def pause(self, error: Exception) -> None:
        """Wait until the next attempt may begin. Raises GaveUp when the time is over before that."""
        self.cause = error
        self.start_clock()
        asked = error.wait if isinstance(error, Unavailable) else 0.0
        if now() - self.answered >= self.retry.base:
            self.failures = 0
            if isinstance(error, Renewed):  # it comes to each at a time of its own: no jitter, and no failure
                await asyncio.sleep(min(asked, self.left))
                return
        pause = max(asked, self.floor) + self.retry.jitter(self.failures)
        self.failures += 1
        await asyncio.sleep(min(pause, self.left))
        if self.left <= 0:
            raise self.gave_up(error) from error

    def gave_up(self, error: BaseException) -> GaveUp:
        cause = named(self.cause or error)
        return GaveUp(f"no answer from {self.url} for {self.retry.give_up_after:g} s ({cause})")


def named(error: BaseException) -> str:
    """What kind of failure it was, and what it says."""
    if isinstance(error, httpx.ConnectError):  # says "All connection attempts failed"; the innermost cause says why
        while inner := error.__cause__ or error.__context__:
            error = inner
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def check_positive(**seconds: float | None) -> None:
    """Raise ValueError for what is no number of seconds above 0; None says nothing."""
    for name, value in seconds.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is a number of seconds above 0, not {value!r}")


def now() -> float:
    """Loop time (s)."""
    return asyncio.get_running_loop().time()
