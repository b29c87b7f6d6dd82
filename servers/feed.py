"""The log every server reads, and the one place where anybody waits for news.

    publish() ──▶ log (bounded) ──▶ read(position) ──▶ Batch ──▶ a server writes it
                    └─▶ bell of each event loop ──▶ wait(position) returns

A reader holds a *position* in the log, never a queue. A publish rings each event loop once; whoever
waits there reads on from where it stands. On the wire a position is a *cursor*, "<epoch>-<seq>": the
epoch names this log, so that a cursor from before a restart is recognised and never silently reused.
"""

import asyncio
import base64
import json
import re
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, get_args

Change = Literal["added", "modified", "deleted"]
Reason = Literal["expired", "epoch"]
Encoded = TypeVar("Encoded", bytes, str)

HEARTBEAT = 15.0  # seconds; a client takes 2.5 of them in silence for a dead link
BATCH = 500  # updates in one answer at most: a reader that is far behind asks again
BATCH_BYTES = 2**18  # bytes of them, beyond which it is full: what one reader can make the server hold
CHANGES = get_args(Change)
TO_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # json.dumps makes an encoder a call
CURSOR = re.compile(r"([0-9a-z]{1,32})-(0|[1-9][0-9]{0,17})")


class Known(NamedTuple):
    """What a listing says of a file: bytes, SHA-256, Unix time (s) of its last change, and whether it may be run."""

    size: int | None
    sha256: str | None
    mtime: float | None = None
    executable: bool | None = None


class BadCursor(ValueError):
    """A cursor that this server cannot have handed out; the text is one sentence for the client."""


class FutureCursor(BadCursor):
    """A cursor of this epoch, but beyond the newest update."""


class Gap(Exception):
    """The log cannot go on from a reader's cursor: some updates are gone for it, and it must list again.

    `reason` is "expired" (the history no longer reaches back so far) or "epoch" (another log's cursor).
    `cursor` is the head at this moment, where a stream goes on (`position` is its number); `oldest` is
    the oldest cursor that would still have been answered in full.
    """

    def __init__(self, reason: Reason, position: int, cursor: str, oldest: str) -> None:
        super().__init__(f"cannot resume ({reason}): list again, then go on from {cursor}")
        self.reason, self.position, self.cursor, self.oldest = reason, position, cursor, oldest

    def as_dict(self) -> dict[str, str]:
        """What goes on the wire: {"reason", "cursor", "oldest"}."""
        return {"reason": self.reason, "cursor": self.cursor, "oldest": self.oldest}


class Unavailable(RuntimeError):
    """A log that is elsewhere, and gone, full, or not what it should be; the text is one line that says so."""


@dataclass(frozen=True, slots=True)
class Update:
    """One change of one file. `json` is its only encoding, made once, when the feed accepts it.

    `seq` counts from 1 within an epoch. `size` is in bytes. `published` is Unix time (s); `stamp` is the
    same moment on `time.perf_counter()` (s), for delays measured in this process, never on the wire. `mtime` (Unix
    time, s) and `executable` are there for a real file only.
    """

    seq: int
    cursor: str
    path: str
    change: Change
    size: int | None
    sha256: str | None
    published: float
    stamp: float
    mtime: float | None = None
    executable: bool | None = None
    json: bytes = field(init=False, repr=False, compare=False)
    content: InitVar[bytes | None] = None

    def __post_init__(self, content: bytes | None) -> None:
        known = {"seq": self.seq, "path": self.path, "change": self.change, "size": self.size, "sha256": self.sha256}
        if self.mtime is not None:
            known |= {"mtime": self.mtime, "executable": self.executable}
        text = TO_JSON(known)[:-1] + f',"published":{self.published:.6f}'
        if content is not None:
            text += f',"content":"{base64.b64encode(content).decode()}"'
        object.__setattr__(self, "json", f"{text}}}".encode())


class Batch:
    """Consecutive updates and the position after them: one object for all readers of that stretch."""

    def __init__(self, updates: tuple[Update, ...], position: int, cursor: str) -> None:
        self.updates, self.position, self.cursor = updates, position, cursor
        self.start = position - len(updates)
        self._encodings: dict[Callable[..., Any], Any] = {}

    def encoded(self, encode: "Callable[[Batch], Encoded]") -> Encoded:
        """What `encode(self)` gives, computed once, however many clients ask."""
        if encode not in self._encodings:
            self._encodings[encode] = encode(self)
        answer: Encoded = self._encodings[encode]
        return answer

    @property
    def body(self) -> bytes:
        """The JSON object of a pull: {"updates": [...], "cursor": C}."""
        return self.encoded(_body)


def _body(batch: Batch) -> bytes:
    return b'{"updates":[' + b",".join(u.json for u in batch.updates) + b'],"cursor":"' + batch.cursor.encode() + b'"}'


class Stop(Protocol):
    """A server's closing signal, as a waiting reader sees it."""

    def is_set(self) -> bool:
        """Whether that server is about to stop."""


