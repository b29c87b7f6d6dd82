"""The same feed for many processes and hosts: the log is a Redis stream, and each process keeps a replica of it.

    publish() ──▶ one script in Redis: next number, XADD, trim, known files ──▶ stream
                                                                                  │ one reader a process
    every server ◀── read, follow, listing ◀── replica: the log of feed.py ◀──────┘

A server sees no difference: what it reads and waits for is the replica. Whoever publishes reads on to its own update
before it goes on. Valkey speaks the same; nothing newer than Redis 6.2 is asked for.

Beside the stream KEY, whose entries have the ids "<seq>-0", stand
    KEY:log        a hash: the epoch, the last number and the next one, the run of Redis that they are of, some counts
    KEY:files      a hash: what a listing says at the last number
    KEY:holder     the lease of who may publish what the directory says (servers/shared.py)
    KEY:by:NAME    the last update of one publisher, so that it can ask again when it got no answer

Redis may lose the end of its log: an append-only file is written out once a second, a replica that takes over lags.
So each connection tells Redis first which run of it this is. In another run than the last one the next number is
SKIP higher: a number that might be known to a client already is never given to another update. What is missing is
then seen as such by whoever knows more than the log: "epoch". A client that knows less goes on, and nothing is lost.

Redis may also lose a key alone: one that evicts, one that somebody tidies. Half a listing would be taken for all of it,
and copies would be emptied. So the files are counted, and where the count is wrong the log is lost: another epoch.
"""

import bisect
import contextlib
import json
import logging
import random
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from servers.feed import (
    Batch,
    Change,
    Feed,
    FutureCursor,
    Gap,
    Known,
    Reason,
    Unavailable,
    Update,
    check_update,
)

KEY = "updates"
SKIP = 10**6  # numbers left out after a restart of Redis: more than it can have lost
OUTAGE = 30.0  # seconds without Redis, after which streams end, so that clients go elsewhere
ANSWER = 2.0  # seconds in which Redis answers, or counts as gone
PAUSE = 0.5  # seconds from one look at the log to the next, when nothing is published
PATIENCE = 2.0  # seconds for which a publisher asks again before it gives up
PAGE = 500  # entries read at a time, at most
PAGE_BYTES = 2 * 2**20  # of them, about: meanwhile Redis answers nobody else
LARGEST = 16 * 2**20  # bytes of one entry
REMEMBERED = 3600  # seconds for which a publisher's last update is
ABOUT = 64  # bytes of an update's JSON that its entry does not have

log = logging.getLogger("servers")

