"""Checks of the arrays that graphs take and give, at a few microseconds each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaelib._checks import check_finite, check_unit_range

__all__ = ["Array", "finite", "finite_check", "floats", "range_check", "shown"]

Array = NDArray[np.float32]

_FLOAT32 = np.dtype(np.float32)
_BITS_OF_ONE = 0x3F800000
"""As whole numbers the bits of the floats in [0, 1] are those up to one's; NaN and all signs lie above."""
_FEW = 8192
"""Of so many values the sum of squares is sooner known than whether each is finite; beyond, BLAS wakes threads."""


def floats(name: str, values: Any) -> Array:
    """A floating-point array as contiguous float32.

    Raises:
        TypeError: If it is no array of floating point.
    """
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
        if not (part.size <= _FEW and math.isfinite(np.vdot(part, part))) and not np.isfinite(part).all():
            check_finite(name, whole)

    return check


def shown(part: str, images: Array) -> Array:
    """The images, clamped to [0, 1]: graphs of vaelib 0.1 give the mean of a Gaussian as it is.

    Raises:
        ValueError: If a value is not finite.
    """
    bits = images.view(np.uint32)
    if images.size and bits.item(bits.argmax()) > _BITS_OF_ONE:  # outside of [0, 1], not finite, or -0.0
        np.clip(finite(part, images), 0.0, 1.0, out=images)
    return images


def finite(part: str, values: Array) -> Array:
    """The values.

    Raises:
        ValueError: If one is not finite.
    """
    if not (values.size <= _FEW and math.isfinite(np.vdot(values, values))) and not np.isfinite(values).all():
        raise ValueError(
            f"{part}.onnx gives values that are not finite (NaN or infinite) for this input: its weights are broken, or"
            " the input is too large for it."
        )
    return values
