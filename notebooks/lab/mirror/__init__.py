"""Keep a directory identical to the one that a server of file updates watches (servers/file_updates.py).

    mirror = Mirror(server.url, "copy")
    await mirror.sync()                                   # list, and fetch what differs

    async with contextlib.aclosing(mirror.follow()) as applied:
        async for change in applied: ...                  # list, then watch, for ever; goes on after any failure

    GET /files ─▶ what stands at cursor C ──┐
                                            ├─▶ what differs ─▶ GET /files/PATH ─▶ verify ─▶ rename into COPY
    GET /events after C ─▶ what changes ────┘     (fetch.py, jobs.py)                  (copy.py)

Listing at C and watching from C leaves no gap; a reset leads to a new listing. All that a mirror knows is kept in COPY,
so that being killed is as good as stopping.

`python -m lab.mirror URL COPY` does that until Ctrl-C; with --once it ends when the copy is complete.
"""

from lab.mirror.copy import CopyError
from lab.mirror.mirror import Mirror
from lab.mirror.report import Applied, Counters

__all__ = ["Applied", "CopyError", "Counters", "Mirror"]
