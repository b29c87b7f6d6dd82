"""The checks of notebook 08: right answers pass, however unusual, and wrong ones are told what is wrong."""

import asyncio
import contextlib
import itertools
import math
import random
import time
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from lab import checks
from lab.checks import Conflict, SharedLog
from tests.support_checks import Corpus, judging


async def stub(log: SharedLog, update: Any) -> Any:
    """An exercise's empty function."""


def no_fleet(*_: Any) -> Any:
    """An exercise's empty function."""


async def tries_again(log: SharedLog, update: Any) -> int:
    while True:
        number = await log.last() + 1
        try:
            await log.add(number, update)
        except Conflict:
            continue
        return number


async def recursive(log: SharedLog, update: Any) -> int:
    number = await log.last() + 1
    try:
        await log.add(number, update)
    except Conflict:
        return await recursive(log, update)
    return number


async def next_higher(log: SharedLog, update: Any) -> int:
    for number in itertools.count(await log.last() + 1):  # what is refused is taken: the next one
        try:
            await log.add(number, update)
        except Conflict:
            continue
        return number
    raise AssertionError


async def looks_again(log: SharedLog, update: Any) -> int:
    number = await log.last()
    done = False
    while not done:
        number = max(number, await log.last()) + 1
        try:
            await log.add(number, update)
            done = True
        except Conflict:
            number -= 1
    return number


class Appender:
    """An object that can be called."""

    async def __call__(self, log: SharedLog, update: Any) -> int:
        return await tries_again(log, update)


NEXT: dict[SharedLog, int] = {}


async def by_a_guess(log: SharedLog, update: Any) -> int:
    while True:
        number = NEXT.setdefault(log, 1)  # right if nobody else has written since
        try:
            await log.add(number, update)
        except Conflict:
            NEXT[log] = await log.last() + 1
        else:
            NEXT[log] = number + 1
            return number


LOCK: dict[SharedLog, asyncio.Lock] = {}


async def one_lock(log: SharedLog, update: Any) -> int:
    async with LOCK.setdefault(log, asyncio.Lock()):
        number = await log.last() + 1
        await log.add(number, update)
        return number


async def with_a_pause(log: SharedLog, update: Any) -> int:
    while True:
        try:
            number = 1 + await log.last()
            await log.add(number, update)
            return number
        except Conflict:
            await asyncio.sleep(random.random() / 50)


async def reads_then_writes(log: SharedLog, update: Any) -> int:
    number = await log.last() + 1
    await log.add(number, update)
    return number


async def swallows(log: SharedLog, update: Any) -> int:
    number = await log.last() + 1
    try:
        await log.add(number, update)
    except Conflict:
        pass
    return number


async def time_stamp(log: SharedLog, update: Any) -> int:
    number = time.time_ns()
    await log.add(number, update)
    return number


async def clock(log: SharedLog, update: Any) -> int:
    number = round(1e6 * asyncio.get_running_loop().time()) + 1
    await log.add(number, update)
    return number


async def counts(log: SharedLog, update: Any) -> int:
    number = await log.count()
    await log.add(number, update)
    return number


async def counts_again(log: SharedLog, update: Any) -> int:
    while True:
        number = await log.count()
        try:
            await log.add(number, update)
            return number
        except Conflict:
            pass


async def counts_and_swallows(log: SharedLog, update: Any) -> int:
    number = await log.count()
    try:
        await log.add(number, update)
    except Conflict:
        pass
    return number


async def the_same_for_ever(log: SharedLog, update: Any) -> int:
    number = await log.last() + 1
    while True:
        try:
            await log.add(number, update)
            return number
        except Conflict:
            pass


async def raises_its_own(log: SharedLog, update: Any) -> int:
    number = await log.last() + 1
    try:
        await log.add(number, update)
    except Conflict:
        raise RuntimeError("taken") from None
    return number


async def not_the_next(log: SharedLog, update: Any) -> int:
    while True:
        number = await log.last()
        try:
            await log.add(number, update)
            return number
        except Conflict:
            pass


