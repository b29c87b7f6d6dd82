"""Short polling: the client asks at an interval, and the server answers at once, news or not.

    client: GET /updates?after=C ─▶ server: 200 {"updates": [...], "cursor": C'}   or   304, nothing new
            sleep, ask again

The server keeps nothing between two requests. The cursor is also the ETag, so a client that sends it
back in If-None-Match is answered "304 Not Modified" without a body (RFC 9110, sections 13.1.2, 15.4.5).
"""

from fastapi import Request, Response

from servers.feed import Feed
from servers.service import Service, Source, refuse_two_cursors


def create_app(feed: Feed, *, poll_interval: float = 5.0, fast: bool = False, source: Source | None = None) -> Service:
    """A server that answers at once. `poll_interval` (s) is the pace it asks its clients to keep.

    `fast`: the same answers, made once for all who ask for them, by servers/fan_out.
    """
    app = Service("short polling", feed, path="/updates", page="short-polling.html", source=source)
    pace = f"{poll_interval:g}"

    @app.get("/updates", responses={304: {"description": "Nothing later"}, 410: {"description": "Cursor too old"}})
    async def updates(request: Request, after: str | None = None) -> Response:
        """Everything later than the cursor `after`; without one, an empty list and the cursor of "now"."""
        refuse_two_cursors(request)
        return answer(feed.position(after), request.headers.getlist("if-none-match"))

    def answer(position: int, if_none_match: list[str]) -> Response:
        batch = feed.read(position)
        etag = f'"{batch.cursor}"'
        headers = {"ETag": etag, "Cache-Control": "no-cache", "X-Poll-Interval": pace}
        if not batch.updates and matches(if_none_match, etag):
            return Response(status_code=304, headers=headers)
        app.traffic.delivered += len(batch.updates)
        return Response(batch.body, media_type="application/json", headers=headers)

    if fast:
        from servers.fan_out.polls import Polls

        app.front = Polls(app, answer)
    return app


def matches(if_none_match: list[str], etag: str) -> bool:
    """Whether If-None-Match, on one line or more, names this entity tag; weak comparison (RFC 9110, section 13.1.2)."""
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in ",".join(if_none_match).split(","))
