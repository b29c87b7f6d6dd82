"""What a mirror asks its server for: the listing, and files; nothing is believed that is not bounded and verified.

    GET /files ──────▶ Listing: the cursor, and path, size and SHA-256 of every file
    GET /files/PATH ─▶ a Part, of as many bytes as were announced, whose hash is what was announced

What the listing says is read whole, up to MAX_LISTING. A file is written as it comes, at most as long as its size was
announced; a later version than that says so itself, by its ETag and its Content-Length.
"""

import asyncio
import contextlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx

from lab.clients.answers import BadAnswer, Unavailable, check_identity, parsed, refusal, split, whole
from lab.clients.connections import MAX_REASON, ask, below, body_of
from lab.clients.follower import named
from lab.mirror.copy import Part
from lab.mirror.names import Version
from lab.mirror.report import LINK, Counters, Faults
from lab.mirror.settings import Settings

MAX_LISTING = 2**28  # bytes; more than a million files
SHA256 = re.compile("[0-9a-f]{64}")


class Vanished(Exception):
    """404: gone since it was announced, or not readable for the server just now."""


class Corrupt(Exception):
    """Bytes that are neither what was announced nor what the answer says they are."""


class Entry(NamedTuple):
    """A file in a listing: `size` in bytes."""

    path: str
    size: int | None
    sha256: str | None


class Listing(NamedTuple):
    """All there is at `cursor`."""

    cursor: str
    files: list[Entry]


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
            response, body = await ask(self.http, url, headers=headers, most=MAX_LISTING)
            if response.status_code == 200:
                return body
            raise refusal(response.status_code, response.headers, body)

    async def fetch(self, path: str, wanted: Version, present: Version | None, part: Part) -> bool:
        """Write the file's bytes into `part`; False when the server still has what is present (304).

        Raises Vanished, Corrupt unless they hash to what was announced, or else to what the answer's ETag says,
        ClientError, httpx.RequestError and OSError.
        """
        headers = {"Cache-Control": "no-cache"} | self.settings.headers
        if present:
            headers["If-None-Match"] = f'"{present.sha256}"'
        url = below(self.settings.files_url, f"/{quote(path)}")
        with self.request():
            async with self.http.stream("GET", url, headers=headers) as response:
                if present and response.status_code == 304:
                    return False
                if response.status_code == 404:
                    raise Vanished
                if response.status_code != 200:
                    raise refusal(response.status_code, response.headers, await body_of(response, MAX_REASON))
                check_identity(response.headers)
                etag = response.headers.get("ETag", "").removeprefix("W/").strip('"')
                most = _most(wanted, etag, response.headers)
                async for chunk in response.aiter_raw():
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


def _most(wanted: Version, etag: str, headers: httpx.Headers) -> int:
    """How many bytes may come: what was announced, or what the head of another version says (RFC 9112, section 6.3)."""
    other = SHA256.fullmatch(etag) and etag != wanted.sha256 and "Transfer-Encoding" not in headers
    return max(wanted.size, int(headers.get("Content-Length", "0"))) if other else wanted.size


def _listing(body: bytes) -> Listing:
    """What a listing says. Raises BadAnswer."""
    match parsed(body):
        case {"cursor": str(cursor), "files": list(files)}:
            split(cursor)
            return Listing(cursor, [_entry(file) for file in files])
    raise BadAnswer('a listing has "cursor" and "files"')


def _entry(file: Any) -> Entry:
    match file:
        case {"path": str(path), "size": int() | float() | None as size, "sha256": str() | None as sha256}:
            return Entry(path, None if size is None else whole(size), sha256)
    raise BadAnswer('a file in a listing has "path", "size" and "sha256"')
