"""Which axis of an array is which: the argument ``channels_last``, and what a shape says where it is not given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vaelib._checks import DataError
from vaelib.data.skipped import warn

__all__ = ["channels_first"]

_MOST_BANDS = 16
"""Images of more channels (satellites have 13) are taken for something else, unless ``channels_last`` is given."""


def channels_first(name: str, values: np.ndarray, channels_last: bool | None) -> np.ndarray:
    """A view ``(N, C, H, W)`` of images ``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)``.

    Where ``channels_last`` is None, the shape decides: channels are 1, 3, or at most 16 and fewer than either of the
    other two. A shape that fits both ways or neither is an error; more than 3 channels last are said in a warning.
    """
    if channels_last not in (None, True, False):
        raise TypeError(f"`channels_last` must be True, False or None, got {channels_last!r}.")
    if values.ndim == 3:
        if channels_last:
            raise DataError(f"`channels_last` needs 4 axes (N, H, W, C), {name} has shape {values.shape}.")
        if channels_last is None:
            _check_grey(name, values.shape)
        return values[:, None]
    if values.ndim != 4:
        hint = " Reshape rows to images first." if values.ndim == 2 else ""
        raise DataError(
            f"`images` must have shape (N, H, W), (N, C, H, W) or (N, H, W, C), {name} has {values.shape}.{hint}"
        )
    if channels_last is None:
        channels_last = _is_channels_last(name, values.shape)
    return np.moveaxis(values, 3, 1) if channels_last else values


def _check_grey(name: str, shape: Sequence[int]) -> None:
    """Raise or warn where three axes are hardly ``(N, H, W)``."""
    first, second, third = shape
    if third <= 4 and third < min(first, second):
        raise DataError(
            f"{name} of shape {shape} looks like one image (H, W, C), not like {first} of {second}x{third} pixels;"
            f" save it as (1, {first}, {second}, {third}), or give channels_last=False if it is (N, H, W)."
        )
    if first == second != third:
        raise DataError(
            f"{name} of shape {shape} looks like (H, W, N), the order of MATLAB; transpose it to"
            f" ({third}, {first}, {second}), or give channels_last=False if it is (N, H, W)."
        )
    if first == 3 and min(second, third) >= 16:
        warn(
            f"{name} of shape {shape} is read as 3 grey images: give channels_last=False to confirm it, or save one"
            f" colour image as (1, 3, {second}, {third})."
        )


def _is_channels_last(name: str, shape: Sequence[int]) -> bool:
    _, second, third, last = shape
    may_be_first = _may_be_channels(second, third, last)
    may_be_last = _may_be_channels(last, second, third)
    if max(second, third, last) == 1:
        return False
    if may_be_first == may_be_last:
        raise DataError(
            f"`channels_last` must be given for {name}: of its shape {shape}, {second} or {last} may be the channels."
            " False means (N, C, H, W), True (N, H, W, C)."
        )
    if may_be_last and last not in (1, 3):
        warn(
            f"{name} of shape {shape} is read as {second}x{third} images of {last} channels, which come last."
            " Give channels_last=True to confirm it, False for (N, C, H, W)."
        )
    return may_be_last


def _may_be_channels(size: int, *others: int) -> bool:
    return size in (1, 3) or (size <= _MOST_BANDS and size < min(others))
