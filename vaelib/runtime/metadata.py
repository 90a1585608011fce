"""What a bundle says about its model, verified; and what the graphs of version 0.1 say, as today's manifest would."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from vaelib._checks import ModelFileError
from vaelib._tiles import Axis
from vaelib.runtime.contract import MAX_VALUES, Contract, Spec

__all__ = ["checked_metadata", "described", "from_json"]

_MAX_EXTENT = 2**16
_LARGEST = 1e30
"""Of the numbers of a scaling: squares of them leave float32."""
_TEXTS = ("schema", "version", "kind", "likelihood", "prior", "precision", "weights_sha256")
_VALUES = (
    *("image_shape", "image_range", "latent_shape", "spatial_multiple", "opset", "config", "validation", "parameters"),
    "noise_size",
)
_MAX_EXTRA_NOISE = 1024
"""Numbers that a prior draws beside those of the latent, such as the one that picks a component of a mixture."""


def from_json(text: str | bytes, where: str) -> Any:
    """The value of what may be no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{where} is no valid JSON: {str(error) or 'too deep'}.") from error


def _extents(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) in (1, 3)
        and all(type(extent) is int and 1 <= extent <= _MAX_EXTENT for extent in value)
        and math.prod(value) <= MAX_VALUES
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def _is_condition(value: Any) -> bool:
    if not isinstance(value, dict):
        return value is None
    if value.get("kind") == "vector":
        return _is_count(value.get("size"), _MAX_EXTENT)
    count, names = value.get("num_classes"), value.get("names")
    is_named = isinstance(names, list) and len(names) == count and all(map(_is_text, names))
    return value.get("kind") == "labels" and _is_count(count, _MAX_EXTENT) and (names is None or is_named)


def _are_codes(value: Any) -> bool:
    if not isinstance(value, dict):
        return value is None
    shape = value.get("shape")
    extents = [value.get("depth"), *(shape if isinstance(shape, list) else [None])]
    return (
        _is_count(value.get("num_codes"), 2**62)
        and all(_is_count(extent, _MAX_EXTENT) for extent in extents)
        and math.prod(extents) <= MAX_VALUES
    )


def _is_scaling(value: Any) -> bool:
    if not isinstance(value, dict):
        return value is None
    shift, scale = value.get("shift"), value.get("scale")
    if not (isinstance(shift, list) and isinstance(scale, list) and len(shift) == len(scale)):
        return False
    are_numbers = all(type(number) in (int, float) and abs(number) <= _LARGEST for number in (*shift, *scale))
    return are_numbers and all(number >= 1 / _LARGEST for number in scale)


def _is_tiling(value: Any) -> bool:
    if not isinstance(value, dict):
        return value is None
    return value.keys() == {"encoder", "decoder"} and all(map(_is_tiled, value.values()))


def _is_tiled(value: Any) -> bool:
    """One part: the axes of its receptive field, also of each of its sections, or the layer without a bound."""
    if not isinstance(value, dict) or not {"rows", "columns"} <= value.keys() <= {"rows", "columns", "sections"}:
        return isinstance(value, dict) and _is_text(value.get("layer")) and _is_text(value.get("reason"))
    sections = value.get("sections", [])
    return _are_axes(value) and isinstance(sections, list) and all(map(_is_section, sections))


def _is_section(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"given", "channels", "rows", "columns"}
        and _is_text(value["given"])
        and _is_count(value["channels"], _MAX_EXTENT)
        and _are_axes(value)
    )


def _are_axes(value: dict[str, Any]) -> bool:
    return all(
        isinstance(axis, dict)
        and axis.keys() == {*Axis._fields}
        and all(type(count) is int and count <= _MAX_EXTENT for count in axis.values())
        and all(count >= (0 if name in ("low", "high") else 1) for name, count in axis.items())
        for axis in (value["rows"], value["columns"])
    )


_RULES: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("version", "kind", "likelihood", "prior", "precision", "weights_sha256"), _is_text),
    "image_shape": lambda value: _extents(value) and len(value) == 3,
    "image_range": lambda value: value == [0.0, 1.0],
    "latent_shape": _extents,
    "spatial_multiple": lambda value: value is None or (type(value) is int and 1 <= value <= _MAX_EXTENT),
    "opset": lambda value: type(value) is int and 1 <= value <= 100,
    "config": lambda value: value is None or isinstance(value, dict),
    "validation": lambda value: isinstance(value, dict),
    "condition": _is_condition,
    "codes": _are_codes,
    "scaling": _is_scaling,
    "tiling": _is_tiling,
}
_NONE = dict.fromkeys(("condition", "codes", "scaling", "tiling"))
"""Of bundles that were written before there were any."""


