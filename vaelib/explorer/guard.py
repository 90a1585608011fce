"""Who may ask: a browser on this machine that shows this page, and nobody that another site sends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["POLICY", "Guard"]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'"
)
_HEADERS = [
    (b"content-security-policy", f"{POLICY}; frame-ancestors 'none'".encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]

_Message = MutableMapping[str, Any]
_Send = Callable[[_Message], Awaitable[None]]


class Guard:
    """ASGI middleware: refuses a foreign Host (DNS rebinding) or Origin (another site), and adds headers to answers.

    Args:
        app: The application behind it.
        port: Where it is reached, as ``127.0.0.1`` or ``localhost``.
    """

    def __init__(self, app: Any, port: int) -> None:
        self._app = app
        self._hosts = tuple(f"{name}:{port}" for name in ("127.0.0.1", "localhost"))

    async def __call__(self, scope: _Message, receive: Any, send: _Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":  # start and end of the application; it has no websocket
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: _Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        reason = self._refusal(dict(scope["headers"]))
        if reason is None:
            await self._app(scope, receive, send_with_headers)
            return
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send_with_headers({"type": "http.response.start", "status": 403, "headers": headers})
        await send_with_headers({"type": "http.response.body", "body": reason.encode()})

    def _refusal(self, headers: dict[bytes, bytes]) -> str | None:
        host, origin = headers.get(b"host", b"").decode("latin-1"), headers.get(b"origin", b"").decode("latin-1")
        if host not in self._hosts:
            return f"The page is at {self._hosts[0]} on its own machine only; the Host asked for is another."
        if origin and origin != f"http://{host}":
            return "Only the explorer's own page may ask; the Origin is another site."
        return None
