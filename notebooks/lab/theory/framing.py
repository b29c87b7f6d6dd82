"""What a WebSocket puts around a message, as bytes and as their number (RFC 6455, section 5.2).

payload, a client's masking key ─▶ frame ─▶ the bytes on the wire ─▶ frames ─▶ opcode, payload, size of each
payload's size, from a client?  ─▶ overhead ─▶ how many of them are not payload

byte 0            byte 1               0, 2 or 8 bytes       0 or 4 bytes    the rest
FIN RSV  opcode   MASK  length < 126   length, big-endian    masking key     payload, masked by a client
"""

from collections.abc import Iterator
from typing import NamedTuple

TEXT = 1  # opcodes (section 11.8)
SHORT, MEDIUM = 125, 65535  # bytes: the longest payloads whose length fits into 7 and into 16 bits


class Frame(NamedTuple):
    """A frame as it was read: its first four bits, its payload unmasked, and the bytes of each of its parts."""

    fin: bool
    opcode: int
    masked: bool
    payload: bytes
    header: int  # bytes: 2, and the longer length field
    size: int  # bytes, all of it


def overhead(payload: int, *, masked: bool = False) -> int:
    """The bytes that one frame adds to a payload of so many: 2, 4 or 10, and 4 more from a client (`masked`)."""
    return (2 if payload <= SHORT else 4 if payload <= MEDIUM else 10) + (4 if masked else 0)


def frame(payload: bytes, key: bytes | None = None, *, opcode: int = TEXT) -> bytes:
    """A whole message in one frame: a server's, or with a masking `key` of four bytes a client's (section 5.3)."""
    size, mask = len(payload), 0 if key is None else 128
    if size <= SHORT:
        length = bytes([mask | size])
    elif size <= MEDIUM:
        length = bytes([mask | 126]) + size.to_bytes(2, "big")
    else:
        length = bytes([mask | 127]) + size.to_bytes(8, "big")
    if key is not None:
        payload = key + bytes(byte ^ key[n % 4] for n, byte in enumerate(payload))
    return bytes([128 | opcode]) + length + payload


def frames(data: bytes) -> Iterator[Frame]:
    """The frames that `data` begins with; one that is cut off at its end is left out."""
    while len(data) >= 2:
        masked, length = data[1] >= 128, data[1] & 127
        header = 2 if length <= SHORT else 4 if length == SHORT + 1 else 10
        if length > SHORT:
            length = int.from_bytes(data[2:header], "big")
        start = header + (4 if masked else 0)
        size = start + length
        if len(data) < size:
            return
        key = data[header:start] or bytes(4)
        payload = bytes(byte ^ key[n % 4] for n, byte in enumerate(data[start:size]))
        yield Frame(data[0] >= 128, data[0] & 15, masked, payload, header, size)
        data = data[size:]
