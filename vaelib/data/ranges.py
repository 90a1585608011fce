"""Which values are black and white: the argument ``value_range``, and what values say where it is not given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vaelib._checks import DataError, check_float

__all__ = ["DARK", "ValueRange", "check_value_range", "levels"]

ValueRange = tuple[float, float]

DARK = 15
"""8-bit sets with no larger value are masks, class numbers or few-bit data far more often than images that dark."""


def check_value_range(value_range: Sequence[float] | None) -> ValueRange | None:
    """``value_range`` as a pair of finite numbers, the first below the second; None stays None."""
    if value_range is None:
        return None
    if isinstance(value_range, str | bytes) or not isinstance(value_range, Sequence) or len(value_range) != 2:
        raise TypeError(f"`value_range` must be a pair (low, high), got {value_range!r}.")
    low, high = (check_float(f"value_range[{i}]", value, -1e30, 1e30) for i, value in enumerate(value_range))
    if not low < high:
        raise ValueError(f"`value_range` must rise, got ({low:g}, {high:g}).")
    return low, high


def scaled(name: str, values: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """Values mapped linearly from ``value_range`` to [0, 1], float32; values outside of it are an error."""
    low, high = value_range
    if values.dtype == np.uint8 and not (low >= 0 and high <= 255):
        raise DataError(
            f"`value_range` must lie in [0, 255] for {name}, which has 8-bit values, got ({low:g}, {high:g})."
        )
    smallest, largest = float(values.min()), float(values.max())
    if not (low <= smallest and largest <= high):
        raise DataError(
            f"`value_range` must hold all values of {name}, got ({low:g}, {high:g}) for values in"
            f" [{smallest:g}, {largest:g}]."
        )
    return ((values.astype(np.float64) - low) / (high - low)).astype(np.float32)


def levels(name: str, values: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """:func:`scaled`, as uint8 in 0 to 255."""
    return np.rint(scaled(name, values, value_range) * 255).astype(np.uint8)