# KEYS of this and the next four: log, stream, files, holder. The epoch; false if there is none, or files are missing.
WHOLE = """
local function whole()
    local known = redis.call('HMGET', KEYS[1], 'epoch', 'files')
    return known[2] == tostring(redis.call('HLEN', KEYS[3])) and known[1]
end
"""
# ARGV: an epoch, this run of Redis, SKIP.
GREET = f"""{WHOLE}
local known = redis.call('HMGET', KEYS[1], 'epoch', 'run', 'next')
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if (newest and newest[2][1] ~= 'previous') or (not known[1] and redis.call('EXISTS', KEYS[1]) == 1) then
    return redis.error_reply('WRONGTYPE not a log of updates')
end
if not whole() then
    redis.call('DEL', unpack(KEYS))
    redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'run', ARGV[2], 'last', '0', 'next', '1', 'bytes', '0',
               'files', '0', 'published', '0')
elseif known[2] ~= ARGV[2] then
    redis.call('DEL', KEYS[4])
    redis.call('HSET', KEYS[1], 'run', ARGV[2], 'next', string.format('%.0f', known[3] + ARGV[3]))
end
"""
# KEYS[5]: by. ARGV: the publisher's count, its lease or '', history, bytes of it, ABOUT,
# REMEMBERED, path, change, what is known of the file or '' when it is deleted, and the content or nothing.
PUBLISH = f"""{WHOLE}
local function size(entry)
    local bytes = tonumber(ARGV[5])
    for i = 2, #entry, 2 do bytes = bytes + #entry[i] * (entry[i - 1] == 'content' and 4 / 3 or 1) end
    return math.ceil(bytes)
end
local before = redis.call('GET', KEYS[5])
if before then
    local count, answer = string.match(before, '^(%d+) (.+)$')
    if count == ARGV[1] then return answer end
end
if ARGV[2] ~= '' and redis.call('GET', KEYS[4]) ~= ARGV[2] then return 'fenced' end
if not whole() then return 'none' end
local known = redis.call('HMGET', KEYS[1], 'last', 'next', 'bytes')
local now = redis.call('TIME')
local at = string.format('%s.%06d', now[1], tonumber(now[2]))
local entry = {{'previous', known[1], 'at', at, 'path', ARGV[7], 'change', ARGV[8], 'known', ARGV[9]}}
if ARGV[10] then
    table.insert(entry, 'content')
    table.insert(entry, ARGV[10])
end
redis.call('XADD', KEYS[2], known[2] .. '-0', unpack(entry))
local bytes, count = known[3] + size(entry), redis.call('XLEN', KEYS[2])
while count > tonumber(ARGV[3]) or (bytes > tonumber(ARGV[4]) and count > 1) do
    bytes = bytes - size(redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1][2])
    count = count - 1
    redis.call('XTRIM', KEYS[2], 'MAXLEN', '=', count)
end
redis.call('HSET', KEYS[1], 'last', known[2], 'next', string.format('%.0f', known[2] + 1),
           'bytes', string.format('%.0f', bytes))
local gone = ARGV[9] == ''
local more = gone and 0 - redis.call('HDEL', KEYS[3], ARGV[7]) or redis.call('HSET', KEYS[3], ARGV[7], ARGV[9])
redis.call('HINCRBY', KEYS[1], 'files', more)
redis.call('HINCRBY', KEYS[1], 'published', 1)
local answer = known[2] .. ' ' .. at
redis.call('SET', KEYS[5], ARGV[1] .. ' ' .. answer, 'EX', ARGV[6])
return answer
"""
# KEYS[5]: files to come. ARGV: the lease or '', and how many files those are.
ADOPT = """
if ARGV[1] ~= '' and redis.call('GET', KEYS[4]) ~= ARGV[1] then return 'fenced' end
local known = redis.call('HMGET', KEYS[1], 'last', 'adopted')
if known[1] ~= '0' or known[2] then return 'not new' end
if redis.call('HLEN', KEYS[5]) ~= tonumber(ARGV[2]) then return redis.error_reply('the first look is gone again') end
redis.call('DEL', KEYS[3])
if ARGV[2] ~= '0' then
    redis.call('PERSIST', KEYS[5])
    redis.call('RENAME', KEYS[5], KEYS[3])
end
redis.call('HSET', KEYS[1], 'adopted', 1, 'files', ARGV[2])
return 'done'
"""
# ARGV: the entry after which to read, how many at most, of how many bytes, and 'files' when they are asked for.
LOOK = f"""{WHOLE}
local files = {{}}
if ARGV[4] == 'files' then files = redis.call('HGETALL', KEYS[3]) end
local each = (redis.call('HGET', KEYS[1], 'bytes') or 0) / math.max(1, redis.call('XLEN', KEYS[2]))
local count = math.max(1, math.floor(math.min(ARGV[2], ARGV[3] / math.max(1, each))))
local entries = redis.call('XRANGE', KEYS[2], ARGV[1], '+', 'COUNT', count)
return {{whole(), redis.call('HMGET', KEYS[1], 'last', 'next', 'adopted', 'published'),
        entries, #entries == count and 1 or 0, files}}
"""
# KEYS: holder. ARGV: a lease, milliseconds. A full Redis refuses only what nobody else holds. A lease that runs for
# longer, or for ever, is nobody's: the clock of Redis was set back, or somebody wrote it by hand.
HOLD = """
local left = redis.call('PTTL', KEYS[1])
if left >= 0 and left <= tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
# KEYS: holder. ARGV: a lease, milliseconds: 0 gives it back.
RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""


class Foreign(redis.RedisError):
    """What stands there is not this program's."""


class Fenced(RuntimeError):
    """Another process, or nobody, holds the lease by now: nothing was published."""

    def __init__(self) -> None:
        super().__init__("the lease is lost")


class Step(NamedTuple):
    """From `position` on numbers count from `seq`; what lies before them was left out for `reason`."""

    seq: int
    position: int
    reason: Reason


