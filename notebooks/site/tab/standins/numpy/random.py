"""Nothing that could be drawn from."""

from typing import Any

__all__: list[str] = []
Generator = RandomState = Any
