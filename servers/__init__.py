"""The servers of the course, and everything else that listens on a port; none of it needs Jupyter.

The names that notebooks begin with are handed on from here, each loaded when it is first asked for: a program that
needs the feed's words only (`lab.mirror`, `lab.clients`) must not load a web framework.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servers.background import ServerError, serve
    from servers.feed import Feed
    from servers.service import Service
    from servers.sources import play, synthetic_edits, watch
    from servers.tree import Tree

__all__ = ["Feed", "ServerError", "Service", "Tree", "play", "serve", "synthetic_edits", "watch"]

HOMES = {
    "Feed": "feed",
    "ServerError": "background",
    "Service": "service",
    "Tree": "tree",
    "play": "sources",
    "serve": "background",
    "synthetic_edits": "sources",
    "watch": "sources",
}


def __getattr__(name: str) -> Any:
    """The name, from the module that is its home. Raises AttributeError for any other."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
