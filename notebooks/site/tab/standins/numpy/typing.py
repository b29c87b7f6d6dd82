"""What annotations name."""

from typing import Generic, TypeVar

T = TypeVar("T")


class NDArray(Generic[T]):
    """An array, of which there are none here."""
