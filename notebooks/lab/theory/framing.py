"""What a WebSocket puts around a message, as bytes and as their number (RFC 6455, section 5.2).

payload, a client's masking key ─▶ frame ─▶ the bytes on the wire
payload's size, from a client?  ─▶ overhead ─▶ how many of them are not payload

byte 0            byte 1               0, 2 or 8 bytes       0 or 4 bytes    the rest
FIN RSV  opcode   MASK  length < 126   length, big-endian    masking key     payload, masked by a client
"""

TEXT = 1  # opcodes (section 11.8)
SHORT, MEDIUM = 125, 65535  # bytes: the longest payloads whose length fits into 7 and into 16 bits


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