class Chart(NamedTuple):
    """Which number stands where: positions count on for ever, through losses and new epochs, so that nobody waits."""

    epoch: str
    former: str  # the epoch before
    base: int  # position of this one's beginning
    steps: tuple[Step, ...]


class View(NamedTuple):
    """What one look at Redis has found, all of one moment."""

    epoch: str
    last: int
    next: int
    adopted: int
    published: int
    entries: list[tuple[int, Update]]  # each with the number before it
    more: int  # whether there may be
    files: dict[str, Known]


class RedisFeed(Feed):
    """A feed whose log is in the Redis at `url`: "redis://:PASSWORD@HOST:PORT/DB?key=KEY"; `rediss:` is TLS.

    The bounds of the history are those of `Feed`, for the stream and for the replica; `epoch` names a log that is not
    there yet. `watched`: nobody knows what stands there before a first look was adopted. `fence` is the lease that
    whatever is published needs, "" none. While Redis cannot be read, `away` is true, `trouble` says why, and it heals
    by itself; after OUTAGE seconds it is `lost`, and so begins one that `waits` for Redis. Raises ValueError for a URL
    that is none, and Unavailable.
    """

    elsewhere = True

    def __init__(
        self,
        url: str,
        *,
        history: int = 10_000,
        history_bytes: int = 64 * 2**20,
        epoch: str | None = None,
        watched: bool = False,
        waits: bool = False,
    ) -> None:
        self._chart = Chart("", "", 0, ())
        super().__init__(history=history, history_bytes=history_bytes, epoch=epoch)
        self.place, self.key, options = parsed(url)
        self.watched, self.fence = watched, ""
        self._first_epoch = self.epoch
        options |= {"protocol": 2, "socket_timeout": ANSWER, "socket_connect_timeout": ANSWER}
        options |= {"retry": Retry(NoBackoff(), 0)}
        self._redis = redis.Redis(**options | {"redis_connect_func": self._greet})
        self._waiting = redis.Redis(
            **options | {"redis_connect_func": self._greet_waiting}
        )  # the reader's own, for news
        self._waiter = 0  # how Redis calls that connection
        self._publish = self._redis.register_script(PUBLISH)
        self._adopt = self._redis.register_script(ADOPT)
        self._hold = self._redis.register_script(HOLD)
        self._renew = self._redis.register_script(RENEW)
        self._read = self._redis.register_script(LOOK)
        self._name, self._count = secrets.token_hex(8), 0  # of this publisher, and of its updates
        self._publishing, self._reading = threading.Lock(), threading.Lock()
        self._seq = self._next = self._adopted = 0  # of the newest update; of the one to come; looks adopted
        self._published = 0  # by all
        self._looking: Any = None
        self._unread = self._unwritten = self._unheld = ""  # what keeps it from reading, publishing, having the lease
        self._closed = threading.Event()
        try:
            with self._reading:
                self._begin_anew()
        except redis.RedisError as error:
            self._unread = self._told(error)
            if not waits:
                self._redis.close()
                raise Unavailable(self._unread) from error
            self.away = self.lost = True
            self._note_trouble()
        self._reader = threading.Thread(target=self._follow, name=f"reader of {self.place}", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Read no more. A second call does nothing."""
        self._closed.set()
        with contextlib.suppress(redis.RedisError):
            if self._waiter and not self.away:
                self._redis.client_unblock(self._waiter)
        self._reader.join(2 * ANSWER)
        self._waiting.close()
        self._redis.close()

    # --- as Feed, but for the numbers ---

    @property
    def published(self) -> int:
        """How many updates of this epoch there have been, whoever began to read when."""
        return self._published

    def cursor_at(self, position: int) -> str:
        """The cursor that stands for a position; of one from before, a cursor that is a gap."""
        chart = self._chart
        at = bisect.bisect_right(chart.steps, position, key=lambda step: step.position) - 1
        if at < 0:
            return f"{chart.epoch if position >= chart.base else chart.former or chart.epoch}-0"
        step = chart.steps[at]
        return f"{chart.epoch}-{step.seq + position - step.position}"

    def position(self, cursor: str | None) -> int:
        """As the feed's. What is not known here may have been told by another process: then it reads on first.

        Of an epoch that is over nobody has told anything since: a whole herd asks with it.
        """
        try:
            return super().position(cursor)
        except (FutureCursor, Gap) as error:
            over = f"{cursor}".startswith(f"{self._chart.former}-")
            if isinstance(error, Gap) and (over or error.reason == "expired"):
                raise
        self.catch_up()
        return super().position(cursor)

    def _position_of(self, seq: int) -> int:
        if seq > self._seq:
            if seq < self._next:
                raise self._gap("epoch")  # Redis has lost it
            return super()._position_of(self._head + seq - self._seq)
        steps = self._chart.steps
        at = bisect.bisect_right(steps, seq, key=lambda step: step.seq) - 1
        if at < 0:
            raise self._gap("expired")
        position = steps[at].position + seq - steps[at].seq
        if at + 1 < len(steps) and position >= steps[at + 1].position:
            raise self._gap(steps[at + 1].reason)
        return position

    # --- publishing ---

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
        """Append an update, and wake all readers of all processes; it waits for Redis, so not on an event loop.

        It is in the log once, however often it has to ask. Raises ValueError as the feed's does, Fenced, and, when
        Redis did not say for PATIENCE seconds that it has it, Unavailable: then it may be there or not.
        """
        check_update(path, change, size, sha256, mtime, executable, content)
        known = "" if change == "deleted" else json.dumps([size, sha256, mtime, executable])
        if len(path) + len(content or b"") > LARGEST:
            raise ValueError(f"an update has at most {LARGEST // 2**20} MiB, in Redis")
        words: list[Any] = [self.fence, self.history, self.history_bytes, ABOUT, REMEMBERED, path, change, known]
        with self._publishing:
            self._count += 1
            keys = [*self._keys, self._at(f"by:{self._name}")]
            answer = self._asked(keys, [self._count, *words, *([] if content is None else [content])])
        seq, at = answer.split()
        fields = {b"at": at, b"path": path.encode(), b"change": change.encode(), b"known": known.encode()}
        update = made(self.epoch, int(seq), fields | ({} if content is None else {b"content": content}))
        with contextlib.suppress(redis.RedisError):  # it is in the log
            self.read_on()
        return update

    def _asked(self, keys: list[str], words: list[Any]) -> bytes:
        """What the script answers; until it does, it is asked again. Raises Fenced, Unavailable."""
        until, pause = time.monotonic() + PATIENCE, 0.01
        while True:
            try:
                answer = bytes(self._publish(keys=keys, args=words))
            except redis.RedisError as error:
                self._unwritten = self._told(error)
                self._note_trouble()
                passing = isinstance(error, redis.ConnectionError | redis.TimeoutError | redis.ReadOnlyError)
                if not passing or time.monotonic() > until or self._closed.is_set():
                    raise Unavailable(self._unwritten) from error
                if isinstance(error, redis.ReadOnlyError):  # it has been another's replica since we came
                    self._connect_anew()
                self._closed.wait(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, 0.5)
                continue
            if self._unwritten:
                self._unwritten = ""
                self._note_trouble()
            if answer == b"fenced":
                raise Fenced
            if answer != b"none":
                return answer
            self._connect_anew()  # whoever connects greets, and so makes the log anew

    def adopt(self, files: Mapping[str, Known | tuple[int | None, str | None]]) -> None:
        """Take `files` for what stands there. In a new log they are not published; else what differs from it is.

        Raises as `publish` does.
        """
        try:
            first = self._adopted_first(files)
            self.read_on()
        except redis.RedisError as error:
            raise Unavailable(self._told(error)) from error
        if not first:
            self._publish_what_differs(files)
        self._unwritten = ""
        self._note_trouble()

    def _publish_what_differs(self, files: Mapping[str, Known | tuple[int | None, str | None]]) -> None:
        _, told = self.listing()
        stand = {path: Known(*known) for path, known in files.items()}
        for path in [path for path in told if path not in stand and in_the_way(path, stand)]:
            self.publish(path, "deleted")
            del told[path]
        for path, known in sorted(stand.items()):
            if told.get(path) != known:
                change: Change = "modified" if path in told else "added"
                self.publish(path, change, **known._asdict())
        for path in sorted(told.keys() - stand.keys()):
            self.publish(path, "deleted")

    def _adopted_first(self, files: Mapping[str, Known | tuple[int | None, str | None]]) -> bool:
        """Put the files beside a new log; False if it is not new."""
        if self._seq or self._adopted:
            return False
        beside = self._at(f"files:{self._name}")
        self._redis.delete(beside)
        for some in pages(files, PAGE):
            self._redis.hset(beside, mapping={path: json.dumps(Known(*known)) for path, known in some})
            self._redis.expire(beside, REMEMBERED)
        answer = self._adopt(keys=[*self._keys, beside], args=[self.fence, len(files)])
        if answer == b"fenced":
            raise Fenced
        return bool(answer == b"done")

    @property
    def starting(self) -> Any:
        """Of a directory that is watched: until some process has looked at it, how far that is."""
        if not self.watched or self._adopted or self._seq:
            return None
        return self._looking or (lambda: "waiting for the first look of another process")

    @starting.setter
    def starting(self, progress: Any) -> None:
        self._looking = progress

    def known(self, path: str) -> Known | None:
        """What a listing says of one file."""
        with self._lock:
            return (self._files or {}).get(path)

    @property
    def lists(self) -> bool:
        """Whether any file stands there."""
        return bool(self._files)

    # --- the lease ---

    def hold(self, lease: str, seconds: float) -> bool:
        """Take the lease for so long, if nobody has it. Raises Unavailable."""
        try:
            held = bool(self._hold(keys=[self._at("holder")], args=[lease, int(1000 * seconds)]))
        except redis.RedisError as error:
            self._unheld = self._told(error)
            raise Unavailable(self._unheld) from error
        else:
            self._unheld = ""
            if not held:
                self._unwritten = ""  # it is another's now to write
        finally:
            self._note_trouble()
        return held

    def renew(self, lease: str, seconds: float) -> bool:
        """Keep the lease for so long, 0 gives it back; False if it was lost. Raises Unavailable."""
        try:
            return bool(self._renew(keys=[self._at("holder")], args=[lease, int(1000 * seconds)]))
        except redis.RedisError as error:
            raise Unavailable(self._told(error)) from error

    # --- reading ---

    def read_on(self) -> None:
        """Take what the log has by now. Raises redis.RedisError."""
        with self._reading:
            before = self._head
            while self._read_page():
                pass
            if self._head != before:
                self.wake()  # before anybody else can find that there is nothing to read, and go on

    def catch_up(self) -> None:
        """Take what the log has by now, if it can be read at all: another process may have told of it already."""
        if not self.away:
            with contextlib.suppress(redis.RedisError):
                self.read_on()

    def _read_page(self) -> bool:
        """Take up to PAGE entries, or PAGE_BYTES; say whether there may be more."""
        view = self._look(self._seq)
        if view.adopted != self._adopted and not view.more:
            view = self._look(self._seq, files=True)
        first = view.entries[0][0] if view.entries else view.last
        if view.epoch != self.epoch or min(view.last, first) < self._seq:
            if self._chart.steps:
                log.warning("Redis at %s has lost its log, or the end of it", self.place)
            self._begin_anew()
            return False
        with self._lock:
            self._next, self._published = view.next, view.published
            for previous, update in view.entries:
                self._take(previous, update)
            if not view.more and self._seq < view.last:
                self._leave_out(view.last)
            if view.adopted != self._adopted and not view.more:
                self._files, self._adopted = view.files, view.adopted
        return bool(view.more)

    def _begin_anew(self) -> None:
        """Take all that there is in the place of what was known. Positions go on: whoever waits gets a gap."""
        epoch, entries, files = "", list[tuple[int, Update]](), False
        while True:
            view = self._look(entries[-1][1].seq if entries else 0, files=files)
            if entries and view.epoch != epoch:
                entries, files = [], False
                continue
            epoch = view.epoch
            entries += view.entries
            if files and not view.more:
                break  # these are the files that stand at the last of the entries
            files = not view.more
        with self._lock:
            seq = entries[0][0] if entries else view.last
            self._head = self._base = self._head + 1 if self._chart.steps else seq
            former, self.epoch = self._chart.epoch, epoch
            self._chart = Chart(epoch, former, self._base, (Step(seq, self._base, "epoch"),))
            self._log.clear()
            self._bytes, self._files, self._seq = 0, None, seq
            self._next, self._adopted, self._published = view.next, view.adopted, view.published
            for previous, update in entries:
                self._take(previous, update)
            self._files = view.files
            self._latest = Batch((), self._head, self.cursor_at(self._head))
        self.wake()

    def _take(self, previous: int, update: Update) -> None:
        """Append an entry to the replica."""
        seq = update.seq
        if seq <= self._seq:
            return
        if previous > self._seq:
            self._leave_out(previous)
        if seq != self._seq + 1:
            self._step(Step(seq, self._head + 1, "epoch"))
        self._seq = seq
        self._append(update)

    def _leave_out(self, until: int) -> None:
        """Some entries were gone before they were read here."""
        self._log.clear()
        self._bytes = 0
        self._head += 1
        self._step(Step(until, self._head, "expired"))
        self._seq = until

    def _step(self, step: Step) -> None:
        self._chart = self._chart._replace(steps=(*self._chart.steps, step)[-100:])

    def _look(self, after: int, *, files: bool = False) -> View:
        """What stands in Redis, and the entries after a number. Raises redis.RedisError: Foreign, for one."""
        while True:  # a script and no transaction: a full Redis takes no commands into a queue
            asked: list[str | int] = [f"({after}-0" if after else "-", PAGE, PAGE_BYTES, "files" if files else ""]
            epoch, (last, following, adopted, published), entries, more, known = self._read(self._keys, asked)
            if epoch is not None:
                break
            self._connect_anew()  # whoever connects greets, and so makes the log anew
        try:
            return View(
                (epoch := epoch.decode()),
                *(int(last), int(following), int(adopted or 0), int(published)),
                [entry(epoch, name, dict(pairs(fields))) for name, fields in entries],
                more,
                {path.decode(): Known(*json.loads(about)) for path, about in pairs(known)},
            )
        except (TypeError, ValueError) as error:
            raise Foreign(str(error)) from error

    def _follow(self) -> None:
        """Read on whenever there is something, until it is closed; heal what can be."""
        since, pause = 0.0, 0.05
        while not self._closed.is_set():
            try:
                self._waiting.xread({self.key: f"{self._seq}-0"}, count=1, block=int(1000 * PAUSE))
                self.read_on()
            except Exception as error:  # of any kind: a reader that has died looks like a log without news
                since = since or time.monotonic()
                self._unread = self._told(error)
                if not self._closed.is_set():
                    self.away = True
                    self._note_trouble()
                    if not self.lost and time.monotonic() - since > OUTAGE:
                        self.lost = True
                        self.wake()
                self._closed.wait(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, 2.0)
            else:
                if self.away:
                    self._unread, self._unwritten, self.away, self.lost = "", "", False, False
                    self._note_trouble()
                since, pause = 0.0, 0.05

    # --- Redis ---

    def _at(self, name: str) -> str:
        return f"{self.key}:{name}"

    @property
    def _keys(self) -> list[str]:
        return [self._at("log"), self.key, self._at("files"), self._at("holder")]

    def _connect_anew(self) -> None:
        """Have the next command greet first; the connections that other threads are using are theirs."""
        self._redis.connection_pool.disconnect(inuse_connections=False)

    def _greet(self, connection: Any) -> None:
        """Begin a connection: tell Redis which run of it this is, so that a log that was cut off is noticed first."""
        connection.on_connect()
        connection.send_command("INFO", "server")
        lines = connection.read_response().decode().splitlines()
        run = next((line.partition(":")[2] for line in lines if line.startswith("run_id:")), "")
        if not run:
            raise redis.ResponseError("its INFO has no run_id, which tells a restart")
        epoch, self._first_epoch = self._first_epoch, secrets.token_hex(4)
        connection.send_command("EVAL", GREET, len(self._keys), *self._keys, epoch, run, SKIP)
        connection.read_response()

    def _greet_waiting(self, connection: Any) -> None:
        """And learn how Redis calls it, to end a wait."""
        self._greet(connection)
        connection.send_command("CLIENT", "ID")
        self._waiter = int(connection.read_response())

    def _note_trouble(self) -> None:
        """Say what the trouble is, when it begins, and when it is over."""
        before, self.trouble = self.trouble, self._unread or self._unwritten or self._unheld or None
        if self.trouble and not before:
            log.warning("%s", self.trouble)
        elif before and not self.trouble:
            log.warning("Redis at %s is well again", self.place)

    def _told(self, error: Exception) -> str:
        """An error in one line, without a password."""
        text = " ".join(str(error).split())
        match error:
            case redis.exceptions.NoPermissionError():
                said = f"lets this user do too little ({text})"
            case redis.AuthenticationError():
                said = f"lets nobody in with this name and password ({text})"
            case redis.exceptions.ClusterCrossSlotError() | redis.exceptions.MovedError():
                said = f"is one of a cluster, and has not all keys of a feed ({text})"
            case redis.BusyLoadingError():
                said = "is still loading its data"
            case redis.TimeoutError():
                said = f"does not answer within {ANSWER:g} s"
            case redis.ConnectionError():
                said = f"cannot be reached ({text})"
            case redis.ReadOnlyError():
                said = "is a replica of another, and takes no updates"
            case redis.OutOfMemoryError():
                said = "is full (maxmemory): it takes no more updates"
            case Foreign():
                said = f"has something else under the key {self.key!r} ({text})"
            case _ if "WRONGTYPE" in text or "target stream top item" in text:
                said = f"has something else under the key {self.key!r}"
            case _ if "OOM" in text:
                said = "is full (maxmemory): it takes no more updates"
            case redis.RedisError():
                said = f"refuses: {text}"
            case _:
                said = f"is not understood ({type(error).__name__}: {text})"
        return f"Redis at {self.place} {said}"


def parsed(url: str) -> tuple[str, str, dict[str, Any]]:
    """Where it is, as it is shown; the key; and how to connect. Raises ValueError."""
    form = "a feed is redis://HOST:PORT/DB?key=KEY (rediss:// with TLS)"
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
        asked = parse_qs(parts.query, strict_parsing=bool(parts.query))
    except ValueError:
        raise ValueError(form) from None
    host, database = parts.hostname, parts.path.strip("/") or "0"
    key = asked.pop("key", [KEY])
    if parts.scheme not in ("redis", "rediss") or not host or asked or len(key) != 1 or parts.fragment:
        raise ValueError(form)
    if not (database.isascii() and database.isdecimal()):
        raise ValueError(form)
    options: dict[str, Any] = {"host": host, "port": port, "db": int(database)}
    for name, value in (("username", parts.username), ("password", parts.password)):
        if value:
            options[name] = unquote(value)
    if parts.scheme == "rediss":
        options["ssl"] = True
    return f"{f'[{host}]' if ':' in host else host}:{port}", key[0], options


def entry(epoch: str, name: bytes, fields: Mapping[bytes, bytes]) -> tuple[int, Update]:
    """The number before an entry, and its update. Raises Foreign."""
    try:
        seq = int(name.removesuffix(b"-0"))
        return int(fields[b"previous"]), made(epoch, seq, fields)
    except (KeyError, TypeError, ValueError) as error:
        raise Foreign(f"the entry {name.decode()}") from error


def made(epoch: str, seq: int, fields: Mapping[bytes, Any]) -> Update:
    """The update that an entry is. Raises KeyError, TypeError or ValueError when it is none."""
    published = float(fields[b"at"])
    now = time.time()
    stamp = time.perf_counter() - max(0.0, now - published)  # after: it is not earlier than it was
    change: Any = fields[b"change"].decode()
    size, sha256, mtime, executable = json.loads(fields[b"known"]) if fields[b"known"] else [None] * 4
    path, content = fields[b"path"].decode(), fields.get(b"content")
    check_update(path, change, size, sha256, mtime, executable, content)
    cursor = f"{epoch}-{seq}"
    return Update(
        *(seq, cursor, path, change, size, sha256, published, stamp, mtime, executable),
        content=content,
    )


def in_the_way(path: str, others: Mapping[str, object]) -> bool:
    """Whether one of the other paths is below this one, or above."""
    parts = path.split("/")
    above = any("/".join(parts[:end]) in others for end in range(1, len(parts)))
    return above or any(other.startswith(f"{path}/") for other in others)


def pairs(flat: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Names and values, as a script returns them: one after the other."""
    return zip(flat[::2], flat[1::2], strict=True)


def pages(files: Mapping[str, Any], size: int) -> Iterator[list[tuple[str, Any]]]:
    """All of it, so many at a time."""
    items = list(files.items())
    for first in range(0, len(items), size):
        yield items[first : first + size]