class Bell:
    """The readers of one event loop that wait for news."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self.rung = loop, False
        self._waiting: dict[asyncio.Future[None], None] = {}  # a dict keeps the order: runs can be repeated

    def ring(self) -> None:
        """From any thread: have the loop wake all who wait there, once, however often it rings until then."""
        if self.rung:
            return
        self.rung = True
        here = asyncio._get_running_loop() is self.loop
        (self.loop.call_soon if here else self.loop.call_soon_threadsafe)(self._wake)

    def _wake(self) -> None:
        self.rung = False  # first: whoever publishes from now on rings again
        waiting, self._waiting = self._waiting, {}
        for reader in waiting:
            if not reader.done():
                reader.set_result(None)

    async def heard(self) -> None:
        """Return at the next ring."""
        reader = self.loop.create_future()
        self._waiting[reader] = None
        try:
            await reader
        finally:
            self._waiting.pop(reader, None)


class Feed:
    """An append-only log of updates with a bounded history; safe to publish to from any thread.

    `history` bounds the updates kept, `history_bytes` their JSON bytes; `epoch` names the log (random
    unless given). One feed may serve several servers on several event loops.
    """

    elsewhere = False  # whether a publish waits for another process

    def __init__(self, *, history: int = 10_000, history_bytes: int = 64 * 2**20, epoch: str | None = None) -> None:
        if history < 1 or history_bytes < 1:
            raise ValueError("the history must hold at least one update and one byte")
        self.epoch = epoch or secrets.token_hex(4)
        if not CURSOR.fullmatch(f"{self.epoch}-0"):
            raise ValueError(f"an epoch is 1 to 32 digits and small letters, not {self.epoch!r}")
        self.history, self.history_bytes = history, history_bytes
        self.starting: Callable[[], str] | None = None  # until a source can tell what changes: how far it is
        self.delayed: str | None = None  # what its source waits for before it can tell more
        self.trouble: str | None = None  # what keeps it from knowing all that is published: it may be elsewhere
        self.away = self.lost = False  # it cannot be read at present; and has not been for so long that streams end
        self.skipped = 0  # files that a source had to leave out: names that are not UTF-8, unreadable ones
        self._log: dict[int, Update] = {}
        self._files: dict[str, Known] | None = None  # kept from when a listing is first asked for
        self._bytes = 0
        self._head = self._base = 0  # positions of the newest update, and of this epoch's beginning
        self._latest = Batch((), 0, self.cursor_at(0))
        self._lock = threading.Lock()
        self._bells: dict[asyncio.AbstractEventLoop, Bell] = {}

    def __repr__(self) -> str:
        return f"Feed({self.cursor}, {len(self._log)} kept)"

    def __len__(self) -> int:
        """How many updates are kept."""
        return len(self._log)

    @property
    def head(self) -> int:
        """The sequence number of the newest update; 0 when there is none."""
        return self._head

    @property
    def published(self) -> int:
        """How many updates of this epoch there have been."""
        return self._head

    @property
    def cursor(self) -> str:
        """The cursor of the head: "from now on"."""
        return self.cursor_at(self._head)

    def cursor_at(self, position: int) -> str:
        """The cursor that stands for a position."""
        return f"{self.epoch}-{position}"

    def publish(
        self,
        path: str,
        change: Change = "modified",
        *,
        size: int | None = None,
        sha256: str | None = None,
        mtime: float | None = None,
        executable: bool | None = None,
        content: bytes | None = None,
    ) -> Update:
        """Append an update and wake all readers. Raises ValueError on what no client should ever see."""
        check_update(path, change, size, sha256, mtime, executable, content)
        with self._lock:
            seq = self._head + 1
            published, stamp = round(time.time(), 6), time.perf_counter()
            cursor = self.cursor_at(seq)
            update = Update(
                seq, cursor, path, change, size, sha256, published, stamp, mtime, executable, content=content
            )
            self._append(update)
        self.wake()
        return update

    def _append(self, update: Update) -> None:
        position = self._head + 1
        self._log[position] = update
        self._bytes += len(update.json)
        while len(self._log) > self.history or (self._bytes > self.history_bytes and len(self._log) > 1):
            self._bytes -= len(self._log.pop(position - len(self._log) + 1).json)
        if self._files is not None:
            note(self._files, update)
        self._head = position  # last: whoever sees it finds the update in the log

    def adopt(self, files: Mapping[str, Known | tuple[int | None, str | None]]) -> None:
        """Take `files` for what stands at the head: what was there before the first update is not published."""
        with self._lock:
            self._files = {path: Known(*known) for path, known in files.items()}

    def listing(self) -> tuple[int, dict[str, Known]]:
        """The head and the files that stand there, by path: what all updates, one by one, led to.

        It is kept from the first call on, or from `adopt`. What the history had lost before that is not in it.
        """
        with self._lock:
            if self._files is None:
                self._files = {}
                for update in self._log.values():
                    note(self._files, update)
            return self._head, dict(self._files)

    def position(self, cursor: str | None) -> int:
        """The position a cursor stands for: None is the head, "" and "0" the oldest kept.

        Raises BadCursor (FutureCursor when it is of this epoch), or Gap when updates after it are gone.
        """
        with self._lock:
            if cursor is None:
                return self._head
            if cursor in ("", "0"):
                return self._head - len(self._log)
            match = CURSOR.fullmatch(cursor[:64])
            if not match:
                raise BadCursor('a cursor looks like "<epoch>-<number>", and only a server hands it out')
            if match[1] != self.epoch:
                raise self._gap("epoch")
            position = self._position_of(int(match[2]))
            if position < self._head - len(self._log):
                raise self._gap("expired")
            return position

    def _position_of(self, seq: int) -> int:
        """Where that number stands. Raises FutureCursor."""
        if seq > self._head:
            raise FutureCursor(f"the cursor is ahead of this log, whose newest is {self.cursor}")
        return seq

    def read(self, position: int) -> Batch:
        """What is later than `position`, oldest first; Gap when some of it is gone.

        A batch is full with BATCH updates, or with the one that brings it to BATCH_BYTES.
        """
        latest = self._latest
        if latest.position == self._head and latest.start == position:
            return latest  # what the reader before this one got
        with self._lock:
            if position < self._head - len(self._log):
                raise self._gap("expired" if position >= self._base else "epoch")
            updates = list[Update]()
            size, end = 0, position
            while end < self._head and len(updates) < BATCH and size < BATCH_BYTES:
                end += 1
                updates.append(self._log[end])
                size += len(updates[-1].json)
            self._latest = latest = Batch(tuple(updates), end, self.cursor_at(end))
            return latest

    def opening(self, after: str | None, last_event_id: str | None = None) -> Batch | Gap:
        """Where a stream begins: an empty batch at the cursor, or the gap it must report. Raises BadCursor.

        `last_event_id` wins over `after`. One of any form is a gap at worst: another server may have given it out, and
        whoever sends it, an EventSource, would give up for good at a 400.
        """
        try:
            position = self.position(last_event_id or after)
        except BadCursor as error:
            if not (last_event_id or isinstance(error, FutureCursor)):
                raise
            with self._lock:
                return self._gap("epoch")  # a stream answers with a reset what a pull answers with 400
        except Gap as gap:
            return gap
        return Batch((), position, self.cursor_at(position))

    async def follow(self, position: int, closing: Stop) -> AsyncGenerator[Batch | Gap, None]:
        """Everything later than `position`, as it comes, until `closing`. After a Gap it goes on from the head."""
        bell = self._bell()
        while not closing.is_set():
            if position >= self._head:
                await bell.heard()  # as in wait(), without a coroutine more for every update and client
                continue
            news: Batch | Gap
            try:
                news = self.read(position)
            except Gap as gap:
                news = gap
            position = news.position
            yield news

    async def wait(self, position: int, closing: Stop) -> None:
        """Return once something later than `position` is in the log, or `closing` is set."""
        bell = self._bell()
        # No hole between looking and waiting: a publish moves the head before it rings, and the bell
        # wakes on this loop, so never between these two lines.
        while position >= self._head and not closing.is_set():
            await bell.heard()

    def wake(self) -> None:
        """From any thread: let every waiting reader look again, at the log and at its server's closing signal."""
        for bell in tuple(self._bells.values()):
            try:
                bell.ring()
            except RuntimeError:
                pass  # that loop is closed, and its readers with it

    def _bell(self) -> Bell:
        loop = asyncio.get_running_loop()
        bell = self._bells.get(loop)
        if bell is None:
            bell = Bell(loop)
            with self._lock:  # loops of several threads may come at once
                alive = {other: its for other, its in self._bells.items() if not other.is_closed()}
                self._bells = {**alive, loop: bell}  # a new dict: wake() may be reading the old one
        return bell

    def _gap(self, reason: Reason) -> Gap:
        return Gap(reason, self._head, self.cursor, self.cursor_at(self._head - len(self._log)))


def check_update(
    path: str,
    change: Change,
    size: int | None,
    sha256: str | None,
    mtime: float | None,
    executable: bool | None,
    content: bytes | None,
) -> None:
    """Raise ValueError on what no client should ever see."""
    check_path(path)
    if change not in CHANGES:
        raise ValueError(f"a change is one of {', '.join(CHANGES)}, not {change!r}")
    if change == "deleted" and {size, sha256, mtime, executable, content} != {None}:
        raise ValueError("a deleted file has no size, hash or content")
    if (mtime is None) != (executable is None):
        raise ValueError("a file's time and its executable bit travel together")


def note(files: dict[str, Known], update: Update) -> None:
    """Do to a listing what the update says."""
    if update.change == "deleted":
        files.pop(update.path, None)
    else:
        files[update.path] = Known(update.size, update.sha256, update.mtime, update.executable)


def check_path(path: str) -> None:
    """Raise ValueError unless `path` is relative, POSIX and UTF-8, with no empty, "." or ".." part."""
    if any(part in ("", ".", "..") for part in path.split("/")) or "\0" in path:
        raise ValueError(f"a path is relative, with '/' between its parts and no '..', not {path!r}")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"a path is UTF-8, not {path!r}") from None
