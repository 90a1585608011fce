"""Which values are black and white: the argument ``value_range``, and what values say where it is not given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from vaelib._checks import DataError, check_float, shown
from vaelib.data.folders import warn
from vaelib.data.guard import check_memory

ValueRange = tuple[float, float]

_UNIT: ValueRange = (0, 1)
_EIGHT_BITS: ValueRange = (0, 255)
DARK = 15
"""8-bit sets with no larger value are masks, class numbers or few-bit data far more often than images that dark."""
_ROUNDING = 1e-5
"""How far resizing and arithmetic in float32 leave [0, 1]."""


def check_value_range(value_range: Sequence[float] | None) -> ValueRange | None:
    """``value_range`` as a pair of finite numbers, the first below the second; None stays None."""
    if value_range is None:
        return None
    if not isinstance(value_range, tuple | list) or len(value_range) != 2:
        raise TypeError(f"`value_range` must be a pair (low, high), got {shown(value_range)}.")
    low, high = (check_float(f"value_range[{i}]", value, -1e30, 1e30) for i, value in enumerate(value_range))
    if not low < high:
        raise ValueError(f"`value_range` must be (low, high) with low < high, got ({low:g}, {high:g}).")
    return low, high


def as_images(
    name: str, values: np.ndarray, value_range: ValueRange | None, others: Iterable[np.ndarray] = ()
) -> np.ndarray:
    """Values as uint8 in 0 to 255, or floating point in [0, 1].

    Where ``value_range`` is None, these are read as they are: True and False; floating point in [0, 1]; uint8; uint16
    that use the upper half of their range. Values of 0 and 1, and integers of another dtype up to 255, are read with a
    warning. Anything else, and values that use less than a sixteenth of their range, is an error that asks for it.
    Where values leave a doubt, ``others`` of the same set and dtype, such as its other splits, are looked at as well.
    """
    kind: str = values.dtype.kind
    if kind == "b":
        return _looked_up(name, values.view(np.uint8), value_range or _UNIT)
    low, high = _extremes(values)
    given = value_range or _probable_range(name, values.dtype, low, high, others)
    is_float, is_eight_bits = kind == "f", kind == "u" and values.dtype.itemsize == 1
    if (is_eight_bits and given == _EIGHT_BITS) or (is_float and given == _UNIT):
        _check_inside(name, values.dtype, (low, high), given)
        return np.clip(values, 0, 1) if is_float and (low < 0 or high > 1) else values
    if is_eight_bits:
        return _looked_up(name, values, given)
    if not is_float and given in (_EIGHT_BITS, _UNIT):
        return levels(name, values, given)
    return levels(name, values, given, np.float32)


def _check_inside(name: str, dtype: np.dtype, extremes: tuple[float, float], value_range: ValueRange) -> None:
    (smallest, largest), (low, high) = extremes, value_range
    if dtype == np.uint8 and not (low >= 0 and high <= 255):
        raise DataError(
            f"`value_range` must lie in [0, 255] for {name}, which has 8-bit values, got ({low:g}, {high:g})."
        )
    slack = _ROUNDING * (high - low) if dtype.kind == "f" else 0
    if not (low - slack <= smallest and largest <= high + slack):
        raise DataError(
            f"`value_range` must hold all values of {name}, got ({low:g}, {high:g}) for values in"
            f" [{smallest:g}, {largest:g}]."
        )


def _certain_range(dtype: np.dtype, low: float, high: float) -> ValueRange | None:
    """The range of values that use it; None where they are dark, or of a dtype without an agreed range."""
    if dtype.kind == "f":
        return _UNIT if low >= -_ROUNDING and DARK / 255 < high <= 1 + _ROUNDING else None
    if dtype.kind == "u" and dtype.itemsize <= 2:  # of either byte order
        largest = 256**dtype.itemsize - 1
        return (0, largest) if high > (DARK if dtype.itemsize == 1 else largest // 2) else None
    return None


def _probable_range(name: str, dtype: np.dtype, low: float, high: float, others: Iterable[np.ndarray]) -> ValueRange:
    certain = _certain_range(dtype, low, high)
    for other in others if certain is None else ():
        if other.dtype == dtype:
            other_low, other_high = _extremes(other)
            low, high = min(low, other_low), max(high, other_high)
    certain = certain or _certain_range(dtype, low, high)
    if certain is not None:
        return certain
    found = f"got {dtype} in [{low:g}, {high:g}]"
    if dtype.kind == "f":
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
            raise DataError(f"{name}: `images` must have values in [0, 1], got [{low:g}, {high:g}].{_hint(low, high)}")
        if high > 0:
            raise DataError(f"`value_range` must be given for {name}, {found}: (0, 1) if they are dark.")
        return _UNIT
    if low == 0 == high:
        return _EIGHT_BITS
    if low >= 0 and high == 1:
        warn(f"{name} holds 0 and 1 alone: 1 is read as white. Give value_range=(0, 1) to confirm.")
        return _UNIT
    if low >= 0 and 127 < high <= 255:
        warn(f"{name}: 255 is read as white, {found}. Give value_range=(0, 255) to confirm.")
        return _EIGHT_BITS
    bits = math.ceil(math.log2(high + 1)) if high > 0 else 8
    dark = "(0, 255) for 8 bits" if high < 256 else f"(0, {2**16 - 1}) for 16 bits" if high < 2**15 else ""
    examples = f"(0, {2**bits - 1}) if {high:g} is near white{dark and ', '}{dark}" if low >= 0 else "(-1000, 2000)"
    raise DataError(f"`value_range` must be given for {name}, {found}: such as {examples}.")


def _hint(low: float, high: float) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return " NaN and infinity are no values of an image."
    likely = (-1, 1) if low >= -1 and high <= 1 else (0, 255) if low >= 0 and 127 < high <= 255 else None
    return " Give the values of black and white as `value_range`" + (f", such as {likely}." if likely else ".")


def _extremes(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _looked_up(name: str, values: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """:func:`levels` of 8-bit values, in place where nobody else has the array: dSprites takes 2.8 GiB."""
    _check_inside(name, values.dtype, _extremes(values), value_range)
    low, high = value_range
    table = np.rint(((np.arange(256) - low) / (high - low)).clip(0, 1) * 255).astype(np.uint8)
    root = values
    while isinstance(root.base, np.ndarray):
        root = root.base
    is_own = root.base is None and values.flags.writeable  # tensors and mapped files are not
    result = values if is_own else np.empty(values.shape, np.uint8)
    for i in range(0, len(values), 256):
        result[i : i + 256] = table[values[i : i + 256]]
    return result


def levels(name: str, values: np.ndarray, value_range: ValueRange, dtype: type = np.uint8) -> np.ndarray:
    """Values mapped linearly from ``value_range`` to 0 to 255, uint8, or to [0, 1], float32; others are an error.

    A few images or rows at a time: a copy of all in float64 would not fit.
    """
    low, high = value_range
    check_memory(name, math.prod(values.shape) * np.dtype(dtype).itemsize, "give fewer images")
    result: np.ndarray = np.empty(values.shape, dtype)
    for i in range(0, len(values), 256):
        piece = values[i : i + 256]
        _check_inside(name, values.dtype, _extremes(piece), value_range)
        scaled = ((piece.astype(np.float64) - low) / (high - low)).clip(0, 1).astype(np.float32)
        result[i : i + 256] = np.rint(scaled * 255) if dtype is np.uint8 else scaled
    return result
