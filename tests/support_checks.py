"""What the tests of the exercises' checks share: a corpus of answers for each exercise, and the tests of a corpus.

A test module has `CORPORA`, and `test_right, test_wrong, test_no_answer = judging(CORPORA)`.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from lab.bench.experiment import HTTP, ClientLog
from lab.checks import Verdict

Answer = Callable[..., Any]


@dataclass(frozen=True)
class Corpus:
    """The answers to one exercise: `right` ones, however unusual, and `wrong` ones with words that must be said."""

    check: Callable[[Any], Verdict]
    stub: Answer
    right: dict[str, Answer]
    wrong: dict[str, tuple[Answer, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.check.__name__


def judging(corpora: Sequence[Corpus]) -> tuple[Callable[..., None], Callable[..., None], Callable[..., None]]:
    """Three tests: right answers pass; wrong ones are told what is wrong; what is no answer yet is told so kindly."""

    @pytest.mark.parametrize(
        ("check", "answer"),
        [pytest.param(c.check, answer, id=f"{c.name}: {name}") for c in corpora for name, answer in c.right.items()],
    )
    def right(check: Callable[[Any], Verdict], answer: Answer) -> None:
        """A right answer passes, however unusual it is."""
        verdict = check(answer)
        assert verdict, repr(verdict)
        assert repr(verdict).startswith("✓ ")

    @pytest.mark.parametrize(
        ("check", "answer", "words"),
        [
            pytest.param(c.check, answer, words, id=f"{c.name}: {name}")
            for c in corpora
            for name, (answer, words) in c.wrong.items()
        ],
    )
    def wrong(check: Callable[[Any], Verdict], answer: Answer, words: str) -> None:
        """A wrong answer does not pass, and is told in a few lines what is wrong."""
        verdict = check(answer)
        assert not verdict, repr(verdict)
        assert words in verdict.text
        assert len(repr(verdict).splitlines()) <= 3

    @pytest.mark.parametrize("corpus", corpora, ids=lambda corpus: corpus.name)
    def no_answer(corpus: Corpus) -> None:
        """The empty stub is told to be empty, what is no function that it is none, and what takes nothing so, too."""
        assert repr(corpus.check(corpus.stub)).startswith("Not yet. This is still the empty stub")
        for thing in (None, 3, (0, 1), "answer"):
            assert "no function" in corpus.check(thing).text
        assert "takes 0 positional arguments but" in corpus.check(lambda: len("answer")).text

    return right, wrong, no_answer


def poller(
    *,
    cursor: Callable[[str, str], str | None] = lambda first, last: last,  # what it sends, of the first and the last
    moves: bool = True,
    looks_at_status: bool = True,
    heeds: Callable[[float], float] | None = lambda seconds: seconds,  # what it makes of Retry-After
    starts_over: bool = False,
    delivers: int = 1,  # times
    latest: bool = False,  # delivers only the last of an answer
    gives_up: bool = False,  # at a refusal
    pause: float = 5.0,
    limit: float | None = 4.0,  # s for an answer; a held one gets none
    **question: float,
) -> Callable[[str, ClientLog], Any]:
    """The solution, or one of its mutants."""

    async def client(url: str, log: ClientLog) -> None:
        last = log.cursor
        options = HTTP if question or limit is None else HTTP | {"timeout": httpx.Timeout(limit)}
        async with httpx.AsyncClient(**options) as http:
            while True:
                wait = pause
                with log.request():
                    after = cursor(log.cursor, last)
                    asked = question | ({"after": after} if after is not None else {})
                    try:
                        response = await http.get(f"{url}/updates", params=asked)
                    except httpx.TimeoutException:
                        continue
                    if response.status_code == 200 or not looks_at_status:
                        updates = response.json()["updates"]
                        for update in delivers * (updates[-1:] if latest else updates):
                            log.deliver(update)
                        last = response.json()["cursor"] if moves else last
                    elif gives_up:
                        return
                    else:
                        wait = heeds(float(response.headers["Retry-After"])) if heeds else pause
                        last = log.cursor if starts_over else last
                await asyncio.sleep(wait)

    return client
