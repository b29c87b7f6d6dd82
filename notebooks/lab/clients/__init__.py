"""The robust client of each model: an async iterator that goes on, whatever the network and the server do.

    async with contextlib.aclosing(sse(server.url, cursor)) as stream:
        async for news in stream:
            match news:
                case Update(): ...  # the next change, once, in order; `news.cursor` resumes after it
                case Reset(): ...   # some are gone: list again, the iterator goes on from `news.cursor`

    attempt ─▶ Answer, Answer, ... ─▶ take: drops what is known, moves the cursor ─▶ Update | Reset
       ▲          └─ breaks ─▶ pause: what the server asked for, and full jitter ─┐
       └──────────────────────────── again, from the cursor ◀─────────────────────┘

An attempt is a model's own part, and the only one: it asks from the cursor and yields what it is answered, until it
breaks. Whether to try again is decided in one place for all models, and ends with one of these:

    ClientError
    ├── GaveUp            no answer for `give_up_after` seconds; __cause__ is the last failure
    ├── Unavailable       a failure that may pass, so it is tried again: seen only as the cause of GaveUp
    │   └── Renewed       a stream that has lived its time (1012, "renew"): the next one begins at once
    └── Refused           a failure that would come again
        ├── BadCursor     400: malformed, or from the future of this log
        ├── BadStatus     another HTTP status that is not the model's: 403, 404, a redirect ...
        ├── BadAnswer     the right status, but not the model's content
        └── BadClose      a WebSocket closed because of what one side sent: 1002, 1003, 1007 to 1010

`python -m lab.clients MODEL URL` prints the updates that arrive, a line each, until Ctrl-C.
"""

from lab.clients import answers
from lab.clients.answers import (
    BadAnswer,
    BadClose,
    BadCursor,
    BadStatus,
    ClientError,
    GaveUp,
    News,
    Refused,
    Renewed,
    Reset,
    Unavailable,
    Update,
)
from lab.clients.event_stream import Event, EventStreamParser
from lab.clients.follower import Log, Retry
from lab.clients.models import MODELS, long_polling, short_polling, sse, websocket

__all__ = [
    "MODELS",
    "BadAnswer",
    "BadClose",
    "BadCursor",
    "BadStatus",
    "ClientError",
    "Event",
    "EventStreamParser",
    "GaveUp",
    "Log",
    "News",
    "Refused",
    "Renewed",
    "Reset",
    "Retry",
    "Unavailable",
    "Update",
    "answers",
    "long_polling",
    "short_polling",
    "sse",
    "websocket",
]
