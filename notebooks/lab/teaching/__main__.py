"""The command line: python -m lab.teaching {editions,students,course,questions,slides,minutes} OUT."""

import argparse
import subprocess
import sys
from pathlib import Path

from lab.teaching import EDITIONS, write_course, write_edition, write_students
from lab.teaching.lesson import lessons
from lab.teaching.minutes import page
from lab.teaching.questions import gift, questions
from lab.teaching.slides import write_slides
from servers.arguments import Parser


def main(arguments: list[str] | None = None) -> int:
    """Write what is asked for; return the exit status."""
    command = parser()
    options = command.parse_args(arguments)
    try:
        for line in options.write(options.out):
            print(line)
    except FileExistsError as error:
        command.error(f"{error.filename} is there already: name a new folder, or remove it")
    except subprocess.CalledProcessError as error:
        command.error(f"a clone of the repository is needed: {error.stderr.strip()}")
    except RuntimeError as error:
        command.error(str(error))
    except OSError as error:
        command.error(f"{options.out}: {error.strerror}")
    return 0


def parser() -> Parser:
    """What can be made."""
    p = Parser(prog="python -m lab.teaching", description="Make what a lecturer hands out.")
    what = p.add_subparsers(required=True, metavar="WHAT", parser_class=Parser)
    for name, write, text in (
        ("editions", editions, f"the notebooks in {len(EDITIONS)} editions: {', '.join(EDITIONS)}; folders and zips"),
        ("students", students, "the repository without solutions"),
        ("course", course, "the exercises as assignments of nbgrader"),
        ("questions", bank, "the bank of questions, for a learning platform: a file in GIFT"),
        ("slides", slides, "a talk of each notebook: HTML pages that need no network"),
        ("minutes", minutes, "how long each section takes to read and to run: a page, after a run of all notebooks"),
    ):
        one: argparse.ArgumentParser = what.add_parser(name, help=text, description=text)
        one.add_argument("out", type=Path, metavar="OUT", help="a new folder, or file")
        one.set_defaults(write=write)
    return p


def editions(out: Path) -> list[str]:
    """All editions; a line for each."""
    return [f"{name}: {write_edition(name, out)}" for name in EDITIONS]


def students(out: Path) -> list[str]:
    """The students' repository."""
    return [f"{write_students(out)} files in {out}, a Git repository of one commit"]


def course(out: Path) -> list[str]:
    """The assignments, and what to call next."""
    names = write_course(out)
    return [f"{len(names)} assignments in {out}: {', '.join(names)}", f"next: nbgrader generate_assignment {names[0]}"]


def bank(out: Path) -> list[str]:
    """The questions, in a new file."""
    asked = questions()
    with out.open("x", encoding="utf-8") as file:
        file.write(gift(asked))
    return [f"{len(asked)} questions in {out}"]


def minutes(out: Path) -> list[str]:
    """The page of the minutes; none where a notebook raises."""
    try:
        with out.open("x", encoding="utf-8") as file:
            file.writelines(page(lessons()))
    except RuntimeError:
        out.unlink()
        raise
    return [str(out)]


def slides(out: Path) -> list[str]:
    """The talks; a line for each."""
    return [str(path) for path in write_slides(out)]


if __name__ == "__main__":
    sys.exit(main())
