"""Ports and descriptors: read from the system, and counted.

port_range() ─▶ how many connections one source address can have to one place
connect_until_refused("127.0.0.1", ports=50) ─▶ 50, and not one more
"""

import contextlib
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
IANA = (49152, 65535)  # of dynamic ports (RFC 6335, section 6): what macOS and Windows give out
IP_LOCAL_PORT_RANGE = 51  # <linux/in.h>, from Linux 6.3 on: the range of one socket
IP_BIND_ADDRESS_NO_PORT = 24  # choose the port when the other end is known
MOST = 100  # ports of an experiment


def port_range() -> tuple[int, int]:
    """The first and the last port that this system gives to a connection that asks for none."""
    if not RANGE.exists():
        return IANA
    first, last = RANGE.read_text().split()
    return int(first), int(last)


def ports() -> int:
    """How many connections one source address can have open to one address and port."""
    first, last = port_range()
    return last - first + 1


def can_narrow() -> bool:
    """Whether this system lets one socket have a range of its own."""
    if sys.platform != "linux":
        return False
    with socket.socket() as one, contextlib.suppress(OSError):
        _narrow(one, 2)
        return True
    return False


def _narrow(one: socket.socket, ports: int) -> None:
    first, _ = port_range()
    one.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", (first + ports - 1) << 16 | first))


@contextlib.contextmanager
def listener() -> Iterator[tuple[str, int]]:
    """A socket that accepts, in its queue, what an experiment connects; where it listens."""
    with socket.create_server(("127.0.0.1", 0), backlog=4 * MOST) as one:
        yield one.getsockname()


@contextlib.contextmanager
def connections(place: tuple[str, int], source: str, ports: int, wanted: int) -> Iterator[int]:
    """Open `wanted` connections from one source address that has so many ports; how many there were ports for.

    They are closed at the block's end. Raises OSError for what is not a lack of ports, and where `can_narrow` is False.
    """
    if not 0 < ports <= MOST:
        raise ValueError(f"an experiment has 1 to {MOST} ports, not {ports!r}")
    with contextlib.ExitStack() as ends:
        for number in range(wanted):
            one = ends.enter_context(socket.socket())
            _narrow(one, ports)
            one.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            one.bind((source, 0))
            try:
                one.connect(place)
            except OSError as error:
                if error.errno != 99:  # EADDRNOTAVAIL
                    raise
                yield number
                return
        yield wanted


def descriptors() -> int:
    """How many files and sockets this process has open; -1 where the system does not say."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return sum(1 for _ in Path(folder).iterdir()) - 1  # without the one that lists
    return -1
