"""What a bundle says about its model: anybody may have written it, so it is looked at before it is believed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from vaelib._checks import ModelFileError
from vaelib.runtime.contract import MAX_VALUES

__all__ = ["checked_metadata", "from_json"]

_MAX_EXTENT = 2**16
_LARGEST = 1e30
"""Of the numbers of a scaling: squares of them leave float32."""


def from_json(text: str | bytes, where: str) -> Any:
    """The value.

    Raises:
        ModelFileError: If it is no JSON.
    """
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
}
_NONE = {"condition": None, "codes": None, "scaling": None}
"""Of bundles that were written before there were any."""


def checked_metadata(found: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The metadata.

    Raises:
        ModelFileError: If one is missing, or not what vaelib writes.
    """
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
    if multiple is None:
        return found
    if len(latent) != 3:
        raise ModelFileError(f"{where} was not exported by vaelib: only a latent map can have a `spatial_multiple`.")
    if image[1:] != [multiple * extent for extent in latent[1:]]:
        raise ModelFileError(
            f"{where} was not exported by vaelib: images of {image} are not {multiple} times a latent map of {latent}."
        )
    return found
