"""Checks of what graphs are given and give: arrays, at a few microseconds each, and conditions as rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaelib._checks import check_finite, check_shape, check_unit_range

__all__ = ["Array", "checked_condition", "finite", "finite_check", "floats", "range_check", "rows_for", "shown"]

Array = NDArray[np.float32]

_FLOAT32 = np.dtype(np.float32)
_BITS_OF_ONE = 0x3F800000
"""As whole numbers the bits of the floats in [0, 1] are those up to one's; NaN and all signs lie above."""
_FEW = 8192
"""Of so many values the sum of squares is sooner known than whether each is finite; beyond, BLAS wakes threads."""


def floats(name: str, values: Any) -> Array:
    """A floating-point array as contiguous float32."""
    if type(values) is np.ndarray and values.dtype is _FLOAT32 and values.flags.c_contiguous:
        return values  # what almost every call brings, a microsecond sooner
    if not isinstance(values, np.ndarray):
        raise TypeError(f"`{name}` must be a numpy array, got {type(values).__name__}.")
    if values.dtype.kind != "f":
        hint = " Divide 8-bit images by 255." if values.dtype == np.uint8 else ""
        raise TypeError(f"`{name}` must be floating point, got dtype {values.dtype}.{hint}")
    return np.ascontiguousarray(values, dtype=np.float32)


def range_check(name: str, whole: Array) -> Any:
    """A function that raises unless the part of ``whole`` that it is given lies in [0, 1]."""

    def check(part: Array) -> None:
        bits = part.view(np.uint32)
        if bits.item(bits.argmax()) > _BITS_OF_ONE and not (part.min() >= 0 and part.max() <= 1):  # -0.0 is fine
            check_unit_range(name, whole)

    return check


def finite_check(name: str, whole: Array) -> Any:
    """A function that raises unless the part of ``whole`` that it is given is finite."""

    def check(part: Array) -> None:
        if not _all_finite(part):
            check_finite(name, whole)

    return check


def _all_finite(values: Array) -> bool:
    return (values.size <= _FEW and math.isfinite(np.vdot(values, values))) or bool(np.isfinite(values).all())


def shown(part: str, images: Array) -> Array:
    """The images, clamped to [0, 1]: graphs of vaelib 0.1 give the mean of a Gaussian as it is."""
    bits = images.view(np.uint32)
    if images.size and bits.item(bits.argmax()) > _BITS_OF_ONE:  # outside of [0, 1], not finite, or -0.0
        np.clip(finite(part, images), 0.0, 1.0, out=images)
    return images


def finite(part: str, values: Array) -> Array:
    """The values, or an error."""
    if not _all_finite(values):
        raise ValueError(
            f"{part}.onnx gives values that are not finite (NaN or infinite) for this input: its weights are broken, or"
            " the input is too large for it."
        )
    return values


def checked_condition(described: Mapping[str, Any] | None, value: Any, name: str = "condition") -> NDArray[Any]:
    """The condition as rows: int64 ``(B,)`` of labels, float32 ``(B, size)`` of a vector.

    Args:
        described: What the bundle says of the model's condition; None if it takes none.
        value: A label by number or by name, one vector, or many of them.
        name: The caller's name of it, for the errors.
    """
    if described is None:
        raise ValueError(f"`{name}` must be None: the model takes no condition, got {value!r:.80}.")
    if described["kind"] == "labels":
        return _labels(described, value, name)
    if name == "labels":
        raise ValueError("`labels` must be None: the model's condition is a vector, give it as `condition`.")
    rows = np.asarray(value)
    if rows.dtype.kind not in "fiu":
        raise TypeError(f"`{name}` must be numbers, got {value!r:.80}.")
    if rows.ndim == 1 or (rows.ndim == 0 and described["size"] == 1):
        rows = rows.reshape(1, -1)
    check_shape(name, rows.shape, ("B", described["size"]))
    rows = np.ascontiguousarray(rows, np.float32)
    check_finite(name, rows)
    return rows


def _labels(described: Mapping[str, Any], value: Any, name: str) -> NDArray[np.int64]:
    if isinstance(value, list | tuple):  # numpy would make names of all
        value = [_number_of(each, described["names"], name) if isinstance(each, str) else each for each in value]
    rows = np.atleast_1d(np.asarray(value))
    if rows.dtype.kind == "U":
        rows = np.array([_number_of(text, described["names"], name) for text in rows.ravel().tolist()]).reshape(
            rows.shape
        )
    if rows.dtype.kind not in "iu":
        raise TypeError(
            f"`{name}` must be whole numbers{' or names' if described['names'] else ''}, got {value!r:.80}."
        )
    check_shape(name, rows.shape, ("B",))
    count = described["num_classes"]
    if unknown := [label for label in rows.tolist() if not 0 <= label < count]:
        raise ValueError(f"`{name}` must be labels in [0, {count}), got {unknown[0]}.")
    return np.ascontiguousarray(rows, np.int64)


def _number_of(text: str, names: Sequence[str] | None, name: str) -> int:
    if not names:
        raise ValueError(f"`{name}` must be labels by number: the bundle has no names of classes, got {text!r:.40}.")
    if text not in names:
        shown = ", ".join(names[:20]) + ("" if len(names) <= 20 else " and more")
        raise ValueError(f"`{name}` must be among {shown}, got {text!r:.40}.")
    return names.index(text)


def rows_for(rows: NDArray[Any] | None, count: int, *, draws: bool) -> NDArray[Any]:
    """The rows for ``count`` items: one serves all; B serve K * B ``draws``, the B rows again for each of K."""
    if rows is None:
        raise ValueError("The model takes a condition: pass `condition=`, or call `model.given(...)`.")
    if len(rows) == count:
        return rows
    if len(rows) == 0 or count % len(rows) or (len(rows) > 1 and not draws):
        raise ValueError(f"`condition` must have one row, or one for each of the {count} images, got {len(rows)}.")
    return np.tile(rows, (count // len(rows), *[1] * (rows.ndim - 1)))
