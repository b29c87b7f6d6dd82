"""Long polling: the server holds the request until there is news, or until the hold is over.

            ─▶ GET /updates?after=C&wait=30             the server holds it, 30 s at most
            ◀─ 200 {"updates": [...], "cursor": C'}     as soon as there is news; an empty list after the hold
            ─▶ GET /updates?after=C'&wait=30            at once, from where the answer ended
            ◀─ 410 {"reason": ..., "cursor": C}         some are gone: list again

What is published between an answer and the next request is not lost: the cursor remembers (RFC 6202,
section 2.2, describes the flow).
"""

import asyncio
import random
from typing import Annotated

from fastapi import Query, Request, Response

from servers.feed import Feed
from servers.service import Service, Source, disconnected, refuse_two_cursors

USUAL_HOLD = 30.0  # seconds, for a client that does not say
MAX_HOLD = 60.0  # seconds: many proxies cut a silent connection at 60


def create_app(
    feed: Feed, *, jitter: float = 0.1, seed: int | None = None, fast: bool = False, source: Source | None = None
) -> Service:
    """A server that holds. Each hold is drawn from [(1 - jitter) wait, wait], so that clients spread out.

    The hold is the lease of this model: no request lasts longer, and a drain shortens it.
    `fast`: the same answers, made once for all who are held, by servers/fan_out.
    """
    app = Service("long polling", feed, path="/updates", page="long-polling.html", source=source)
    rng = random.Random(seed)

    @app.get("/updates", responses={410: {"description": "Cursor too old"}})
    async def updates(
        request: Request,
        after: str | None = None,
        wait: Annotated[float, Query(ge=0, allow_inf_nan=False)] = USUAL_HOLD,
    ) -> Response:
        """Everything later than the cursor `after`, held up to `wait` seconds (60 at most) until there is some."""
        refuse_two_cursors(request)
        position = feed.position(after)
        hold = drawn(wait)
        if after is not None and position == feed.head and hold:
            await news_or_gone(request, position, hold)
        return answer(position)

    def drawn(wait: float) -> float:
        return min(min(wait, MAX_HOLD) * rng.uniform(1 - jitter, 1), app.leases.rest)

    def answer(position: int) -> Response:
        batch = feed.read(position)
        app.traffic.delivered += len(batch.updates)
        return Response(batch.body, media_type="application/json", headers={"Cache-Control": "no-store"})

    async def news_or_gone(request: Request, position: int, hold: float) -> None:
        """Wait for news, the end of the hold, the server's closing, or a client that went away."""
        with app.leases.begin() as lease:
            news = asyncio.create_task(feed.wait(position, lease))
            gone = asyncio.create_task(disconnected(request))
            try:
                await asyncio.wait((news, gone), timeout=hold, return_when=asyncio.FIRST_COMPLETED)
            finally:
                news.cancel()
                gone.cancel()

    if fast:
        from servers.fan_out.polls import HeldPolls

        app.front = HeldPolls(app, answer, drawn, USUAL_HOLD)
    return app