def checked_metadata(found: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The metadata, or an error if one is missing or not what vaelib writes."""
    found = {**_NONE, **found}
    missing = [name for name in _RULES if name not in found]
    if missing:
        raise ModelFileError(f"{where} was not exported by vaelib: no {', '.join(missing)} in its metadata.")
    for name, holds in _RULES.items():
        if not holds(found[name]):
            raise ModelFileError(f"{where} was not exported by vaelib: its `{name}` is {found[name]!r:.80}.")
    multiple, image, latent = (found[name] for name in ("spatial_multiple", "image_shape", "latent_shape"))
    if found["codes"] is not None and found["codes"]["shape"] != latent[1:]:
        raise ModelFileError(
            f"{where} was not exported by vaelib: codes of shape {found['codes']['shape']} in a latent of {latent}."
        )
    if found["scaling"] is not None and len(found["scaling"]["shift"]) != latent[0]:
        count = len(found["scaling"]["shift"])
        raise ModelFileError(f"{where} was not exported by vaelib: a `scaling` of {count} channels for {latent}.")
    if multiple is not None and len(latent) != 3:
        raise ModelFileError(f"{where} was not exported by vaelib: only a latent map can have a `spatial_multiple`.")
    if multiple is not None and image[1:] != [multiple * extent for extent in latent[1:]]:
        raise ModelFileError(
            f"{where} was not exported by vaelib: images of {image} are not {multiple} times a latent map of {latent}."
        )
    for part, tiled in (found["tiling"] or {}).items():
        for axis in (tiled[name] for name in ("rows", "columns") if name in tiled):
            inner, outer = (axis["step"], axis["cells"]) if part == "decoder" else (axis["cells"], axis["step"])
            if multiple is None or outer != multiple * inner:
                raise ModelFileError(
                    f"{where} was not exported by vaelib: its `tiling` is of {axis['step']} to {axis['cells']} cells in"
                    f" the {part}, with a `spatial_multiple` of {multiple}."
                )
    return found


def described(props: Mapping[str, str], channels: Any, path: str) -> tuple[dict[str, Any], dict[str, Contract]]:
    """Metadata and contracts by the ``props`` of the decoder's file at ``path`` and the channels of its parameters."""
    found: dict[str, Any] = {}
    for name in (*_TEXTS, *_VALUES):
        text = props.get(f"vaelib.{name}")
        if text is not None:
            found[name] = text if name in _TEXTS else from_json(text, f"`{name}` of {path}")
    if found.get("schema") != "2":
        raise ModelFileError(f"{path} has schema {found.get('schema')!r:.40}, known is '2'.")
    metadata = checked_metadata(found, path)
    noise, size = metadata.pop("noise_size", None), math.prod(metadata["latent_shape"])
    if noise is not None and not (type(noise) is int and 0 <= noise - size <= _MAX_EXTRA_NOISE):
        raise ModelFileError(
            f"{path} was not exported by vaelib: its `noise_size` is {noise!r:.80}, for a latent of {size} numbers."
        )
    metadata["validation"] = {"decoder": metadata["validation"]}
    return metadata, _contracts(metadata, noise, channels)


def _contracts(metadata: Mapping[str, Any], noise: int | None, channels: Any) -> dict[str, Contract]:
    image, latent = tuple(metadata["image_shape"]), tuple(metadata["latent_shape"])
    size, free = math.prod(latent), metadata["spatial_multiple"] is not None
    if free:
        image, latent = (image[0], "H", "W"), (latent[0], "h", "w")
    x, z, nats = (Spec("float32", ("B", *shape)) for shape in (image, latent, ()))
    params = Spec("float32", ("B", channels, *image[1:]))
    contracts = {"decoder": Contract({"z": z}, {"mean": x, "recon_params": params}, "decoder.onnx")}
    if metadata["kind"] != "VAE":
        return {"encoder": Contract({"image": x}, {"z": z}, "encoder.onnx"), **contracts}
    encoder = Contract({"image": x}, {"z": z, "mu": z, "logvar": z}, "encoder.onnx", {"z": "mu"})
    bound = {"reconstruction": x, "mu": z, "logvar": z, "distortion": nats, "kl": nats}
    whole = Contract({"image": x, "noise": z}, bound, "vae.onnx", {"noise": "eps"})
    contracts = {"encoder": encoder, **contracts, "vae": whole}
    if noise is None and metadata["prior"] != "StandardNormal":  # one of the user's own, without a graph
        return contracts
    drawn = Spec("float32", ("B", *metadata["latent_shape"]))
    normal = Spec("float32", ("B", size if noise is None else noise))
    return {**contracts, "prior": Contract({"noise": normal}, {"z": drawn}, None if noise is None else "prior.onnx")}
