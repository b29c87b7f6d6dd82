"""The checks of notebook 02: requests when nothing happens, and a client that long-polls."""

from collections.abc import Callable
from typing import Any

from lab.checks.overload import praised, tried_out
from lab.checks.verdict import Verdict, compared
from lab.experiment import Client
from lab.result import Run
from servers import long_polling


def quiet_requests(function: Callable[[float, float, float], float]) -> Verdict:
    """Exercise: `quiet_requests(clients, hold, rtt)`: requests per second of long polling when nothing happens."""
    mistakes: dict[str, Callable[..., Any]] = {
        "That is one client's; there are more of them.": lambda clients, hold, rtt: 1 / (hold + rtt),
        "The gap between an answer and the next request is missing.": lambda clients, hold, rtt: clients / hold,
        "That is the limit for dense news; without news a request stays for the whole hold.": (
            lambda clients, hold, rtt: clients / rtt
        ),
        "That is how long a request takes, for all clients; the question is how many there are in a second.": (
            lambda clients, hold, rtt: clients * (hold + rtt)
        ),
    }
    cases = [(1.0, 10.0, 0.1), (1000.0, 30.0, 0.05), (200.0, 20.0, 1.0)]
    praise = "Each client asks once in a hold and a round trip."
    return compared(function, lambda clients, hold, rtt: clients / (hold + rtt), mistakes, cases, praise)


def long_polling_client(client: Client) -> Verdict:
    """Exercise: `client(url, log)` long-polls with a hold of 20 s, loses nothing, and keeps away when asked to."""
    verdict = tried_out(client, long_polling.create_app, most=90, pause="is it held at all?")
    if isinstance(verdict, Run) and (late := verdict.delay(0.5)) > 0.5:
        return Verdict(False, f"Half of the updates are {late:.1f} s late or more: the server should do the waiting.")
    return praised(verdict)
