"""The course's virtual-time bench: real servers and real clients, a simulated clock and network.

    clock.py      the event loop whose time jumps, and the thread that lives in it
    network.py    Link and Net: delay, loss, cuts and black holes, and who listens where
    transport.py  the connections: bytes on their way, windows, resets
    run.py        run_virtual(main), and serve(app) inside it

It shows what the network and the protocol do, exactly and repeatably. It cannot show what the machine does: CPU,
memory, kernel buffers, threads, proxies and browsers are measured with real sockets.
"""

from lab.virtual.clock import EscapedVirtualTime, OutOfTime, VirtualDeadlock, VirtualError
from lab.virtual.network import Link, Net
from lab.virtual.run import Served, run_virtual, serve
from lab.virtual.transport import Connection, Row, Way

__all__ = [
    "Connection",
    "EscapedVirtualTime",
    "Link",
    "Net",
    "OutOfTime",
    "Row",
    "Served",
    "VirtualDeadlock",
    "VirtualError",
    "Way",
    "run_virtual",
    "serve",
]
