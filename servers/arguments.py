"""What the command lines share: a mistake is one line and exit status 2, and a value is checked when it is read."""

import argparse
import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake gets one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)}\n")


def printable(text: str) -> str:
    """The text, with escapes for what a terminal would obey."""
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    )


def number(text: str) -> float:
    """A finite number above 0."""
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"a number above 0, not {text!r}")


def rate(text: str) -> float:
    """A finite number from 0 up."""
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) < math.inf:
            return abs(value)
    raise argparse.ArgumentTypeError(f"a number from 0 up, not {text!r}")


def whole(least: int, most: int) -> Callable[[str], int]:
    """A whole number from `least` to `most`."""

    def convert(text: str) -> int:
        with contextlib.suppress(ValueError):
            if least <= (value := int(text)) <= most:
                return value
        raise argparse.ArgumentTypeError(f"a whole number from {least} to {most}, not {text!r}")

    return convert


def origin(text: str) -> str:
    """An origin as browsers send it (RFC 6454, section 6.2): "HTTPS://Hub.example:443/" is "https://hub.example"."""
    with contextlib.suppress(ValueError):
        url = urlsplit(text)
        port = url.port  # raises ValueError for what is none
        default = {"http": 80, "https": 443}.get(url.scheme)
        rest = url.username or url.path.strip("/") or url.query or url.fragment
        if default and url.hostname and text.isascii() and not rest:
            host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
            return f"{url.scheme}://{host}" + ("" if port in (None, default) else f":{port}")
    raise argparse.ArgumentTypeError(f"an origin like https://hub.example, not {text!r}")


def open_standard_streams() -> None:
    """Give a process that was started without some of stdin, stdout and stderr /dev/null for each of them.

    What it opens next, a socket perhaps, would take their place, and be read and written by whoever means them.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free, which is this one


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
