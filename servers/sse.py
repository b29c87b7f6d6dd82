"""Server-Sent Events: one plain HTTP response that does not end; the server writes, the client reads.

    client: GET /events, Last-Event-ID: C ─▶ server: retry: 2000
                                                     id: C                        (where the stream begins)
            ◀─ event: update / id: C' / data: {...}                               (for every update)
            ◀─ event: reset  / id: C' / data: {"reason": ...}                     (some are gone: list again)
            ◀─ : heartbeat                                                        (a comment, every 15 s)
            ◀─ event: renew / retry: 100                                          (the lease is over: come back)

The format is the WHATWG HTML standard's, section 9.2. A browser's EventSource remembers the last id and
sends it back as Last-Event-ID when it reconnects by itself, after `retry` milliseconds.
"""

import json
from collections.abc import AsyncIterator

from fastapi import Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from servers.feed import HEARTBEAT, Batch, Feed, Gap
from servers.service import Service, Source, refuse_two_cursors

HEARTBEAT_COMMENT = ServerSentEvent(comment="heartbeat", sep="\n")
RENEW = b"event: renew\nretry: 100\ndata: {}\n\n"  # the last block of a stream whose lease is over; it moves no cursor


def create_app(
    feed: Feed,
    *,
    heartbeat: float = HEARTBEAT,
    retry: int = 2000,
    max_age: float | None = None,
    seed: int | None = None,
    fast: bool = False,
    source: Source | None = None,
) -> Service:
    """A server that streams. `heartbeat` in seconds, `retry` (the client's pause before reconnecting) in ms.

    A stream ends at an age (s) drawn from [`max_age`/2, `max_age`]. `fast`: the same stream by servers/fan_out.
    """
    app = Service(
        "SSE", feed, path="/events", page="sse.html", heartbeat=heartbeat, source=source, max_age=max_age, seed=seed
    )
    if fast:
        from servers.fan_out import FanOut

        fan_out = FanOut(app, heartbeat=heartbeat, retry=retry, coalesce=False)
        fan_out.stands_before(app)

    @app.get("/events", response_class=EventSourceResponse)
    async def events(request: Request, after: str | None = None) -> Response:
        """Every update later than the cursor, as it comes; Last-Event-ID wins over `after`."""
        refuse_two_cursors(request)
        opening = feed.opening(after, request.headers.get("last-event-id"))
        if fast:
            return fan_out.stream(opening)

        async def stream() -> AsyncIterator[bytes]:
            with app.leases.begin() as lease:
                yield f"retry: {retry}\n\n".encode() + encode(opening)
                async for news in feed.follow(opening.position, lease):
                    yield encode(news)
                if lease.over:
                    yield RENEW

        def encode(news: Batch | Gap) -> bytes:
            if isinstance(news, Gap):
                app.traffic.resets += 1
                return reset_block(news)
            app.traffic.delivered += len(news.updates)
            return news.encoded(update_blocks)

        return EventSourceResponse(stream(), ping=heartbeat, ping_message_factory=lambda: HEARTBEAT_COMMENT)

    return app


def update_blocks(batch: Batch) -> bytes:
    """The batch as event stream blocks; an empty one as a block that has only the id."""
    if not batch.updates:
        return f"id: {batch.cursor}\n\n".encode()
    return b"".join(b"event: update\nid: %b\ndata: %b\n\n" % (u.cursor.encode(), u.json) for u in batch.updates)


def reset_block(gap: Gap) -> bytes:
    """The gap as an event; its id makes the client go on from the head."""
    return f"event: reset\nid: {gap.cursor}\ndata: {json.dumps(gap.as_dict())}\n\n".encode()
