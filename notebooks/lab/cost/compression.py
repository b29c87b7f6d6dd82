"""What compressing a stream saves and costs: one context for the whole stream against one for each event, and TLS.

    events ─▶ a compressor, flushed after each event so none waits ─▶ bytes, CPU seconds, memory of a connection

The memory is the process's: many compressors are made and kept. permessage-deflate is zlib as well; that its context
is kept from one message to the next is its "context takeover" (RFC 7692, section 7.1.1). brotli takes part if it is
installed.
"""

import gc
import importlib.util
import json
import random
import ssl
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from lab.proxies.nginx import certificate

COPIES = 100  # compressors that are kept to see what one takes
LEVEL = 6
Compress = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Compressed:
    """One way to compress: bytes and CPU seconds per event, and bytes of memory per connection."""

    way: str
    size: float
    cpu: float
    memory: float


def events(count: int, seed: int = 1) -> list[bytes]:
    """Updates as a feed publishes them, as event stream blocks: paths from a tree, sizes and hashes at random."""
    draw, blocks = random.Random(seed), []
    for seq in range(1, count + 1):
        path = f"{draw.choice(['reports', 'images', 'notes'])}/file-{draw.randrange(200):03}.csv"
        update = {"seq": seq, "path": path, "change": draw.choice(["added", "modified", "modified"]),
                  "size": draw.randrange(100, 100_000), "sha256": draw.randbytes(32).hex(),
                  "published": round(1_700_000_000 + seq * 0.371 + draw.random() / 9, 6)}  # fmt: skip
        blocks.append(f"event: update\nid: e0e0-{seq}\ndata: {json.dumps(update, separators=(',', ':'))}\n\n".encode())
    return blocks


def alone() -> Compress:
    """A context of its own for each event, as a proxy or middleware does that compresses piece by piece."""
    return lambda event: _flushed(zlib.compressobj(LEVEL, wbits=-15), event)


def shared(window: int = 15, memory: int = 8) -> Compress:
    """One context for the whole stream; a `window` of 2**window bytes, 9 to 15, and zlib's `memory` level, 1 to 9."""
    kept = zlib.compressobj(LEVEL, wbits=-window, memLevel=memory)
    return lambda event: _flushed(kept, event)


def brotli_shared(window: int = 18, quality: int = 4) -> Compress:
    """One brotli context for the whole stream. Raises ImportError where brotli is not installed."""
    import brotli  # an extra

    kept = brotli.Compressor(quality=quality, lgwin=window)
    return lambda event: bytes(kept.process(event) + kept.flush())


def _flushed(kept: "zlib._Compress", event: bytes) -> bytes:
    return kept.compress(event) + kept.flush(zlib.Z_SYNC_FLUSH)


def ways() -> dict[str, Callable[[], Compress]]:
    """What there is to compare, by name."""
    found: dict[str, Callable[[], Compress]] = {
        "none": lambda: lambda event: event,
        "gzip, each event alone": alone,
        "gzip, one context": shared,
        "gzip, one context of 4 KiB": lambda: shared(12, 5),
    }
    if importlib.util.find_spec("brotli") is None:
        return found
    return found | {"brotli, one context": brotli_shared}


def compressed(way: str, sent: Sequence[bytes]) -> Compressed:
    """What one of `ways` makes of these events."""
    make = ways()[way]
    compress, begin = make(), time.thread_time()
    size = sum(len(compress(event)) for event in sent)
    cpu = time.thread_time() - begin
    return Compressed(way, size / len(sent), cpu / len(sent), _memory(make, sent[:20]))


def _memory(make: Callable[[], Compress], sent: Sequence[bytes]) -> float:
    """Bytes that a compressor takes once it has worked, by the resident set of this process."""
    gc.collect()
    account, kept = psutil.Process(), []
    before = account.memory_info().rss
    for _ in range(COPIES):
        compress = make()
        for event in sent:
            compress(event)
        kept.append(compress)
    return max(0.0, (account.memory_info().rss - before) / len(kept))


@dataclass(frozen=True)
class Secured:
    """TLS between two ends in memory: bytes each way and CPU seconds of the handshake, and per record of `payload`."""

    version: str
    up: int
    down: int
    cpu: float
    record: int
    record_cpu: float


def secured(payload: int = 250, records: int = 2000) -> Secured:
    """A TLS handshake and then so many records down, without sockets: what leaves each end is counted.

    The CPU time is both ends' together, each a library call on this thread.
    """
    files = certificate()
    server, client = _ends(files["cert.pem"], files["key.pem"])
    began, up, down = time.thread_time(), 0, 0
    while not (server.done and client.done):
        client.step()
        up += server.take(client)
        server.step()
        down += client.take(server)
    cpu, text = time.thread_time() - began, bytes(payload)
    client.take(server)
    began, sent = time.thread_time(), 0
    for _ in range(records):
        server.tls.write(text)
        sent += client.take(server)
        client.tls.read(payload)
    spent = time.thread_time() - began
    return Secured(str(client.tls.version()), up, down, cpu, round(sent / records) - payload, spent / records)


class _End:
    """One end of a TLS connection whose wire is memory."""

    def __init__(self, context: ssl.SSLContext, server: bool) -> None:
        self.incoming, self.outgoing, self.done = ssl.MemoryBIO(), ssl.MemoryBIO(), False
        name = None if server else "127.0.0.1"
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=server, server_hostname=name)

    def step(self) -> None:
        if not self.done:
            try:
                self.tls.do_handshake()
                self.done = True
            except ssl.SSLWantReadError:
                pass

    def take(self, other: "_End") -> int:
        """Carry what the other end has put out to this one; return how many bytes that was."""
        return self.incoming.write(other.outgoing.read())


def _ends(certificate_pem: bytes, key_pem: bytes) -> tuple[_End, _End]:
    import tempfile
    from pathlib import Path

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:  # it loads from files only
        pair = Path(folder, "pair.pem")
        pair.write_bytes(key_pem + certificate_pem)
        context.load_cert_chain(pair)
    trust = ssl.create_default_context(cadata=certificate_pem.decode())
    return _End(context, True), _End(trust, False)
