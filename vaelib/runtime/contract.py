"""What each graph of a bundle takes and gives, as data: the exporter writes it into the manifest, all others read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vaelib._checks import ModelFileError

__all__ = [
    "MAX_VALUES",
    "Contract",
    "Spec",
    "axes_of",
    "bound_axes",
    "checked_contract",
    "item_shape",
    "named_items",
    "wanted_items",
]

MAX_VALUES = 2**28
"""Of one image, one latent, one draw of noise."""
DTYPES = ("float32", "int64")
FREE_AXES = ("H", "W", "h", "w", "G")
"""Beside the batch ``B``: an image's, a latent map's, and how many groups of nats an image of such a size has."""
_NAME = re.compile(r"[a-z][a-z_]{0,39}")
_MOST_NAMES, _MOST_AXES = 32, 6


class Spec(NamedTuple):
    """One input or output."""

    dtype: str
    """``"float32"`` or ``"int64"``."""
    shape: tuple[int | str, ...]
    """Begins with ``"B"``; a free axis is a name of ``FREE_AXES``."""


class Contract(NamedTuple):
    """What one graph takes and gives, by name and in order."""

    inputs: dict[str, Spec]
    outputs: dict[str, Spec]
    file: str | None
    """None where the output is the input, as draws of a standard normal prior are their noise."""
    names: Mapping[str, str] = {}
    """Those that a file of version 0.1 has other words for."""

    def as_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        specs = {"inputs": self.inputs, "outputs": self.outputs}
        values = {kind: {n: {**s._asdict(), "shape": [*s.shape]} for n, s in of.items()} for kind, of in specs.items()}
        return {"file": self.file, **values}


def item_shape(spec: Spec, axes: Mapping[str, int]) -> tuple[int, ...] | None:
    """The shape of one item where the free axes are ``axes``; None if one of them is not among these."""
    shape = tuple(axis if isinstance(axis, int) else axes.get(axis) for axis in spec.shape[1:])
    return None if None in shape else shape  # type: ignore[return-value]


def named_items(
    specs: Mapping[str, Spec], axes: Mapping[str, int], names: Mapping[str, str]
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of one item by the file's own name, of those whose shape is known where ``axes`` are."""
    shapes = {name: item_shape(spec, axes) for name, spec in specs.items()}
    return {names.get(n, n): (shape, np.dtype(specs[n].dtype)) for n, shape in shapes.items() if shape is not None}


