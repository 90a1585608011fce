"""The page and its model on this machine: files by name, and a few calls, float32 in and float32 out."""

from __future__ import annotations

import contextlib
import logging
import math
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import resources
from types import FrameType
from typing import Any

import numpy as np

from vaelib._checks import MissingExtraError
from vaelib._tiles import Axis
from vaelib.explorer.scene import MAX_CODES, Array, Scene, encoded, has_code_prior, terms
from vaelib.runtime import OnnxVAE
from vaelib.runtime.contract import item_shape

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
except ImportError as error:
    raise MissingExtraError("The explorer", "explore") from error

__all__ = ["HOST", "POLICY", "application", "largest_batch", "page_files", "serve"]

HOST = "127.0.0.1"
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
_MAX_VALUES = 2**22
"""Numbers that one call takes or gives; an image with more is one call."""
_LARGEST_IMAGE = 2**24
"""Numbers of an image that is reconstructed at its own size, such as 2048 x 2048 in colour."""
_TILE = 512
_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "json": "application/json",
    "svg": "image/svg+xml",
}
_BINARY = "application/octet-stream"
_Answer = Callable[[OnnxVAE, Array], Array]
_Message = MutableMapping[str, Any]
_Send = Callable[[_Message], Awaitable[None]]


def page_files() -> dict[str, bytes]:
    """The page: file name to content."""
    folder = resources.files("vaelib.explorer") / "page"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in _TYPES}


