"""A bundle on disk: its manifest, its card, and its graphs as bytes that are verified by the manifest and the rules."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vaelib._checks import ModelFileError, check_path
from vaelib.runtime.graph import GraphError, Shape, check_graph, is_steady
from vaelib.runtime.protobuf import MODEL, ProtobufError, parse

__all__ = ["MAX_FILE_BYTES", "SCHEMA", "Bundle", "Part", "shapes_of"]

SCHEMA = "2"
MAX_FILE_BYTES = 2**31
"""Of one file; ONNX itself cannot hold more without external data."""
CARD_NAME = "README.md"
_PENDING = ".vaelib-pending-manifest.json"
"""Holds the newer files of an export that was killed after it was done."""
_MAX_MANIFEST_BYTES = 2**20
_MAX_CARD_BYTES = 2**20
_MAX_EXTENT = 2**16
_MAX_EXTRA_NOISE = 1024
"""Numbers that a prior draws beside those of the latent, such as the one that picks a component of a mixture."""
_MAX_VALUES = 2**28
_KINDS = ("VAE", "AutoEncoder")


class Part(NamedTuple):
    """One graph that was found to be what the manifest and the rules want."""

    content: bytes
    metadata: dict[str, Any]
    steady: bool
    """Whether an image's bits cannot depend on the batch that it is computed in."""


class Bundle:
    """The directory, with the manifest that was in it when it was opened; files that change later no longer fit it.

    Args:
        directory: Holds ``manifest.json`` and the files that it lists.

    Raises:
        FileNotFoundError: If there is no manifest.
        ModelFileError: If the manifest is torn or of another schema.
    """

    def __init__(self, directory: str | Path) -> None:
        check_path(directory, "directory")
        self.directory = Path(directory)
        path = self._existing("manifest.json")
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ModelFileError(f"{path} must have at most {_MAX_MANIFEST_BYTES} bytes, got {path.stat().st_size}.")
        manifest = _json(path.read_bytes(), str(path))
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            found = manifest.get("schema") if isinstance(manifest, dict) else None
            raise ModelFileError(f"{path} has schema {found!r:.40}, known is {SCHEMA!r}: export the model again.")
        if manifest.get("kind") not in _KINDS or not isinstance(manifest.get("files"), dict):
            raise ModelFileError(f"{path} must have a `kind` among {', '.join(_KINDS)} and `files`.")
        self.kind: str = manifest["kind"]
        self._files = manifest["files"]

    def read(self, part: str) -> Part:
        """The bytes of ``part``, looked at from all sides but run by nobody yet.

        Raises:
            FileNotFoundError: If the file is missing.
            ModelFileError: If it is not the file of the manifest, or not a graph that vaelib exports.
        """
        path = self._existing(f"{part}.onnx")
        content = self._verified(path)
        try:
            model = parse(content, MODEL)
            metadata = _metadata({entry["key"]: entry["value"] for entry in model["metadata_props"]}, str(path))
            if (metadata["kind"], metadata["part"]) != (self.kind, part):
                found = f"the {metadata['part']} of a {metadata['kind']}"
                raise ModelFileError(f"{path} must be the {part} of a {self.kind}, but is {found}.")
            check_graph(model, *_contract(part, metadata))
        except (ProtobufError, GraphError) as error:
            raise ModelFileError(f"{path} cannot be run by vaelib: {error}.") from error
        return Part(content, metadata, is_steady(model))

    def card(self) -> str:
        """The model card, ``README.md``; the ends of its lines may be others, as git makes them on Windows.

        Raises:
            FileNotFoundError: If the file is missing.
            ModelFileError: If it is a link, too large, not the file of the manifest, or no text in UTF-8.
        """
        path = self._existing(CARD_NAME)
        if path.is_symlink():
            raise ModelFileError(f"{path} must be a file of the bundle's own, got a link to {path.resolve()}.")
        if path.stat().st_size > _MAX_CARD_BYTES:
            raise ModelFileError(f"{path} must have at most {_MAX_CARD_BYTES} bytes, got {path.stat().st_size}.")
        try:
            return self._verified(path, is_text=True).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{path} is no text in UTF-8: {error}.") from error

    def _existing(self, name: str) -> Path:
        pending = self.directory / _PENDING / name
        path = pending if pending.is_file() else self.directory / name
        if not path.is_file():
            raise FileNotFoundError(f"`directory` must be a bundle of vaelib's; there is no {path}.")
        return path

    def _verified(self, path: Path, *, is_text: bool = False) -> bytes:
        entry = self._files.get(path.name)
        if not isinstance(entry, dict) or not isinstance(entry.get("bytes"), int):
            raise ModelFileError(f"{self.directory / 'manifest.json'} does not say what {path.name} is.")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ModelFileError(f"{path} must have at most {MAX_FILE_BYTES} bytes, got {size}.")
        content = path.read_bytes() if is_text or size == entry["bytes"] else b""
        if is_text:
            content = content.replace(b"\r\n", b"\n")
        if len(content) != entry["bytes"] or hashlib.sha256(content).hexdigest() != entry.get("sha256"):
            raise ModelFileError(
                f"{path} is not the file that manifest.json describes: torn, changed or half replaced."
            )
        return content


