"""What a model costs: measured, priced, and turned into a choice.

load.py       raw clients, cheaper than any server
processes.py  a server in a process of its own: its CPU, memory and bytes, and what follows for one request
ladder.py     from a tutorial's event stream to the fast path, step by step
decision.py   which model, for which requirements, and where the answer flips
"""

from lab.cost.decision import Decision, Requirements, recommend

__all__ = [
    "Decision",
    "Requirements",
    "recommend",
]
