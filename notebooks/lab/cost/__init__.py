"""What a model costs: measured, priced, and turned into advice.

load.py          raw clients, cheaper than any server
processes.py     a server in a process of its own: its CPU, memory and bytes in a window of time
measuring.py     unit costs: windows of all models in turn, slopes, and intervals that say what is told apart
network.py       bytes as packets carry them
ladder.py        from a tutorial's event stream to the fast path, step by step
requirements.py  what a decision depends on
decision.py      what each model would cost, and which will do at all
flips.py         where a choice turns
advice.py        what to build, and why
capacity.py      how large a fleet has to be, and what binds first
crowd.py         a crowd of event streams in a process of its own: how late the last one is
workers.py       one service, many processes: who hears what, by which log they share
profile.py       whose code a rung of the ladder spends its time in
compression.py   streams compressed, and TLS: bytes, CPU, memory
sockets.py       ports and descriptors, counted
reported.py      what others report of their fleets, with its source
trials.py        notebook 05's trials, and the verdicts on what they show
bills.py         what a month costs, by the laws and by counts, and where two bills are equal
cases.py         what others chose, and where they say so
"""

from lab.cost.advice import Recommendation, Threshold, choice, recommend
from lab.cost.bills import Bills, counted
from lab.cost.capacity import Capacity, Limits, capacity, sensitivity
from lab.cost.decision import REFERENCE, REFERENCE_AT_LIMIT, Decision
from lab.cost.network import on_the_network
from lab.cost.requirements import Requirements

__all__ = [
    "REFERENCE",
    "REFERENCE_AT_LIMIT",
    "Bills",
    "Capacity",
    "Decision",
    "Limits",
    "Recommendation",
    "Requirements",
    "Threshold",
    "capacity",
    "choice",
    "counted",
    "on_the_network",
    "recommend",
    "sensitivity",
]
