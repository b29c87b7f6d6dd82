"""Who may ask, by which name, and how many at once: what a server needs before others than its owner can reach it.

    connection ─▶ Doors (421, 503) ─▶ request ─▶ Token (401) ─▶ the application      /healthz needs neither

What holds the connections, on_uvicorn.py, asks the doors before anything else; Token is plain ASGI. Neither adds to the
cost of a stream once it is open.
"""

import base64
import binascii
import hmac
import ipaddress
import math
from collections import Counter
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

RETRY_AFTER = "5"  # seconds; clients add their own jitter
ALWAYS = ("/healthz",)  # answered without a token
UNCOUNTED = (b"/healthz", b"/metrics")  # answered when all else is full: they say why
KEPT = 1000  # values of Host


class Token:
    """Admits requests that carry the token (RFC 6750), everything else is 401.

    A program sends `Authorization: Bearer TOKEN`. A browser's EventSource, links and pages cannot: for them the same
    token is taken as a password with any user name (HTTP Basic, RFC 7617), which the browser asks for once and
    then sends by itself, to this server only. A token in a URL is not accepted: URLs end up in logs and histories.
    What it lets out is for one reader: no cache that others share may keep it (RFC 9111, section 5.2.2.7).
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or path_of(scope) in ALWAYS:
            return await self.app(scope, receive, send)

        async def send_privately(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                kept = headers.get("Cache-Control", "no-cache")
                headers["Cache-Control"] = kept if kept == "no-store" else f"private, {kept}"
                headers.add_vary_header("Authorization")
            await send(message)

        if self.admits(Headers(scope=scope)):
            return await self.app(scope, receive, send_privately)
        response = JSONResponse(
            {"detail": "this server wants a token"}, status_code=401, headers={"Cache-Control": "no-store"}
        )
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


class Doors:
    """How many connections a server has at once, and by which names it may be called.

    `most` of them, `most_each` from one address (of IPv6: from one /64), without either no limit. The address is the
    connection's: what a header says of another is believed of nobody, so behind a proxy it is the proxy's.

    A page of evil.example can let its own name lead to 127.0.0.1 (DNS rebinding), and its browser then takes this
    server for the page's own. What betrays it is Host. No page from elsewhere has an IP address, localhost or a name
    without a dot. Of the others those in `names` may pass and, if there are none, whatever reaches the machine from
    outside; over loopback, where a proxy may pass on a name, only what a browser asks for a page that came by TLS,
    which this server does not speak: it says Sec-Fetch-Site to nobody else (Fetch Metadata, section 2), and https in
    Origin.
    """

    def __init__(self, most: int | None = None, most_each: int | None = None, names: Collection[str] = ()) -> None:
        self.most, self.most_each = most or math.inf, most_each or math.inf
        self.names = {name.lower() for name in names}
        self.own = ""  # the name that it listens at
        self.held, self.inside = 0, Counter[str]()  # connections, and how many of each address
        self.spare = 0  # those beyond the limits
        self.harmless: dict[bytes, bool] = {}  # values of Host that have been looked at

    def visit(self, address: str) -> "Visit":
        """A connection that has come from there."""
        return Visit(self, block_of(address) if self.most_each < math.inf else "")

    def is_harmless(self, host: bytes) -> bool:
        """Whether any request with this Host may pass, wherever it comes from."""
        if host not in self.harmless:
            if len(self.harmless) >= KEPT:
                self.harmless.clear()
            name = name_in(host.decode("latin-1"))
            self.harmless[host] = is_local(name) or name == self.own.lower() or name in self.names
        return self.harmless[host]

    def knows(self, headers: Sequence[tuple[bytes, bytes]], address: str) -> bool:
        """Whether a request with these headers may pass that has come in at this address of the machine's."""
        fields = dict(headers)
        if self.is_harmless(fields.get(b"host", b"")):
            return True
        if self.names or not is_loopback(address):
            return not self.names
        return b"sec-fetch-site" in fields or fields.get(b"origin", b"").startswith(b"https://")


class Visit:
    """One connection, which is counted until it leaves: inside, or beyond the limits."""

    __slots__ = ("address", "doors", "inside")

    def __init__(self, doors: Doors, address: str) -> None:
        self.doors, self.address, self.inside = doors, address, False
        doors.spare += 1

    def refusal(self) -> str:
        """Why there is no room for it; "" once there is."""
        doors = self.doors
        if self.inside:
            return ""
        if doors.held >= doors.most:
            return f"this server holds {doors.most} connections at once, and has them"
        if doors.inside[self.address] >= doors.most_each:
            return f"this server holds {doors.most_each} connections of one address at once, and has them"
        self.inside = True
        doors.spare -= 1
        doors.held += 1
        doors.inside[self.address] += 1
        return ""

    def leave(self) -> None:
        """It has gone."""
        doors = self.doors
        if not self.inside:
            doors.spare -= 1
            return
        doors.held -= 1
        doors.inside[self.address] -= 1
        if not doors.inside[self.address]:
            del doors.inside[self.address]


def block_of(address: str) -> str:
    """Who an address belongs to: of IPv6, a network of 64 bits has one owner."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped or ipaddress.ip_network((int(ip) >> 64 << 64, 64)))
    return address


def name_in(host: str) -> str:
    """The name in a Host field, without the port (RFC 9110, section 7.2)."""
    name, _, port = host.rpartition(":")
    return (name if port.isdecimal() or not port else host).strip("[]").lower().removesuffix(".")


def is_local(name: str) -> bool:
    """Whether no page from elsewhere can have this name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(".localhost")
    return True


def is_loopback(address: str) -> bool:
    """Whether only this machine can be at the other end."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return True  # a socket of the file system, or none at all
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def path_of(scope: Scope) -> str:
    """The path below wherever the application is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