async def ticket(log: SharedLog, update: Any) -> int:
    number = await log.count()
    while await log.last() != number - 1:
        pass
    await log.add(number, update)
    return number


async def late_ticket(log: SharedLog, update: Any) -> int:
    number = await log.count()
    while await log.last() < number - 1:
        pass
    await log.add(number, update)
    return number


async def always_from_one(log: SharedLog, update: Any) -> int:
    for number in itertools.count(1):
        with contextlib.suppress(Conflict):
            await log.add(number, update)
            return number
    raise AssertionError


async def from_zero(log: SharedLog, update: Any) -> int:
    while True:
        number = await log.last()
        number += bool(log.entries)
        try:
            await log.add(number, update)
            return number
        except Conflict:
            pass


async def adds_twice(log: SharedLog, update: Any) -> int:
    await tries_again(log, update)
    return await tries_again(log, update)


async def returns_nothing(log: SharedLog, update: Any) -> None:
    await tries_again(log, update)


async def never_adds(log: SharedLog, update: Any) -> int:
    return await log.last() + 1


async def in_tens(log: SharedLog, update: Any) -> int:
    while True:
        number = await log.last() + 10
        try:
            await log.add(number, update)
            return number
        except Conflict:
            pass


async def yields(log: SharedLog, update: Any) -> Any:
    yield await tries_again(log, update)


async def text_as_number(log: SharedLog, update: Any) -> Any:
    await log.add(f"{await log.last() + 1}", update)  # type: ignore[arg-type]


APPENDS = Corpus(
    checks.appends_contiguously,
    stub,
    right={
        "tries again": tries_again,
        "calls itself": recursive,
        "the next higher": next_higher,
        "with a pause": with_a_pause,
        "looks again": looks_again,
        "always from one": always_from_one,
        "by a guess": by_a_guess,
        "an object": Appender(),
    },
    wrong={
        "reads, then writes": (reads_then_writes, "Read, then write"),
        "a lock, in one process": (one_lock, "no lock in memory keeps that one out"),
        "swallows the refusal": (swallows, "a Conflict says that it is not in the log"),
        "a time stamp": (time_stamp, "no time stamp"),
        "the clock": (clock, "no time stamp"),
        "in tens": (in_tens, "no time stamp"),
        "a counter": (counts, "Who counted first need not add first"),
        "a counter, again": (counts_again, "counted and then not used is a gap"),
        "a counter, swallowed": (counts_and_swallows, "need not add first"),
        "an error of its own": (raises_its_own, "It raised RuntimeError: taken"),
        "the same for ever": (the_same_for_ever, "adds number 1 again and again"),
        "the newest, not the next": (not_the_next, "adds number 0 again and again"),
        "a ticket": (ticket, "waits for ever beside a writer of another process: that one asks no counter"),
        "a ticket that is late": (late_ticket, "beside a writer of another process: that one asks no counter"),
        "from zero": (from_zero, "number is 1"),
        "twice": (adds_twice, "in the log twice"),
        "returns nothing": (returns_nothing, "return its number"),
        "never adds": (never_adds, "each has to be added"),
        "text": (text_as_number, "whole number"),
        "a generator": (yields, "`yield`"),
        "no coroutine": (lambda log, update: 3, "async def"),
    },
)


def fleet(n: int, rate: float, deadline: float, c: float, beat: float, every: float, most: int) -> int:
    return math.ceil(n / int(min(deadline / c, 0.7 / (rate * c + beat / every), most)))


