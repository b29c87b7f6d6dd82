"""One service, many processes: who hears what, by which log they share.

    private_logs(4)   each its own feed               an update reaches one of them
    shared_log(4)     each a reader of one log        an update reaches all of them
    consumer_group, cursors    the same difference, in Redis itself, without a server of ours

Redis (or Valkey) and its Python client are asked for, not required: where they are missing, one feed in memory is
shared by servers of one process, and a queue stands for the group. `name` says which it was.
"""

import contextlib
import importlib.util
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from servers.feed import Feed

STREAM = "updates"
GROUP = "workers"


def has_redis() -> bool:
    """Whether a Redis can be started here, and be spoken to."""
    if importlib.util.find_spec("redis") is None:
        return False
    from lab.proxies import redis_server

    return redis_server.installed() is not None


@dataclass(frozen=True)
class Logs:
    """One feed for each worker, and what stands behind them."""

    name: str
    feeds: list[Feed]


def private_logs(workers: int) -> Logs:
    """A log for each worker: what a service has whose `Feed()` stands in each process."""
    return Logs("a feed in each process", [Feed() for _ in range(workers)])


@contextlib.contextmanager
def shared_log(workers: int) -> Iterator[Logs]:
    """Readers of one log, one for each worker: of a Redis started for it, or else of one feed in memory."""
    if not has_redis():
        yield Logs("one feed in memory", [Feed()] * workers)
        return
    from lab.proxies import RedisServer
    from servers.redis_feed import RedisFeed

    with contextlib.ExitStack() as ends:
        log = ends.enter_context(RedisServer())
        yield Logs("Redis Streams", [ends.enter_context(RedisFeed(log.url)) for _ in range(workers)])


def consumer_group(connection: Any, workers: int, updates: int) -> list[list[int]]:
    """What each worker gets of a stream's entries as a member of one group, by turns: XREADGROUP."""
    connection.delete(STREAM)
    connection.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    got: list[list[int]] = [[] for _ in range(workers)]
    for number in range(updates):
        connection.xadd(STREAM, {"number": number})
        worker = number % workers
        for _, entries in connection.xreadgroup(GROUP, f"worker {worker}", {STREAM: ">"}):
            got[worker] += [int(fields[b"number"]) for _, fields in entries]
    return got


def cursors(connection: Any, workers: int, updates: int) -> list[list[int]]:
    """What each worker gets of them with a cursor of its own: XREAD."""
    connection.delete(STREAM)
    got: list[list[int]] = [[] for _ in range(workers)]
    last = ["0"] * workers
    for number in range(updates):
        connection.xadd(STREAM, {"number": number})
        for worker in range(workers):
            for _, entries in connection.xread({STREAM: last[worker]}):
                got[worker] += [int(fields[b"number"]) for _, fields in entries]
                last[worker] = entries[-1][0]
    return got


def group_and_cursors(workers: int, updates: int) -> tuple[str, list[list[int]], list[list[int]]]:
    """Both, in a Redis started for it; else a queue, and one feed."""
    if has_redis():
        import redis

        from lab.proxies import RedisServer

        with RedisServer() as server, redis.Redis(port=server.port, protocol=2) as connection:
            return "Redis", consumer_group(connection, workers, updates), cursors(connection, workers, updates)
    work: queue.SimpleQueue[int] = queue.SimpleQueue()
    taken: list[list[int]] = [[] for _ in range(workers)]
    for number in range(updates):
        work.put(number)
        taken[number % workers].append(work.get())
    feed = Feed()
    for number in range(updates):
        feed.publish(f"{number}")
    read = [[int(update.path) for update in feed.read(0).updates] for _ in range(workers)]
    return "a queue", taken, read