def _json(text: str | bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{where} is no valid JSON: {str(error) or 'too deep'}.") from error


def _extents(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) in (1, 3)
        and all(type(extent) is int and 1 <= extent <= _MAX_EXTENT for extent in value)
        and math.prod(value) <= _MAX_VALUES
    )


_RULES: dict[str, Callable[[Any], bool]] = {
    "image_shape": lambda value: _extents(value) and len(value) == 3,
    "image_range": lambda value: value == [0.0, 1.0],
    "latent_shape": _extents,
    "spatial_multiple": lambda value: value is None or (type(value) is int and 1 <= value <= _MAX_EXTENT),
    "noise_size": lambda value: value is None or (type(value) is int and 1 <= value <= _MAX_VALUES),
    "extra_noise": lambda value: value is None or (type(value) is int and 0 <= value <= _MAX_EXTRA_NOISE),
    "opset": lambda value: type(value) is int and 1 <= value <= 100,
    "validation": lambda value: isinstance(value, dict),
    "config": lambda value: value is None or isinstance(value, dict),
}
_TEXTS = ("schema", "version", "kind", "part", "likelihood", "prior", "precision", "weights_sha256")


def _metadata(found: dict[str, str], path: str) -> dict[str, Any]:
    found = {"vaelib.extra_noise": "null", **found}  # of version 0.1, whose priors have one number more or none
    missing = [name for name in (*_TEXTS, *_RULES) if f"vaelib.{name}" not in found]
    if missing:
        raise ModelFileError(f"{path} was not exported by vaelib: no {', '.join(missing)} in its metadata.")
    if found["vaelib.schema"] != SCHEMA:
        raise ModelFileError(f"{path} has schema {found['vaelib.schema']!r:.40}, known is {SCHEMA!r}.")
    metadata: dict[str, Any] = {name: found[f"vaelib.{name}"] for name in _TEXTS}
    for name, holds in _RULES.items():
        value = _json(found[f"vaelib.{name}"], f"`{name}` of {path}")
        if not holds(value):
            raise ModelFileError(f"{path} was not exported by vaelib: its `{name}` is {value!r:.80}.")
        metadata[name] = value
    if metadata["spatial_multiple"] is not None and len(metadata["latent_shape"]) != 3:
        raise ModelFileError(f"{path} was not exported by vaelib: only a latent map can have a `spatial_multiple`.")
    noise, extra, size = metadata["noise_size"], metadata["extra_noise"], math.prod(metadata["latent_shape"])
    if noise is not None and noise not in ([size, size + 1] if extra is None else [size + extra]):
        raise ModelFileError(
            f"{path} was not exported by vaelib: its `noise_size` is {noise}, for a latent of {size} numbers and"
            f" `extra_noise` {extra}."
        )
    return metadata


def shapes_of(metadata: Mapping[str, Any], size: tuple[int, int] | None = None) -> dict[str, tuple[int, ...]]:
    """The shape of one item of every input and output but ``recon_params``, at images of ``size`` ``(H, W)``.

    Without a size they are those of the training.
    """
    image, latent = tuple(metadata["image_shape"]), tuple(metadata["latent_shape"])
    if size is not None:
        image = (image[0], *size)
        latent = (latent[0], *(extent // metadata["spatial_multiple"] for extent in size))
    return (
        dict.fromkeys(("image", "reconstruction", "mean"), image)
        | dict.fromkeys(("z", "eps", "mu", "logvar"), latent)
        | dict.fromkeys(("distortion", "kl"), ())
        | {"noise": (metadata["noise_size"] or 0,)}
    )


def _contract(part: str, metadata: dict[str, Any]) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Names and shapes of the part's inputs and outputs."""
    shapes: dict[str, Shape] = dict(shapes_of(metadata))
    if metadata["spatial_multiple"] is not None:
        shapes = {name: (shape[0], None, None) if shape else () for name, shape in shapes.items()}
    shapes["recon_params"] = (None, *shapes["image"][1:])
    code = ("mu", "logvar") if metadata["kind"] == "VAE" else ("z",)
    inputs, outputs = {
        "encoder": (("image",), code),
        "decoder": (("z",), ("mean", "recon_params")),
        "vae": (("image", "eps"), ("reconstruction", *code, "distortion", "kl")),
        "autoencoder": (("image",), ("reconstruction", *code)),
        "prior": (("noise",), ("z",)),
    }[part]
    return {name: shapes[name] for name in inputs}, {name: shapes[name] for name in outputs}
