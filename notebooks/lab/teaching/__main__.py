"""The command line: python -m lab.teaching {editions,students,course} OUT."""

import argparse
import subprocess
import sys
from pathlib import Path

from lab.teaching import EDITIONS, write_course, write_edition, write_students
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
    except OSError as error:
        command.error(f"{options.out}: {error.strerror}")
    return 0


def parser() -> Parser:
    """The three things that can be made."""
    p = Parser(prog="python -m lab.teaching", description="Make what a lecturer hands out.")
    what = p.add_subparsers(required=True, metavar="WHAT", parser_class=Parser)
    for name, write, text in (
        ("editions", editions, f"the notebooks in {len(EDITIONS)} editions: {', '.join(EDITIONS)}; folders and zips"),
        ("students", students, "the repository without solutions"),
        ("course", course, "the exercises as assignments of nbgrader"),
    ):
        one: argparse.ArgumentParser = what.add_parser(name, help=text, description=text)
        one.add_argument("out", type=Path, metavar="OUT", help="a folder")
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


if __name__ == "__main__":
    sys.exit(main())
