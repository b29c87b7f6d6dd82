"""Which paths are left out: patterns that mean what those of a .gitignore file mean (git's manual, gitignore(5)).

    patterns ─▶ Ignore ─▶ hides(path, is_dir)    one regular expression over the whole path

A pattern without "/", or with one at its end only, fits at any depth; any other fits from the top. "*" and "?" stop at
"/", "**" does not; one that ends in "/" fits directories only. What is below a directory that is left out is left out.
"""

import os
import re
import sys
from collections.abc import Iterable


class Ignore:
    """The patterns of one list; case counts unless `any_case`. Raises ValueError for one that could hide nothing."""

    def __init__(self, patterns: Iterable[str] = (), *, any_case: bool = False) -> None:
        self.patterns = tuple(patterns)
        flags = re.DOTALL | (re.IGNORECASE if any_case else 0)
        self._fits = re.compile("|".join(map(translated, self.patterns)), flags).fullmatch if self.patterns else None

    def __bool__(self) -> bool:
        return self._fits is not None

    def hides(self, path: str, is_dir: bool = False) -> bool:
        """Whether the path, relative and with "/" between its parts, or a directory above it, is left out."""
        return self._fits is not None and self._fits(f"{path}/" if is_dir else path) is not None


def translated(pattern: str) -> str:
    """A pattern as a regular expression over whole paths, those of directories ending in "/"."""
    kept = re.sub(r"(?<!\\) +$", "", pattern)
    directory = kept.endswith("/") and not kept.endswith("\\/")
    body = kept.rstrip("/") if directory else kept
    anchored = "/" in body
    parts = body.removeprefix("/").split("/")
    if pattern.startswith(("!", "#")):
        raise ValueError(
            f"a pattern that begins with {pattern[0]!r} hides nothing: {pattern!r} (write it '\\{pattern}')"
        )
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"a pattern has no empty, '.' or '..' part: {pattern!r} would hide nothing")
    text = "" if anchored else "(?:.*/)?"
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**" and anchored:
            text += ".+" if last else "(?:.*/)?"
        else:
            text += one_part(part, pattern) + ("" if last else "/")
    return f"(?:{text}{'/.*' if directory else '(?:/.*)?'})"


def one_part(part: str, pattern: str) -> str:
    """One part of a pattern, between two "/", as a regular expression."""
    text, at = "", 0
    while at < len(part):
        sign, at = part[at], at + 1
        if sign == "*":
            text += "[^/]*"
            at += len(part[at:]) - len(part[at:].lstrip("*"))
        elif sign == "?":
            text += "[^/]"
        elif sign == "[":
            end = part.find("]", at + (2 if part[at : at + 1] in ("!", "^") else 1))
            if end < 0:
                raise ValueError(f"a pattern's '[' needs its ']': {pattern!r} would hide nothing")
            text += one_of(part[at:end])
            at = end + 1
        else:
            if sign == "\\":
                if at == len(part):
                    raise ValueError(f"a pattern's last '\\' stands before nothing: {pattern!r} would hide nothing")
                sign, at = part[at], at + 1
            text += re.escape(sign)
    return text


def one_of(signs: str) -> str:
    """What stands between "[" and "]", as a regular expression for one sign that is no "/"."""
    negative = signs[:1] in ("!", "^")
    inside = re.sub(r"([\[\]&~|^])", r"\\\1", signs[1:] if negative else signs)
    for first, last in re.findall(r"([^\\])-(.)", inside):
        if first > last:
            return "(?!)"  # no sign is between them
    return f"(?!/)[{'^' if negative else ''}{inside}]"


def folds_case(directory: str) -> bool:
    """Whether names that differ in case only are one name there: asked of the directory's own name."""
    parent, name = os.path.split(os.path.realpath(directory))
    if name.swapcase() == name:
        return sys.platform in ("darwin", "win32")  # as their file systems are as a rule
    try:
        return os.path.samefile(directory, os.path.join(parent, name.swapcase()))  # noqa: PTH118, PTH121  # str, as the caller's
    except OSError:
        return False
