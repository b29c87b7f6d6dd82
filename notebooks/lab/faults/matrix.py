"""The matrix: every fault against every subject, run, kept, and held against what the reader has guessed.

run_matrix() ─▶ Matrix[fault, subject] ─▶ Cell (with and without a cursor: two Outcomes) ─▶ a table
guesses ─▶ matrix.judge(guesses) ─▶ each that was wrong, with what the run showed
"""

import asyncio
import contextlib
import html
import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from lab.bench.result import VIRTUAL, seconds
from lab.faults.catalogue import FAULTS, UPGRADE, Fault
from lab.faults.live import LiveWorld, crowd
from lab.faults.outcome import LETTERS, Outcome
from lab.faults.simulated import DELAY, VirtualWorld
from lab.faults.subjects import COURSE, QUICK, SUBJECTS, Pace, Subject
from lab.virtual import Link, Net, run_virtual
from servers.background import LOGGERS

WALL = 60.0  # s of real time for a cell in VIRTUAL time, on a machine that is busy
SHADES = {"n": "#ffffff", "c": "#e3ecfb", "s": "#fdeedd", "b": "#e2f3ee"}


@dataclass(frozen=True)
class Cell:
    """One fault against one subject: with a cursor, and without."""

    keeping: Outcome
    forgetting: Outcome

    @property
    def seen_by(self) -> str:
        """The letter of who noticed."""
        return self.keeping.seen_by

    @property
    def loses(self) -> str:
        """The letter of whether anything is lost without a cursor: y or n."""
        return "y" if self.forgetting.lost else "n"

    @property
    def lines(self) -> tuple[str, ...]:
        """What a table shows of it."""
        kept = self.keeping
        detected = f" in {seconds(kept.detected_in)}" if kept.client is not None else ""
        told = " (told)" if kept.resets else ""
        twice = f", twice {kept.duplicated}" if kept.duplicated else ""
        back = f"back {seconds(kept.recovered_in)}" if kept.recovered_in else "back at once"
        return (
            f"{LETTERS[self.seen_by]}{detected}",
            f"lost {kept.lost}{told}{twice}; without {self.forgetting.lost}",
            kept.aside or back,
        )

    def __repr__(self) -> str:
        return f"{self.keeping!r}; without a cursor lost {self.forgetting.lost}"


def simulate(fault: Fault, subject: Subject, *, keeps: bool, pace: Pace = COURSE) -> Outcome:
    """One kind of client in VIRTUAL time."""

    async def main(net: Net) -> Outcome:
        world = VirtualWorld(net, subject, pace, keeps=keeps, history=fault.history, clients=fault.clients)
        world.meddle = fault.meddle
        async with world.stack:
            await world.run(fault.strike)
            return world.outcome(fault.name, fault.mode)

    with hushed():
        return run_virtual(main, link=Link(delay=DELAY), seed=1, wall=WALL)


def live(fault: Fault, subjects: Iterable[Subject] = tuple(SUBJECTS.values())) -> dict[str, Cell]:
    """A row of real sockets: all subjects at once, in threads of their own; callable inside a running event loop."""

    async def one(world: LiveWorld) -> Outcome:
        await world.run(fault.strike)
        return world.outcome(fault.name, fault.mode)

    async def main() -> list[Outcome]:
        with crowd() as clients:
            worlds = [
                LiveWorld(clients, directives(fault, subject), subject, QUICK, keeps=keeps, history=fault.history)
                for subject in chosen
                for keeps in (True, False)
            ]
            async with contextlib.AsyncExitStack() as stack:
                for world in worlds:  # all of them before the first one begins: to start a server holds up the others
                    await stack.enter_async_context(world.stack)
                    await world.start()
                return await asyncio.gather(*map(one, worlds))

    chosen = list(subjects)
    with hushed(), ThreadPoolExecutor(1, "faults") as thread:
        outcomes = thread.submit(asyncio.run, main()).result()
    pairs = zip(outcomes[::2], outcomes[1::2], strict=True)
    return {subject.name: Cell(*pair) for subject, pair in zip(chosen, pairs, strict=True)}


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """What a mirror and a server say of the faults is no news here."""
    loggers = [logging.getLogger(name) for name in ("lab.mirror", *LOGGERS)]
    were = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, was in zip(loggers, were, strict=True):
            logger.disabled = was


def directives(fault: Fault, subject: Subject) -> str | None:
    """What nginx is told for a subject: a WebSocket passes only where it is let through."""
    return UPGRADE if fault.proxy is not None and subject.path == "/ws" else fault.proxy


def run_row(name: str) -> dict[str, Cell]:
    """Every subject under one fault."""
    fault = FAULTS[name]
    if fault.mode != VIRTUAL:
        return live(fault)
    return {
        subject.name: Cell(simulate(fault, subject, keeps=True), simulate(fault, subject, keeps=False))
        for subject in SUBJECTS.values()
    }


def run_matrix(names: Iterable[str] = tuple(FAULTS)) -> "Matrix":
    """Every fault, or those of these names, against every subject. Each cell is two real runs."""
    return Matrix({name: run_row(name) for name in names})