def wanted_items(
    contract: Contract, outputs: tuple[str, ...], axes: Mapping[str, int]
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """The same of the outputs that somebody asks for; an error if the graph lacks one, or an axis is not known."""
    specs = {name: contract.outputs[name] for name in outputs if name in contract.outputs}
    found = named_items(specs, axes, contract.names)
    if len(found) != len(outputs):
        raise ModelFileError(f"{contract.file} must give {', '.join(outputs)}; it has {', '.join(contract.outputs)}.")
    return found


def axes_of(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The free axes at the size of the training; empty where none is free."""
    if metadata["spatial_multiple"] is None:
        return {}
    (_, height, width), (_, rows, columns) = metadata["image_shape"], metadata["latent_shape"]
    return {"H": height, "W": width, "h": rows, "w": columns}


def bound_axes(spec: Spec, shape: tuple[int, ...], multiple: int) -> dict[str, int]:
    """The free axes by the ``shape`` of one batch, of images or of latents; empty where none of its axes is free."""
    axes = {name: size for name, size in zip(spec.shape[1:], shape[1:], strict=True) if isinstance(name, str)}
    for image, latent in (("H", "h"), ("W", "w")):
        if image in axes:
            axes[latent] = axes[image] // multiple
        elif latent in axes:
            axes[image] = axes[latent] * multiple
    return axes


def checked_contract(graphs: Any, metadata: Mapping[str, Any], where: str) -> dict[str, Contract]:
    """The ``graphs`` of a manifest, which anybody may have written.

    Raises:
        ModelFileError: If it is no contract, or not one of the model that ``metadata`` describe.
    """
    if not isinstance(graphs, dict) or not {"encoder", "decoder"} <= graphs.keys():
        raise ModelFileError(f"{where} must have `graphs`, encoder and decoder among them.")
    contracts = {}
    for part, entry in graphs.items():
        try:
            contracts[part] = _contract(part, entry)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(
                f"{where} does not say what the graph {part!r:.40} takes and gives: {error}."
            ) from error
    fixed = _shared({**metadata, "spatial_multiple": None})  # as draws of a prior have one size
    shared = _shared(metadata)
    for part, contract in contracts.items():
        for name, spec in (*contract.inputs.items(), *contract.outputs.items()):
            if name in ("condition", "codes") and name not in shared:
                raise ModelFileError(f"{where}: the {part} has `{name}`, of which the model says nothing.")
            if name in shared and spec not in (shared[name], fixed[name]):
                raise ModelFileError(
                    f"{where}: `{name}` of the {part} must be {shared[name].dtype} {shared[name].shape} in a model of"
                    f" images {metadata['image_shape']} and latents {metadata['latent_shape']}, got"
                    f" {spec.dtype} {spec.shape}."
                )
    return contracts


def _shared(metadata: Mapping[str, Any]) -> dict[str, Spec]:
    """What the names that several graphs share must be."""
    image, latent = tuple(metadata["image_shape"]), tuple(metadata["latent_shape"])
    if metadata["spatial_multiple"] is not None:
        image, latent = (image[0], "H", "W"), (latent[0], "h", "w")
    shared = {}
    if (condition := metadata["condition"]) is not None:
        is_label = condition["kind"] == "labels"
        shared["condition"] = Spec("int64", ("B",)) if is_label else Spec("float32", ("B", condition["size"]))
    if (codes := metadata["codes"]) is not None:
        shared["codes"] = Spec("int64", ("B", codes["depth"] * math.prod(codes["shape"])))
        shared["position"], shared["logits"] = Spec("int64", ("B",)), Spec("float32", ("B", codes["num_codes"]))
    return (
        shared
        | dict.fromkeys(("image", "mean", "reconstruction"), Spec("float32", ("B", *image)))
        | dict.fromkeys(("z", "mu", "logvar"), Spec("float32", ("B", *latent)))
        | dict.fromkeys(("distortion", "kl"), Spec("float32", ("B",)))
    )


def _contract(part: Any, entry: Any) -> Contract:
    if not _NAME.fullmatch(part):
        raise ValueError("its name is none of a graph")
    if entry["file"] != f"{part}.onnx" and (part, entry["file"]) != ("prior", None):
        raise ValueError(f"its file must be {part}.onnx, got {entry['file']!r:.80}")
    inputs, outputs = (
        {_name(name): _spec(name, value) for name, value in entry[kind].items()} for kind in ("inputs", "outputs")
    )
    if not 0 < len(inputs) <= _MOST_NAMES or not 0 < len(outputs) <= _MOST_NAMES:
        raise ValueError(f"it has {len(inputs)} inputs and {len(outputs)} outputs")
    if entry["file"] is None:
        sizes = [[math.prod(item_shape(spec, {}) or (0,)) for spec in v.values()] for v in (inputs, outputs)]
        kinds = [{spec.dtype for spec in values.values()} for values in (inputs, outputs)]
        wanted = "int64" if "codes" in outputs else "float32"
        if sizes[0] != sizes[1] or len(inputs) != 1 or kinds != [{"float32"}, {wanted}]:
            raise ValueError("without a file its one output must be its one input, or as many codes")
    return Contract(inputs, outputs, entry["file"])


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r:.40} is no name of an input or output")
    return name


def _spec(name: str, value: Any) -> Spec:
    shape = value["shape"]
    if value["dtype"] not in DTYPES:
        raise ValueError(f"the dtype of `{name}` must be among {', '.join(DTYPES)}, got {value['dtype']!r:.40}")
    axes = [axis for axis in shape if type(axis) is int]
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= _MOST_AXES
        or shape[0] != "B"
        or any(axis < 1 for axis in axes)
        or math.prod(axes) > MAX_VALUES
        or not all(type(axis) is int or axis in FREE_AXES for axis in shape[1:])
    ):
        raise ValueError(
            f"the shape of `{name}` must be 'B' and extents of at most {MAX_VALUES} in product, or names among"
            f" {', '.join(FREE_AXES)}, got {shape!r:.80}"
        )
    return Spec(value["dtype"], tuple(shape))
