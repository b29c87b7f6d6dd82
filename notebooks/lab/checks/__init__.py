"""What an exercise cell calls to check an answer: it says what is right, or which mistake the answer looks like.

    your function ─▶ tried on cases, or run as a client in virtual time ─▶ Verdict, which prints itself

A check never raises for a wrong answer, so that a notebook with open exercises runs to its end. Each notebook's checks
have a module of their own. What they share: `verdict` (judged, compared), `values` (what counts as the same),
`bounded` (an answer ends, whatever it does) and `overload` (a pulling client on trial).
"""

from lab.checks.file_updates import crossover, mirror
from lab.checks.long_polling import (
    Archive,
    answers_from_a_cursor,
    holds_without_a_hole,
    long_polling_client,
    quiet_requests,
)
from lab.checks.scaling_out import Conflict, SharedLog, appends_contiguously, size_fleet
from lab.checks.short_polling import jittered, longest_interval, polling_client
from lab.checks.side_by_side import break_even, cost_per_delivery, polls_fit
from lab.checks.sse import Journal, event_block, event_generator, event_stream_parser, sse_client
from lab.checks.start_here import count_faults, delays_from_plan
from lab.checks.verdict import Verdict
from lab.checks.websocket import client_frame, websocket_client
from lab.checks.when_things_break import reconnect_schedule, watchdog

__all__ = [
    "Archive",
    "Conflict",
    "Journal",
    "SharedLog",
    "Verdict",
    "answers_from_a_cursor",
    "appends_contiguously",
    "break_even",
    "client_frame",
    "cost_per_delivery",
    "count_faults",
    "crossover",
    "delays_from_plan",
    "event_block",
    "event_generator",
    "event_stream_parser",
    "holds_without_a_hole",
    "jittered",
    "long_polling_client",
    "longest_interval",
    "mirror",
    "polling_client",
    "polls_fit",
    "quiet_requests",
    "reconnect_schedule",
    "size_fleet",
    "sse_client",
    "watchdog",
    "websocket_client",
]
