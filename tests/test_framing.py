"""The laws of WebSocket framing, held against the standard's examples and the `websockets` library."""

import pytest
from websockets.frames import Frame, Opcode

from lab.theory import framing

KEY = bytes.fromhex("37fa213d")
EDGES = [0, 1, 125, 126, 127, 65535, 65536, 70000]


def test_the_standards_examples() -> None:
    """The frames of RFC 6455, section 5.7, are what `frame` gives."""
    assert framing.frame(b"Hello") == bytes.fromhex("810548656c6c6f")
    assert framing.frame(b"Hello", KEY) == bytes.fromhex("818537fa213d7f9f4d5158")
    assert framing.frame(b"Hello", opcode=9) == bytes.fromhex("890548656c6c6f")
    assert framing.frame(bytes(256), opcode=2)[:4] == bytes.fromhex("827e0100")
    assert framing.frame(bytes(65536), opcode=2)[:10] == bytes.fromhex("827f0000000000010000")


@pytest.mark.parametrize("size", EDGES)
def test_a_frame_is_the_librarys(size: int) -> None:
    """Whatever the length, a server's frame is byte for byte the library's, and a client's is as long as its."""
    library = Frame(Opcode.TEXT, b"x" * size)
    assert framing.frame(b"x" * size) == library.serialize(mask=False)
    assert len(framing.frame(b"x" * size, KEY)) == len(library.serialize(mask=True))


@pytest.mark.parametrize("size", EDGES)
def test_the_overhead_is_what_a_frame_adds(size: int) -> None:
    """`overhead` is the difference between a frame and its payload, from either side."""
    assert len(framing.frame(bytes(size))) == size + framing.overhead(size)
    assert len(framing.frame(bytes(size), KEY)) == size + framing.overhead(size, masked=True)


@pytest.mark.parametrize(("size", "added"), [(0, 2), (125, 2), (126, 4), (65535, 4), (65536, 10)])
def test_the_overhead_steps_where_the_length_field_grows(size: int, added: int) -> None:
    """It is 2 bytes up to 125, 4 up to 65535, 10 from there on; a client's mask is 4 more."""
    assert framing.overhead(size) == added
    assert framing.overhead(size, masked=True) == added + 4


@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize("key", [None, KEY])
def test_what_is_framed_can_be_read_again(size: int, key: bytes | None) -> None:
    """`frames` reads back payload, mask and sizes of a message of any length from either side, and stops at a cut."""
    payload = bytes(n % 251 for n in range(size))
    data = framing.frame(payload, key) + framing.frame(b"bye", key, opcode=8)
    message, farewell = framing.frames(data)
    assert (message.payload, message.masked, message.opcode) == (payload, key is not None, 1)
    assert message.size == len(framing.frame(payload, key)) == size + framing.overhead(size, masked=key is not None)
    assert (farewell.fin, farewell.opcode, farewell.payload) == (True, 8, b"bye")
    assert list(framing.frames(data[:-1])) == [message]
