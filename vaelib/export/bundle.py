"""A bundle directory: its files, their metadata, and the manifest that holds them together."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaelib import __version__
from vaelib._checks import check_path
from vaelib._files import Listed, check_replaceable, files_replaced, listed_in, target_directory
from vaelib.export import Parity
from vaelib.serialization import describe
from vaelib.vae import VAE

__all__ = ["CARD_NAME", "at_most", "bundle_directory", "facts_of", "metadata_of", "write_bundle"]

SCHEMA = "2"
MANIFEST_NAME = "manifest.json"
CARD_NAME = "README.md"
_ALWAYS = ("encoder.onnx", "decoder.onnx")  # graphs of every bundle


def facts_of(model: VAE, opset: int) -> dict[str, Any]:
    """What every graph of the bundle says about the model."""
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode() + tensor.numpy().tobytes())
    return {
        "schema": SCHEMA,
        "version": __version__,
        "kind": "VAE" if model.latent.has_prior else "AutoEncoder",
        "image_shape": list(model.image_shape),
        "image_range": [0.0, 1.0],
        "latent_shape": list(model.latent_shape),
        "likelihood": _class_name(model.likelihood),
        "prior": _class_name(getattr(model, "prior", None)),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_sha256": weights.hexdigest(),
        "opset": opset,
        "config": _config(model),
    }


def _class_name(part: object | None) -> str:
    return "none" if part is None else type(part).__name__


def _config(model: VAE) -> dict[str, Any] | None:
    try:
        return describe(model)
    except TypeError:  # a foreign encoder exports all the same; only its config has no words
        return None


def metadata_of(part: str, facts: Mapping[str, Any], parity: Mapping[str, Parity]) -> dict[str, str]:
    """The ``metadata_props`` of one graph."""
    validation = {name: {kind: at_most(x) for kind, x in p._asdict().items()} for name, p in parity.items()}
    own = {"part": part, "validation": validation}
    return {
        f"vaelib.{name}": value if isinstance(value, str) else json.dumps(value)
        for name, value in {**facts, **own}.items()
    }


def at_most(difference: float) -> float:
    """The next power of ten, for files: digits of rounding errors differ between machines, bytes must not."""
    return float(f"1e{math.ceil(math.log10(difference))}") if difference else 0.0


def bundle_directory(directory: str | Path) -> Path:
    """The path, once it is known that a bundle can be written there.

    Raises:
        TypeError: If it is no path.
        ValueError: If it is the path of nothing.
        OSError: If the directory, or its parent if it is new, cannot be written.
        FileExistsError: An ``OSError``: if it holds files of names that every bundle has and that the manifest in it
            does not list as they are; :func:`write_bundle` looks at all names.
    """
    check_path(directory, "directory")
    path = target_directory("directory", directory)
    check_replaceable(path, (*_ALWAYS, CARD_NAME, MANIFEST_NAME), _listed(path / MANIFEST_NAME))
    return path


def write_bundle(path: Path, kind: str, files: Mapping[str, bytes]) -> None:
    """All files and their manifest, in the place of those that the manifest in ``path`` lists.

    Raises:
        FileExistsError: An ``OSError``: if there is a file in the place of one of them that the manifest does not list,
            or that was changed since, such as a model card that somebody has edited.
    """
    manifest = {
        "schema": SCHEMA,
        "version": __version__,
        "kind": kind,
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in files.items()
        },
    }
    contents = {**files, MANIFEST_NAME: (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()}
    with files_replaced(path, MANIFEST_NAME, _listed) as staging:
        for name, content in contents.items():
            (staging / name).write_bytes(content)


def _listed(manifest: Path) -> Listed | None:
    return listed_in(manifest, lambda content: "schema" in content and content.get("kind") in ("VAE", "AutoEncoder"))
