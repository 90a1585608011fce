"""What callers hand over, made into what a graph takes, at a few microseconds a check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaelib._checks import check_finite, check_int, check_int_tuple, check_shape, check_unit_range

__all__ = ["BITS_OF_ONE", "FEW", "Array", "finite_check", "floats", "interpolated", "range_check", "traversed"]

Array = NDArray[np.float32]

_FLOAT32 = np.dtype(np.float32)
BITS_OF_ONE = 0x3F800000
"""As whole numbers the bits of the floats in [0, 1] are those up to one's; NaN and all signs lie above."""
FEW = 8192
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
        if bits.item(bits.argmax()) > BITS_OF_ONE and not (part.min() >= 0 and part.max() <= 1):  # -0.0 is fine
            check_unit_range(name, whole)

    return check


def finite_check(name: str, whole: Array) -> Any:
    """A function that raises unless the part of ``whole`` that it is given is finite."""

    def check(part: Array) -> None:
        if not (part.size <= FEW and math.isfinite(np.vdot(part, part))) and not np.isfinite(part).all():
            check_finite(name, whole)

    return check


def interpolated(a: Array, b: Array, steps: int, *, spherical: bool) -> Array:
    """``(B, steps, ...)`` from ``a`` to ``b``, both ends included."""
    if a.shape != b.shape:
        raise ValueError(f"`a` and `b` must have the same shape, got {a.shape} and {b.shape}.")
    t = np.linspace(0.0, 1.0, check_int("steps", steps, minimum=2))
    start, end = (values.reshape(len(values), 1, math.prod(a.shape[1:])).astype(np.float64) for values in (a, b))
    weights = np.stack([1 - t, t])[:, None, :, None]
    if spherical:
        lengths = np.linalg.norm(start, axis=2) * np.linalg.norm(end, axis=2)
        cosine = (start * end).sum(2) / np.maximum(lengths, np.finfo(np.float64).tiny)
        angle = np.arccos(np.clip(cosine, -1.0, 1.0))[:, :, None]
        turned = np.sin(weights * angle) / np.maximum(np.sin(angle), np.finfo(np.float64).tiny)
        weights = np.where(np.sin(angle) > 1e-6, turned, weights)
    between = weights[0] * start + weights[1] * end
    return between.reshape(len(a), len(t), *a.shape[1:]).astype(np.float32)


def traversed(z: Array, dimensions: Sequence[int], values: Sequence[float]) -> Array:
    """``(B, len(dimensions), len(values), ...)``: each ``z`` with one latent at a time set to each of the values."""
    size = math.prod(z.shape[1:])
    for dimension in check_int_tuple("dimensions", dimensions, minimum=0):
        if dimension >= size:
            raise ValueError(f"`dimensions` must be < {size}, got {dimension}.")
    numbers = np.asarray(values, np.float32)
    check_shape("values", numbers.shape, ("N",))
    moved = np.repeat(z.reshape(len(z), 1, 1, size), len(dimensions), axis=1).repeat(len(numbers), axis=2)
    for row, dimension in enumerate(dimensions):
        moved[:, row, :, dimension] = numbers
    return moved.reshape(len(z), len(dimensions), len(numbers), *z.shape[1:])