def largest_batch(model: OnnxVAE) -> int:
    """Images or latents that one call takes."""
    return max(1, _MAX_VALUES // max(math.prod(model.image_shape), math.prod(model.latent_shape)))


def application(model: OnnxVAE, scene: Scene, port: int) -> Any:
    """The ASGI application; whoever asks must have reached it as ``127.0.0.1`` or ``localhost`` at this port."""
    largest = largest_batch(model)
    tile = _tile_of(model)
    facts = scene.facts | {"largest_batch": largest, "largest_image": _LARGEST_IMAGE if tile else 0}
    content = page_files() | Scene(facts, scene.arrays).files()
    calls: dict[str, tuple[tuple[int, ...], _Answer]] = {
        "decode": (model.latent_shape, lambda given, z: given.decode(z)),
        "encode": (model.image_shape, lambda given, images: np.hstack([*encoded(given, images).values()])),
    }
    for part, name in (("prior", "noise"), ("next", "codes")):
        if part in model.contract:
            calls["prior"] = (item_shape(model.contract[part].inputs[name], {}) or (), _drawn)
    if "codes" in model.contract:
        calls["codes"] = (item_shape(model.contract["codes"].inputs["codes"], {}) or (), _embedded)
    if "noise" in scene.arrays:
        calls["terms"] = (model.image_shape, lambda given, images: terms(given, images, scene.arrays["noise"]))
    answering = [_call(model, name, *call, largest) for name, call in calls.items()]
    if tile:
        answering.append(_at_own_size(model, tile))
    return _Guard(Starlette(routes=[*_files(content), *answering]), port)


def serve(model: OnnxVAE, scene: Scene, *, port: int = 8321, ready: Callable[[str], Any] = print) -> None:
    """Serve until interrupted, to this machine only.

    Args:
        model: The model.
        scene: From :func:`build_scene`.
        port: 0 takes a free one.
        ready: Called with the page's address once it can be opened.

    Raises:
        OSError: If the port is taken.
    """
    with socket.create_server((HOST, port)) as listener:
        # asyncio does this only for sockets that name their protocol; without it each answer waits for a delayed ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        port = listener.getsockname()[1]
        config = uvicorn.Config(application(model, scene, port), log_level="warning", ws="none", lifespan="off")
        ready(f"http://{HOST}:{port}/")
        with contextlib.suppress(KeyboardInterrupt):
            _Server(config).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Ends at the first Ctrl-C; uvicorn's own waits for every open connection, and a browser keeps some."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Neither requests under way nor connections are waited for."""
        super().handle_exit(sig, frame)
        self.force_exit = True
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # a request that is cut off now is no error


def _drawn(model: OnnxVAE, noise: Array) -> Array:
    """Draws of the prior, each its z and then its codes, if it is of codes."""
    if not has_code_prior(model.contract):
        return model.from_noise(noise)
    codes = model.codes_from_noise(noise)
    return np.hstack([model.embed_codes(codes).reshape(len(codes), -1), codes.astype(np.float32)])


def _embedded(model: OnnxVAE, codes: Array) -> Array:
    if not (codes == np.clip(np.rint(codes), 0, MAX_CODES)).all():  # NaN is no code either
        raise ValueError(f"`codes` must be whole numbers in [0, {MAX_CODES}].")
    return model.embed_codes(codes.astype(np.int64))


def _given(model: OnnxVAE, label: str | None) -> OnnxVAE:
    """The model with the label of a request, a number or a name."""
    if label is None:
        return model
    return model.given(labels=int(label) if label.lstrip("-").isdecimal() else label)


def _files(content: dict[str, bytes]) -> list[Route]:
    """A route for each file: what a visitor asks for is looked up among them, never on the disk."""

    def answer(name: str) -> Callable[[Request], Response]:
        kind = _TYPES.get(name.rpartition(".")[2], _BINARY)
        return lambda _: Response(content[name], media_type=kind)

    routes = [Route(f"/{name}", answer(name)) for name in content]
    return [Route("/", answer("index.html")), *routes]


def _tile_of(model: OnnxVAE) -> int | None:
    """Pixels of the tiles that large images are reconstructed in; None if the model cannot, or not exactly."""
    found = list((model.metadata["tiling"] or {}).values())
    if not found or not all("rows" in part for part in found):
        return None
    axes = [Axis(**axis) for part in found for axis in part.values()]
    return max(_TILE, *(max(axis.step, axis.cells) * max(axis.low + axis.high + 1, axis.least) for axis in axes))


def _call(model: OnnxVAE, name: str, shape: tuple[int, ...], function: _Answer, largest: int) -> Route:
    """``POST /name``: whole items of ``shape`` as little-endian float32, answered likewise; ``?label=`` is of all."""

    async def endpoint(request: Request) -> Response:
        values = np.frombuffer(await _body(request, shape, largest), "<f4").reshape(-1, *shape)
        return _answered(lambda: function(_given(model, request.query_params.get("label")), values))

    return Route(f"/{name}", endpoint, methods=["POST"])


def _at_own_size(model: OnnxVAE, tile: int) -> Route:
    """``POST /large/HEIGHT/WIDTH``: one image of that size, reconstructed tile by tile."""

    async def endpoint(request: Request) -> Response:
        shape = (model.image_shape[0], request.path_params["height"], request.path_params["width"])
        if not 0 < math.prod(shape) <= _LARGEST_IMAGE:
            raise HTTPException(413, f"An image must have 1 to {_LARGEST_IMAGE} numbers, got the shape {shape}.")
        image = np.frombuffer(await _body(request, shape, 1), "<f4").reshape(1, *shape)
        label = request.query_params.get("label")
        return _answered(lambda: _given(model, label).reconstruct(image, tile=tile))

    return Route("/large/{height:int}/{width:int}", endpoint, methods=["POST"])


async def _body(request: Request, shape: tuple[int, ...], largest: int) -> bytes:
    """1 to ``largest`` items of ``shape``."""
    item = 4 * math.prod(shape)
    if request.headers.get("content-type") != _BINARY:
        raise HTTPException(415, f"The body must be {_BINARY}: float32 numbers, not text.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > largest * item:
            raise HTTPException(413, f"The body must have at most {largest} items of {item} bytes, got more.")
    if not body or len(body) % item:
        raise HTTPException(400, f"The body must be items of shape {shape}, {item} bytes each, got {len(body)} bytes.")
    return bytes(body)


def _answered(function: Callable[[], Array]) -> Response:
    """Here and now: one visitor, who waits for it, and a thread would cost more."""
    try:
        return Response(function().astype("<f4").tobytes(), media_type=_BINARY)
    except (TypeError, ValueError) as error:
        raise HTTPException(422, str(error)) from error


class _Guard:
    """ASGI middleware: rejects requests from other hosts (DNS rebinding) and origins (CSRF), and adds headers."""

    def __init__(self, app: Any, port: int) -> None:
        self._app = app
        self._hosts = tuple(f"{name}:{port}" for name in ("127.0.0.1", "localhost"))

    async def __call__(self, scope: _Message, receive: Any, send: _Send) -> None:
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
