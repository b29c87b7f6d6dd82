"""What a mirror asks its server for: the listing, and files; nothing is believed that is not bounded and verified.

    GET /files ──────▶ Listing: the cursor, and path, size and SHA-256 of every file
    GET /files/PATH ─▶ a Part, of as many bytes as were announced, whose hash is what was announced
    POST /bundle ────▶ many small files at once, as a tar archive (bundle.py)

What the listing says is read whole, up to MAX_LISTING. A file is written as it comes, at most as long as its size was
announced; a later version than that says so itself, by its ETag and its Content-Length. What a part has already is not
asked for again, as long as the file is still what was announced (Range and If-Range: RFC 9110, section 14); of a file
that grows, any later version will do, whose hash says whether it began like that.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx

from lab.clients.answers import (
    LONGEST_CURSOR,
    BadAnswer,
    Renewed,
    Unavailable,
    check_identity,
    flag,
    moment,
    parsed,
    refusal,
    split,
    whole,
)
from lab.clients.connections import MAX_REASON, answer_to, below, body_of, pieces_of
from lab.clients.follower import named
from lab.mirror.bundle import TAR, asked, room
from lab.mirror.names import Version
from lab.mirror.part import Part
from lab.mirror.report import LINK, Counters, Faults
from lab.mirror.settings import Settings

MAX_LISTING = 2**28  # bytes; more than a million files
LEFT_OUT = {
    "links": "symbolic links",
    "special": "special files",
    "unreadable": "unreadable",
    "not_utf8": "with names that are not UTF-8",
    "large": "too large",
    "copies": "mirrors' copies",
    "ignored": "ignored",
}
SHA256 = re.compile("[0-9a-f]{64}")
FILES = re.compile(r'"files"[ \t\n\r]*:[ \t\n\r]*\[[ \t\n\r]*')
NEXT = re.compile(r"[ \t\n\r]*(,[ \t\n\r]*|(?=\]))")  # after a file in a list
WINDOW = 2**18  # characters; a file in a listing has no more
DECODE = json.JSONDecoder().raw_decode


class Vanished(Exception):
    """404: gone since it was announced, or not readable for the server just now."""


class Corrupt(Exception):
    """Bytes that are neither what was announced nor what the answer says they are."""


class NoBundles(Exception):
    """This server sends each file by itself."""


class LeftOut(Exception):
    """Not in the bundle that it was asked for in, or not as it was announced: by itself it comes as it is now."""


class Entry(NamedTuple):
    """A file in a listing: `size` in bytes, `mtime` in Unix time (s)."""

    path: str
    size: int | None
    sha256: str | None
    mtime: float | None = None
    executable: bool | None = None


class Listing(NamedTuple):
    """All there is at `cursor`; `source` is what the server is called, `left_out` what is not listed, in words.

    `directory` tells the server's directory from all others, if it says so.
    """

    cursor: str
    files: list[Entry]
    source: str | None = None
    left_out: str = ""
    directory: Any = None


class Origin:
    """The server, as far as it is asked for what it has; its events are `lab.clients.sse`'s."""

    def __init__(self, settings: Settings, counters: Counters, faults: Faults, http: httpx.AsyncClient) -> None:
        self.settings, self.counters, self.faults, self.http = settings, counters, faults, http

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """The context of one request, counted; the stream's, too, whose failures its follower keeps to itself."""
        with self.settings.log.request() if self.settings.log else contextlib.nullcontext():
            try:
                yield
            except Renewed:
                raise  # the stream has lived its time: nothing is wrong
            except (httpx.RequestError, Unavailable) as error:
                text = "the link to %s failed (%s): trying again"
                self.faults.report(LINK, text, self.settings.url, named(error))
                raise

    async def listing(self) -> Listing:
        """Ask for the listing until there is an answer, or until it is time to give up. Raises ClientError."""
        settings, failures, cause = self.settings, 0, None
        try:
            async with asyncio.timeout(settings.retry.give_up_after):
                while True:
                    try:
                        body = await self._listing()
                        break
                    except (Unavailable, httpx.RequestError) as error:
                        cause = error
                    await asyncio.sleep(settings.pause(cause, failures))
                    failures += 1
        except TimeoutError as error:
            raise settings.gave_up(f"no listing from {settings.files_url}", cause or error) from cause
        self.faults.mended(LINK)
        return _listing(body)

    async def _listing(self) -> bytes:
        with self.request():
            headers, url = self.settings.headers, self.settings.files_url
            async with answer_to(self.http, "GET", url, headers=headers) as response:
                body = await body_of(response, MAX_LISTING)
            if response.status_code == 200:
                return body
            raise refusal(response.status_code, response.headers, body)

    async def fetch(self, path: str, wanted: Version, present: Version | None, part: Part) -> bool:
        """Write the file's bytes into `part`, or those that it lacks; False if the server has what is present (304).

        Raises Vanished, Corrupt unless they hash to what was announced, or else to what the answer's ETag says,
        ClientError, httpx.RequestError and OSError.
        """
        headers = {"Cache-Control": "no-cache"} | self.settings.headers
        if present:
            headers["If-None-Match"] = f'"{present.sha256}"'
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
        if part.size and not part.grows:
            headers["If-Range"] = f'"{wanted.sha256}"'
        url = below(self.settings.files_url, f"/{quote(path)}")
        with self.request():
            async with answer_to(self.http, "GET", url, headers=headers) as response:
                if present and response.status_code == 304:
                    return False
                if response.status_code == 404:
                    raise Vanished
                size = None
                if response.status_code == 206 and part.size:
                    size = size_of(response.headers, part.size)
                elif response.status_code != 200:
                    raise refusal(response.status_code, response.headers, await body_of(response, MAX_REASON))
                else:
                    part.anew()
                check_identity(response.headers)
                etag = response.headers.get("ETag", "").removeprefix("W/").strip('"')
                most = _most(wanted, etag, response.headers, size)
                async for chunk in pieces_of(response):
                    self.counters.bytes += len(chunk)
                    part.write(chunk)
                    if part.size > most:
                        break
        self.faults.mended(LINK)
        if part.size > most or part.sha256 not in (wanted.sha256, etag):
            raise Corrupt(
                f"{part.size} bytes with SHA-256 {part.sha256[:8]}... came, announced were {wanted.size} with"
                f" {wanted.sha256[:8]}..."
            )
        return True

    async def bundle(self, wanted: Mapping[str, Version]) -> tuple[bytes, Exception | None]:
        """Ask for many files at once: the archive, as far as it came, and what ended it before its end.

        Raises NoBundles, ClientError and httpx.RequestError, when nothing came.
        """
        headers = {"Content-Type": "application/json"} | self.settings.headers
        most = room(version.size for version in wanted.values())
        body = bytearray()
        try:
            with self.request():
                content = b'{"paths":[%b]}' % b",".join(map(asked, wanted))
                request = answer_to(self.http, "POST", self.settings.bundle_url, headers=headers, content=content)
                async with request as response:
                    if response.status_code in (404, 405, 501):
                        raise NoBundles
                    if response.status_code != 200:
                        raise refusal(response.status_code, response.headers, await body_of(response, MAX_REASON))
                    check_identity(response.headers)
                    if response.headers.get("Content-Type", "").partition(";")[0].strip() != TAR:
                        raise BadAnswer(f"a bundle is {TAR}")
                    async for chunk in pieces_of(response):
                        body += chunk
                        if len(body) > most:
                            raise BadAnswer(f"a bundle of more than {most} bytes")
        except (httpx.RequestError, BadAnswer) as error:
            if not body:
                raise
            return bytes(body), error
        self.faults.mended(LINK)
        return bytes(body), None


