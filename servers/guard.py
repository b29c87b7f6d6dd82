"""Who may ask, and how many at once: what a server needs before others than its owner can reach it.

    request ─▶ Token (401) ─▶ Limit (503) ─▶ the application            /healthz passes both

Both are plain ASGI: they add nothing to the cost of a stream once it is open.
"""

import base64
import binascii
import hmac

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

RETRY_AFTER = "5"  # seconds; clients add their own jitter
ALWAYS = ("/healthz",)  # answered without a token
UNCOUNTED = ("/healthz", "/metrics")  # answered when all else is full: they say why


class Token:
    """Admits requests that carry the token (RFC 6750), everything else is 401.

    A program sends `Authorization: Bearer TOKEN`. A browser's EventSource, links and pages cannot: for them the same
    token is taken as a password with any user name (HTTP Basic, RFC 7617), which the browser asks for once and
    then sends by itself, to this server only. A token in a URL is not accepted: URLs end up in logs and histories.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or path_of(scope) in ALWAYS or self.admits(Headers(scope=scope)):
            return await self.app(scope, receive, send)
        response = JSONResponse({"detail": "this server wants a token"}, status_code=401)
        response.headers.append("WWW-Authenticate", 'Bearer realm="file updates"')
        response.headers.append("WWW-Authenticate", 'Basic realm="file updates: any name, the token", charset="UTF-8"')
        return await response(scope, receive, send)

    def admits(self, headers: Headers) -> bool:
        """Whether these headers have the token; how long that takes does not depend on how much of it is right."""
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        given = credentials.strip().encode("latin-1")
        if scheme.lower() == "basic":
            try:
                _, _, given = base64.b64decode(given, validate=True).partition(b":")
            except binascii.Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given, self.token)


class Limit:
    """Holds at most `most` requests at once, open streams included; one more is 503 with Retry-After."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most, self.held = app, most, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or path_of(scope) in UNCOUNTED:
            return await self.app(scope, receive, send)
        if self.held >= self.most:
            full = {"detail": f"this server holds {self.most} requests at once, and has them"}
            return await JSONResponse(full, status_code=503, headers={"Retry-After": RETRY_AFTER})(scope, receive, send)
        self.held += 1
        try:
            return await self.app(scope, receive, send)
        finally:
            self.held -= 1


def path_of(scope: Scope) -> str:
    """The path below wherever the application is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
