"""Latents along a path: from one to another, or one dimension at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vaelib._checks import check_int, check_int_tuple, check_shape
from vaelib.runtime.arrays import Array

__all__ = ["interpolated", "traversed"]


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
