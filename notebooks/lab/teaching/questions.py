"""The bank of questions: read from Markdown, written in GIFT.

    notebooks/teaching/questions.md ─▶ Question ─▶ GIFT, as learning platforms import it

GIFT: https://docs.moodle.org/en/GIFT_format. A wrong answer's feedback is the belief that it comes from.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from lab.teaching.lesson import NOTEBOOKS

BANK = NOTEBOOKS / "teaching" / "questions.md"
QUESTION = re.compile(r"(?m)^\*\*(\d+)\.\*\* ((?:.+\n)+)\n((?:- \[[x ]\] .+\n)+)\nProof: (\d\d), \"(.+)\"$")
ANSWER = re.compile(r"- \[([x ])\] (.+)")
BELIEF = re.compile(r": \*(.+)\* \((.+)\)\.$")
SPECIAL = re.compile(r"([~=#{}:\\])")  # what GIFT reads as its own


@dataclass(frozen=True)
class Answer:
    """One of a question's answers; of a wrong one the belief behind it, and what is wrong with that."""

    text: str
    right: bool
    belief: str = ""
    because: str = ""


@dataclass(frozen=True)
class Question:
    """A question with its answers, and where it is proved: the notebook's number, and words of one of its cells."""

    number: int
    text: str
    answers: tuple[Answer, ...]
    notebook: str
    words: str


def questions(path: Path = BANK) -> list[Question]:
    """The bank, in order. Raises ValueError for an answer that is neither right nor says which belief it comes from."""
    text = path.read_text(encoding="utf-8")
    return [
        Question(
            int(number), " ".join(asked.split()), tuple(_answer(*found) for found in ANSWER.findall(given)), book, words
        )
        for number, asked, given, book, words in QUESTION.findall(text)
    ]


def _answer(mark: str, text: str) -> Answer:
    if mark == "x":
        return Answer(text, right=True)
    if not (belief := BELIEF.search(text)):
        raise ValueError(f"a wrong answer ends with its belief, and what is wrong with that: {text}")
    return Answer(text[: belief.start()], False, belief[1], belief[2])


def gift(bank: list[Question]) -> str:
    """The bank in GIFT: one block a question, the notebook as its category."""
    blocks, book = [], ""
    for question in bank:
        if question.notebook != book:
            book = question.notebook
            blocks.append(f"$CATEGORY: push-vs-pull/{book}")
        answers = "\n".join(map(_line, question.answers))
        blocks.append(f"::{book}-{question.number}::[markdown]{_plain(question.text)} {{\n{answers}\n}}")
    return "\n\n".join(blocks) + "\n"


def _line(answer: Answer) -> str:
    if answer.right:
        return f"\t={_plain(answer.text)}"
    return f"\t~{_plain(answer.text)}#{_plain(f'{answer.belief}: {answer.because}')}"


def _plain(text: str) -> str:
    return SPECIAL.sub(r"\\\1", text)
