"""Bytes as a network carries them: what TCP and IP, and TLS if asked for, put around a protocol's own.

Units in bytes of TCP payload ─▶ on_the_network ─▶ the same Units, with heads, acknowledgements and TLS records

A heartbeat of 18 bytes is a packet of 70, and one of 52 comes back to say that it arrived.
"""

from collections.abc import Mapping
from dataclasses import replace

from lab.theory import SOCKET, Resources, Units
from servers.feed import HEARTBEAT

HEAD = 20 + 20 + 12  # bytes: IPv4 (RFC 791), TCP (RFC 9293), time stamps (RFC 7323), which Linux and macOS send
SEGMENT = 1448  # bytes of payload in one packet of 1500
RECORD = 5 + 1 + 16  # bytes that TLS 1.3 adds to each piece: a head, a type, a tag (RFC 8446, section 5.2)


def on_the_network(units: Mapping[str, Units], *, tls: bool = False) -> dict[str, Units]:
    """Units whose bytes are those of packets.

    One packet carries a request, an answer, a pushed update, a heartbeat or a frame, and one without payload
    acknowledges what nothing answers at once. An update inside an answer costs only the share of a packet it fills.
    Not counted: connections' beginnings and ends, and acknowledgements that a busy connection saves.
    """
    record = RECORD if tls else 0
    per_byte = 1 + (HEAD + record) / SEGMENT
    asked = packets(up=1, down=1, record=record) + Resources(up=HEAD)  # the answer says that the request came
    pushed = packets(down=1, record=record) + Resources(up=HEAD)
    framed = packets(up=1, down=1, record=record) + Resources(up=HEAD)  # a frame, the server's answer, and its receipt
    carried = {}
    for model, each in units.items():
        beat = pushed if model != SOCKET else packets(up=1, down=1, record=record) + Resources(down=HEAD)
        pulls = each.request != Resources()
        carried[model] = replace(
            each,
            request=each.request + asked if pulls else each.request,
            delivery=replace(each.delivery, down=each.delivery.down * per_byte) if pulls else each.delivery + pushed,
            held=each.held if pulls else each.held + beat * (1 / HEARTBEAT),
            message=each.message + (framed if model == SOCKET else asked),
        )
    return carried


def packets(*, up: int = 0, down: int = 0, record: int = 0) -> Resources:
    """The heads of so many packets with payload each way."""
    return Resources(up=up * (HEAD + record), down=down * (HEAD + record))