def size_of(headers: httpx.Headers, start: int) -> int:
    """The size of the file of which a 206 has all from `start` on (RFC 9110, section 14.4). Raises BadAnswer."""
    found = headers.get("Content-Range", "")
    match = re.fullmatch(f"bytes {start}-([0-9]{{1,18}})/([0-9]{{1,18}})", found, re.IGNORECASE)
    if not match or int(match[1]) + 1 != int(match[2]):
        raise BadAnswer(f"asked for all from {start} on, but {found[:64]!r} came")
    return int(match[2])


def _most(wanted: Version, etag: str, headers: httpx.Headers, size: int | None) -> int:
    """How many bytes may come: what was announced, or what the head of another version says (RFC 9112, section 6.3).

    `size` is what the head of a range says of the whole.
    """
    other = SHA256.fullmatch(etag) and etag != wanted.sha256 and "Transfer-Encoding" not in headers
    return max(wanted.size, size or int(headers.get("Content-Length", "0"))) if other else wanted.size


def _listing(body: bytes) -> Listing:
    """What a listing says. Raises BadAnswer.

    Its files are read one by one: a list of three bytes is an object of sixty, and 2^28 bytes can be full of them.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise BadAnswer(f"not JSON: {error}") from None
    files, at, end = list[Entry](), 0, 0
    if begin := FILES.search(text, 0, MAX_REASON):
        at = end = begin.end()
        end = _read(text, at, files)
    if at + len(text) - end > 2 * MAX_REASON:
        raise BadAnswer(f"not JSON: no file begins at character {end}")
    match parsed(text[:at] + text[end:]):
        case {"cursor": str(cursor), "files": [], **others}:
            split(cursor)
            source = others.get("source")
            if not isinstance(source, str) or not 0 < len(source) <= LONGEST_CURSOR:
                source = None
            left_out, directory = _left_out(others.get("left_out")), others.get("directory")
            return Listing(cursor, files, source, left_out, directory)
    raise BadAnswer('a listing has "cursor" and "files"')


def _read(text: str, at: int, files: list[Entry]) -> int:
    """Read the files of a list that begins there; return where the last one ends. Raises BadAnswer."""
    last, window, here = at, text[at : at + WINDOW], 0
    while True:
        try:
            file, end = DECODE(window, here)
            between = NEXT.match(window, end)
        except (ValueError, RecursionError):
            between = None
        if between:
            files.append(_entry(file))
            last, here = at + end, between.end()
            if not between[1]:
                return last
        elif here:
            at += here
            window, here = text[at : at + WINDOW], 0
        else:
            return last


def _left_out(said: Any) -> str:
    """What a listing leaves out, in words; of what is not known here nothing is said."""
    counts = [(said.get(kind), words) for kind, words in LEFT_OUT.items()] if isinstance(said, dict) else []
    return ", ".join(f"{count:,} {words}" for count, words in counts if type(count) is int and 0 < count < 10**12)


def _entry(file: Any) -> Entry:
    match file:
        case {"path": str(path), "size": int() | float() | None as size, "sha256": str() | None as sha256}:
            said = moment(file.get("mtime")), flag(file.get("executable"))
            return Entry(path, None if size is None else whole(size), sha256, *said)
    raise BadAnswer('a file in a listing has "path", "size" and "sha256"')