def by_search(n: int, rate: float, deadline: float, c: float, beat: float, every: float, most: int) -> int:
    for processes in itertools.count(1):
        each = -(-n // processes)
        if each * c <= deadline and each * (rate * c + beat / every) <= 0.7 and each <= most:
            return processes
    raise AssertionError


def by_numpy(n: int, rate: float, deadline: float, c: float, beat: float, every: float, most: int) -> Any:
    return np.ceil(n / np.floor(np.min([deadline / c, 0.7 / (rate * c + beat / every), most])))


def by_fractions(n: int, rate: float, deadline: float, c: float, beat: float, every: float, most: int) -> int:
    work = Fraction(rate) * Fraction(c) + Fraction(beat) / Fraction(every)
    return -(-n // min(int(Fraction(deadline) / Fraction(c)), int(Fraction(7, 10) / work), most))


def by_decimals(n: int, rate: float, deadline: float, c: float, beat: float, every: float, most: int) -> Any:
    return Decimal(fleet(n, rate, deadline, c, beat, every, most))


def spelt_out(
    clients: int, rate: float, deadline: float, delivery: float, beat: float, heartbeat: float, descriptors: int
) -> int:
    most = min(math.floor(deadline / delivery), descriptors)
    while most * (rate * delivery + beat / heartbeat) > 0.7:
        most = math.floor(0.7 / (rate * delivery + beat / heartbeat))
    whole, rest = divmod(clients, most)
    return whole + bool(rest)


FLEETS = Corpus(
    checks.size_fleet,
    no_fleet,
    right={
        "the rule": fleet,
        "by search": by_search,
        "numpy": by_numpy,
        "fractions": by_fractions,
        "a decimal": by_decimals,
        "spelt out": spelt_out,
        "the largest of three fleets": lambda n, r, d, c, b, h, m: max(
            -(-n // int(d / c)), -(-n // int(0.7 / (r * c + b / h))), -(-n // m)
        ),
    },
    wrong={
        "no heartbeats": (lambda n, r, d, c, b, h, m: math.ceil(n / int(min(d / c, 0.7 / (r * c), m))), "heartbeats"),
        "the average": (lambda n, r, d, c, b, h, m: math.ceil(n / int(min(0.7 / (r * c + b / h), m))), "late"),
        "no descriptors": (
            lambda n, r, d, c, b, h, m: math.ceil(n / int(min(d / c, 0.7 / (r * c + b / h)))), "descriptor",
        ),
        "full": (lambda n, r, d, c, b, h, m: math.ceil(n / int(min(d / c, 1 / (r * c + b / h), m))), "100 %"),
        "rounds down": (lambda n, r, d, c, b, h, m: n // int(min(d / c, 0.7 / (r * c + b / h), m)), "rounds down"),
        "one more": (
            lambda n, r, d, c, b, h, m: n // int(min(d / c, 0.7 / (r * c + b / h), m)) + 1, "one process too many",
        ),
        "loosest": (lambda n, r, d, c, b, h, m: math.ceil(n / int(max(d / c, 0.7 / (r * c + b / h), m))), "loosest"),
        "the deadline alone": (lambda n, r, d, c, b, h, m: math.ceil(n / int(min(d / c, m))), "deadline alone"),
        "heartbeats turned round": (
            lambda n, r, d, c, b, h, m: math.ceil(n / int(min(d / c, 0.7 / (r * c + b * h), m))), "1/heartbeat",
        ),
        "a part of a client": (
            lambda n, r, d, c, b, h, m: max(
                math.ceil(n * c / d), math.ceil(n * (r * c + b / h) / 0.7), math.ceil(n / m)
            ), "whole clients",
        ),
        "parts of clients, no heartbeats": (
            lambda n, r, d, c, b, h, m: max(math.ceil(n * c / d), math.ceil(n * r * c / 0.7), math.ceil(n / m)),
            "as if heartbeats were free",
        ),
        "parts of clients, any number of them": (
            lambda n, r, d, c, b, h, m: max(math.ceil(n * c / d), math.ceil(n * (r * c + b / h) / 0.7)),
            "each takes a descriptor",
        ),
        "not whole": (lambda n, r, d, c, b, h, m: n / int(min(d / c, 0.7 / (r * c + b / h), m)), "whole numbers"),
        "clients of a process": (lambda n, r, d, c, b, h, m: int(min(d / c, 0.7 / (r * c + b / h), m)), "it gives"),
        "nothing": (lambda n, r, d, c, b, h, m: print(end=""), "Is there a `return`?"),
    },
)  # fmt: skip

CORPORA = [APPENDS, FLEETS]
test_right, test_wrong, test_no_answer = judging(CORPORA)
