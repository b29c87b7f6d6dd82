"""What the command lines share: a mistake is one line and exit status 2, and a value is checked when it is read."""

import argparse
import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake gets one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)}\n")


def printable(text: str) -> str:
    """The text, with escapes for what a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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


def checked_token(text: str) -> str:
    """The token in a file or variable, without the space around it. Raises ValueError if it could not be one."""
    token = text.strip()
    if len(token) < 16 or not all("!" <= character <= "~" for character in token):
        raise ValueError("a token is at least 16 printable ASCII characters, without a space")
    return token
