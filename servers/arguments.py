"""What the command lines share: a mistake is one line and exit status 2, and a value is checked when it is read."""

import argparse
import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from servers.guard import checked_token


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake gets one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.splitlines())}\n")


def number(text: str) -> float:
    """A finite number above 0."""
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"a number above 0, not {text!r}")


def whole(least: int, most: int) -> Callable[[str], int]:
    """A whole number from `least` to `most`."""

    def convert(text: str) -> int:
        with contextlib.suppress(ValueError):
            if least <= (value := int(text)) <= most:
                return value
        raise argparse.ArgumentTypeError(f"a whole number from {least} to {most}, not {text!r}")

    return convert


def token_in(file: str) -> str:
    """The token that a file holds."""
    try:
        return checked_token(Path(file).read_text(encoding="ascii"))
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{file}: {error}") from None