class Matrix(Mapping[tuple[str, str], Cell]):
    """The cells by (fault, subject); shows itself as a table."""

    def __init__(self, rows: Mapping[str, Mapping[str, Cell]]) -> None:
        self.rows = rows

    def __getitem__(self, key: tuple[str, str]) -> Cell:
        """One cell. Raises KeyError with what there is."""
        fault, subject = key
        if fault not in self.rows:
            raise KeyError(f"no fault is called {fault!r}; there are {', '.join(self.rows)}")
        if subject not in self.rows[fault]:
            raise KeyError(f"no subject is called {subject!r}; there are {', '.join(self.rows[fault])}")
        return self.rows[fault][subject]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """All (fault, subject)."""
        return ((fault, subject) for fault, row in self.rows.items() for subject in row)

    def __len__(self) -> int:
        """How many cells there are."""
        return sum(map(len, self.rows.values()))

    def __repr__(self) -> str:
        return "\n".join(f"{fault}, {subject}: {self[fault, subject]!r}" for fault, subject in self)

    def _repr_html_(self) -> str:
        subjects = list(next(iter(self.rows.values())))
        head = "".join(f'<th scope="col" style="text-align:left">{html.escape(name)}</th>' for name in subjects)
        body = "".join(
            f'<tr><th scope="row" style="text-align:left">{html.escape(fault)}<br>'
            f'<span style="font-weight:normal">{FAULTS[fault].mode}</span></th>'
            + "".join(_cell_html(row[subject]) for subject in subjects)
            + "</tr>"
            for fault, row in self.rows.items()
        )
        caption = (
            "In each cell: who noticed, and the client in how long; updates lost with a cursor, and without; recovery"
        )
        return (
            f'<table style="font-size:85%"><caption style="text-align:left">{caption}</caption>'
            f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"
        )

    def judge(self, seen: Mapping[str, str], lost: Mapping[str, str]) -> "Judgement":
        """Hold guesses against the runs: for each fault a letter per subject, "." or nothing for one left blank.

        `seen` says who notices: n(obody), c(lient), s(erver), b(oth); `lost`, whether a client without a cursor loses
        anything: y or n. A guess that says neither is not judged, and is told so.
        """
        judged, odd = list[Judged](), list[str]()
        for what, guesses, known in (("who notices", seen, "ncsb"), ("what is lost", lost, "yn")):
            for fault, text in guesses.items():
                try:
                    judged += [_judged(self, what, fault, *guess) for guess in _letters(what, fault, text, known, self)]
                except ValueError as refused:
                    odd.append(str(refused))
        return Judgement(judged, odd)


@dataclass(frozen=True)
class Judged:
    """One guess, and what the run showed."""

    fault: str
    subject: str
    right: bool
    text: str


class Judgement:
    """All guesses that were made; those that were wrong show themselves, each with the cell to open.

    `odd` says of what could not be judged, a sentence each, why.
    """

    def __init__(self, judged: list[Judged], odd: list[str]) -> None:
        self.judged, self.odd = judged, odd

    @property
    def wrong(self) -> list[Judged]:
        """The guesses that a run has shown to be wrong."""
        return [guess for guess in self.judged if not guess.right]

    @property
    def score(self) -> str:
        """How many of how many."""
        if not self.judged:
            return "no guess yet: fill in letters above, and run this cell again"
        return f"{len(self.judged) - len(self.wrong)} of {len(self.judged)} guesses are right"

    def __repr__(self) -> str:
        return "\n".join([self.score, *(f"✗ {guess.text}" for guess in self.wrong), *self.odd])

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{html.escape(text)}</li>" for text in [*(guess.text for guess in self.wrong), *self.odd])
        return f"<p>{html.escape(self.score)}</p>" + (f"<ul>{items}</ul>" if items else "")


def _letters(what: str, fault: str, text: Any, known: str, matrix: Matrix) -> list[tuple[str, str]]:
    if fault not in matrix.rows:
        raise ValueError(f"{what}: no fault is called {fault!r}")
    letters, subjects = str("" if text is None else text).replace(" ", "").lower(), list(matrix.rows[fault])
    if len(letters) > len(subjects) or set(letters) - set(f"{known}."):
        raise ValueError(f"{what}, {fault}: {len(subjects)} letters of {known!r}, or dots, not {text!r}")
    return [guess for guess in zip(subjects, letters, strict=False) if guess[1] != "."]


def _judged(matrix: Matrix, what: str, fault: str, subject: str, letter: str) -> Judged:
    cell = matrix[fault, subject]
    if what == "who notices":
        right, guess, shown = cell.seen_by == letter, f"{LETTERS[letter]} notices", repr(cell.keeping)
    else:
        words = {"y": "something is lost without a cursor", "n": "nothing is lost, even without a cursor"}
        right, guess, shown = cell.loses == letter, words[letter], f"without a cursor lost {cell.forgetting.lost}"
    opened = f"open_cell({fault!r}, {subject!r})"
    return Judged(fault, subject, right, f"{fault}, {subject}: you said {guess}. The run: {shown}. See {opened}.")


def _cell_html(cell: Cell) -> str:
    lines = "<br>".join(map(html.escape, cell.lines))
    return f'<td style="text-align:left;background:{SHADES[cell.seen_by]};color:#222">{lines}</td>'
