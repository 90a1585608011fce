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
from vaelib.conditions import Labels
from vaelib.export.differences import Parity, at_most
from vaelib.export.graphs import Graph, contract_of
from vaelib.runtime.bundle import SCHEMA
from vaelib.serialization import describe
from vaelib.vae import VAE

__all__ = ["CARD_NAME", "bundle_directory", "described", "metadata_of", "props_of", "write_bundle"]

MANIFEST_NAME = "manifest.json"
CARD_NAME = "README.md"
_ALWAYS = ("encoder.onnx", "decoder.onnx")  # graphs of every bundle


def metadata_of(model: VAE, opset: int, precision: str) -> dict[str, Any]:
    """What a bundle says about the model, whichever graph it is of."""
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode() + tensor.numpy().tobytes())
    return {
        "kind": "VAE" if model.latent.has_prior else "AutoEncoder",
        "image_shape": list(model.image_shape),
        "image_range": [0.0, 1.0],
        "latent_shape": list(model.latent_shape),
        "likelihood": _class_name(model.likelihood),
        "prior": _class_name(model.latent if model.prior is None and model.latent.has_prior else model.prior),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_sha256": weights.hexdigest(),
        "condition": _condition(model.condition),
        "codes": _codes(model),
        "scaling": None if model.scaling is None else model.scaling.by_channel(model.latent_shape[0]),
        "opset": opset,
        "precision": precision,
        "config": _config(model),
    }


def _class_name(part: object | None) -> str:
    return "none" if part is None else type(part).__name__


def _condition(part: Any) -> dict[str, Any] | None:
    if part is None:
        return None
    if isinstance(part, Labels):
        return {"kind": "labels", "num_classes": part.num_classes, "names": part.names and list(part.names)}
    return {"kind": "vector", "size": part.embedding_size}


def _codes(model: Any) -> dict[str, Any] | None:
    """How many codes there are at each position, and how these lie; None of a latent without codes."""
    if not hasattr(model.latent, "num_codes"):
        return None
    shape = list(model.latent_shape[1:])
    return {
        "num_codes": model.latent.num_codes,
        "depth": model.latent.num_positions // math.prod(shape),
        "shape": shape,
    }


def _config(model: VAE) -> dict[str, Any] | None:
    try:
        return describe(model)
    except TypeError:  # a foreign encoder exports all the same; only its config has no words
        return None


def described(
    metadata: Mapping[str, Any], graphs: Mapping[str, Graph], parity: Mapping[str, Mapping[str, Parity]]
) -> dict[str, Any]:
    """The manifest but for its files: the model, and what each graph takes and gives."""
    validation = {
        part: {name: {kind: at_most(x) for kind, x in p._asdict().items()} for name, p in outputs.items()}
        for part, outputs in parity.items()
    }
    return {
        "schema": SCHEMA,
        "version": __version__,
        "model": {**metadata, "spatial_multiple": graphs["encoder"].multiple, "validation": validation},
        "graphs": {part: contract_of(graph).as_json() for part, graph in graphs.items()},
    }


def props_of(part: str, described: Mapping[str, Any]) -> dict[str, str]:
    """The ``metadata_props`` of one graph: which of which model it is; the rest is in the manifest beside it."""
    own = {"schema": SCHEMA, "version": __version__, "part": part}
    own["weights_sha256"] = described["model"]["weights_sha256"]
    return {f"vaelib.{name}": value for name, value in own.items()}


def bundle_directory(directory: str | Path) -> Path:
    """The path, once it is known that a bundle can be written there; :func:`write_bundle` looks at all names again."""
    check_path(directory, "directory")
    path = target_directory("directory", directory)
    check_replaceable(path, (*_ALWAYS, CARD_NAME, MANIFEST_NAME), _listed(path / MANIFEST_NAME))
    return path


def write_bundle(path: Path, described: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """All files and their manifest, in the place of those that the manifest in ``path`` lists and nobody changed."""
    listed = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for name, content in files.items()
    }
    manifest = (json.dumps({**described, "files": listed}, indent=2) + "\n").encode()
    with files_replaced(path, MANIFEST_NAME, _listed) as staging:
        for name, content in {**files, MANIFEST_NAME: manifest}.items():
            (staging / name).write_bytes(content)


def _listed(manifest: Path) -> Listed | None:
    return listed_in(manifest, lambda content: content.get("schema") in ("2", SCHEMA))
