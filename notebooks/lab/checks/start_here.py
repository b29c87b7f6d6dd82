"""The checks of notebook 00: what is lost, and from when a delay counts."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from lab.checks.verdict import Verdict, compared


def count_faults(function: Callable[[list[int], list[int]], tuple[int, int]]) -> Verdict:
    """Exercise: `count_faults(published, received)` gives how many updates are lost, and how many came twice."""

    def right(published: list[int], received: list[int]) -> tuple[int, int]:
        times = Counter(received)
        return sum(seq not in times for seq in published), len(received) - len(times)

    mistakes: dict[str, Any] = {
        "It looks as if lost ones were found by comparing lengths: one lost and one duplicate then cancel out.": (
            lambda p, r: (len(p) - len(r), len(r) - len(set(r))),
            lambda p, r: (max(0, len(p) - len(r)), len(r) - len(set(r))),
        ),
        "It looks as if duplicates were looked for in a set, which has none.": lambda p, r: (len(set(p) - set(r)), 0),
        "It counts how many updates came more than once; what came three times is two duplicates.": (
            lambda p, r: (len(set(p) - set(r)), sum(n > 1 for n in Counter(r).values()))
        ),
        "It counts all arrivals of what came more than once; the first of them is no duplicate.": (
            lambda p, r: (len(set(p) - set(r)), sum(n for n in Counter(r).values() if n > 1))
        ),
        "The two are turned round: first the lost ones, then the duplicated.": lambda p, r: right(p, r)[::-1],
    }
    in_order = [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 2, 3, 4], [1, 2, 2, 4]),
        ([1, 2], []),
        ([1, 2, 3], [1, 1, 1, 3, 3]),
        ([7, 8, 9, 10, 11], [7, 7, 10]),
        ([], []),
    ]
    in_any = [
        ([1, 2, 3], [3, 1, 2]),
        ([1, 2, 3, 4], [2, 4, 2, 1]),
        ([5, 6, 7, 8, 9], [9, 5, 9, 6, 5, 9]),
        ([4, 5, 6], [6, 4]),
    ]
    cases = in_order + in_any
    return compared(
        function,
        right,
        mistakes,
        cases,
        "Lost and duplicated are counted apart, and neither hides the other.",
        only={"It is right as long as they come in order; they may come in any.": range(len(in_order), len(cases))},
    )


def delays_from_plan(function: Callable[[list[float], list[float], list[float]], list[float]]) -> Verdict:
    """Exercise: `delays_from_plan(planned, sent, answered)` gives the delays that coordinated omission cannot hide."""

    def minus(a: list[float], b: list[float]) -> list[float]:
        return [x - y for x, y in zip(a, b, strict=True)]

    mistakes: dict[str, Callable[..., Any]] = {
        "These are the delays from sending: the stall that kept the client from sending is left out.": (
            lambda planned, sent, answered: minus(answered, sent)
        ),
        "This is how late each question was sent, not how long its answer took to come.": (
            lambda planned, sent, answered: minus(sent, planned)
        ),
    }
    cases = [([0.0, 1.0, 2.0], [0.0, 1.5, 2.0], [0.5, 1.6, 2.1]), ([1.0], [3.0], [3.25])]
    praise = "Each delay counts from the moment at which the question should have been asked."
    return compared(function, lambda planned, sent, answered: minus(answered, planned), mistakes, cases, praise)
