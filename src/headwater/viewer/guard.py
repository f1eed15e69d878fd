"""Who may ask: a request must come to one of our names, from our own page, with our token, and be of a sensible size.

A page of another site that a browser shows cannot read this server's answers, for it allows no other origin; it cannot
write either, for it does not know the token; and it cannot take over a name for this machine (DNS rebinding), for names
that are not ours are refused.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN = "x-headwater-token"
MOST_BYTES = 4 << 20
READING = ("GET", "HEAD")

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """An ASGI application in front of another one.

    Args:
        token: that every request which is not only reading must carry.
        names: host names that are ours, besides those of the loopback interface.
        addresses: whether numerical addresses are ours too: where the server listens to other machines.
    """

    def __init__(self, app: ASGIApp, *, token: str, names: Iterable[str] = (), addresses: bool = False) -> None:
        self._app, self._token, self._addresses = app, token, addresses
        self._names = {"localhost", "127.0.0.1", "::1", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message.get("headers", ())}
                more = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in given]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        refusal = self._refusal(scope["method"], headers)
        if refusal is not None:
            await _refuse(guarded, *refusal)
            return
        if scope["method"] in READING:
            await self._app(scope, receive, guarded)
            return
        body = await _body(receive)
        if body is None:
            await _refuse(guarded, 413, "a body that is too large", f"at most {MOST_BYTES >> 20} MiB", "send less")
            return
        sent = False

        async def again() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, guarded)

    def _refusal(self, method: str, headers: dict[str, list[str]]) -> tuple[int, str, str, str] | None:
        """Status, got, expected and fix where a request is not to be answered."""
        hosts, origins = headers.get("host", []), headers.get("origin", [])
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            shown = hosts[0][:60] if hosts else "none"
            return 403, f"the host {shown!r}", "a name of this server", "open the address that the server printed"
        if any(origin not in (f"http://{hosts[0]}", f"https://{hosts[0]}") for origin in origins):
            return 403, f"the origin {origins[0][:60]!r}", "the viewer's own page", "open the viewer itself"
        if method in READING:
            return None
        given = headers.get(TOKEN, [])
        if len(given) != 1 or not hmac.compare_digest(given[0].encode(), self._token.encode()):
            return 403, "a request without this start's token", f"the header {TOKEN}", "load the page again"
        length = headers.get("content-length", ["0"])[0]
        if length.isascii() and length.isdecimal() and (len(length) > 12 or int(length) > MOST_BYTES):
            return 413, "a body that is too large", f"at most {MOST_BYTES >> 20} MiB", "send less"
        kind = headers.get("content-type", ["application/json"])[0]
        if kind.partition(";")[0].strip().lower() != "application/json":
            return 400, f"a body of type {kind[:40]!r}", "application/json", "send JSON"
        return None

    def _is_ours(self, host: str) -> bool:
        name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        if name.lower() in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._addresses


def own_names() -> set[str]:
    """Host names of this machine."""
    return {socket.gethostname().lower(), socket.getfqdn().lower()}


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None where it is too large."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_BYTES:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


async def _refuse(send: Send, status: int, got: str, expected: str, fix: str) -> None:
    error = {
        "message": f"{got}; expected {expected}. Next: {fix}",
        "got": got,
        "expected": expected,
        "cause": None,
        "fix": fix,
    }
    record = {"error": error} | ({"reload": True} if "token" in got else {})
    body = json.dumps(record).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
