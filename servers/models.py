"""The models, and the only list of them: how each is called, where its clients ask, what makes its server.

    model("sse") ─▶ Model ─▶ create_app(feed, ...) ─▶ a Service

Whoever lists or looks up models begins here. A server's code is loaded when it is first made: a client needs the words
only. Of a model that does not stand here, everything says so: none is ever taken for another.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from servers.service import Service


@dataclass(frozen=True, slots=True)
class Model:
    """One server: its `slug` on the command line and in URLs, its `name` in prose, the `path` where its clients ask.

    Its room is the module of that name; `options` are those of the command line that `create_app` takes.
    """

    slug: str
    name: str
    path: str
    options: tuple[str, ...] = ()

    @property
    def create_app(self) -> "Callable[..., Service]":
        """What makes its application, from a feed and keywords."""
        factory: Callable[..., Service] = importlib.import_module(f"servers.{self.slug.replace('-', '_')}").create_app
        return factory


MODELS = (
    Model("short-polling", "short polling", "/updates", ("poll_interval",)),
    Model("long-polling", "long polling", "/updates"),
    Model("websocket", "WebSocket", "/ws", ("allow_origins", "heartbeat", "max_age")),
    Model("sse", "SSE", "/events", ("heartbeat", "max_age")),
)
# Made of the models: not a delivery of their own.
COMPOSED = (
    Model("file-updates", "file updates", "/events",
          ("tree", "heartbeat", "token", "allow_origins", "max_age", "coalesce")),
    Model("demo", "demo", "", ("rate", "interval", "seed", "payload", "heartbeat", "allow_origins")),
)  # fmt: skip
SLUGS = tuple(each.slug for each in MODELS + COMPOSED)


class UnknownModel(ValueError):
    """A word that is no model's; the text is one sentence that names those there are."""

    def __init__(self, word: object) -> None:
        super().__init__(f"no model is called {word!r}: there are {', '.join(SLUGS)}")


def model(word: str) -> Model:
    """The model of this slug or name. Raises UnknownModel."""
    for each in MODELS + COMPOSED:
        if word in (each.slug, each.name):
            return each
    raise UnknownModel(word)
