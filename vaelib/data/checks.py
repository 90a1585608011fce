"""The rules for what an :class:`vaelib.data.ImageDataset` is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vaelib._checks import (
    DataError,
    check_bool,
    check_choice,
    check_finite,
    check_has_values,
    check_shape,
    check_tensor,
    check_type,
    check_unit_range,
)
from vaelib.data.guard import check_plain_tensor
from vaelib.data.skipped import warn

__all__ = ["check_factors", "check_images", "check_not_empty", "check_rest", "checked_names", "condition_of"]


def check_images(images: Tensor) -> None:
    """Raise unless these can be the images of a set."""
    if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or images.is_floating_point()):
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"`images` must be a tensor, uint8 or floating point in [0, 1], got {got}.")
    check_plain_tensor("images", images)
    check_shape("images", images.shape, ("N", "C", "H", "W"))
    check_not_empty(images)
    if images.is_floating_point():
        check_unit_range("images", images)
    elif images[:64].max() == 1 and images.max() == 1:
        warn("`images` holds 8-bit values of 0 and 1 alone, black and almost black; multiply by 255 if 1 is white.")


def check_not_empty(images: Tensor) -> None:
    """Raise ``DataError`` if there is no image."""
    if images.numel() == 0:
        raise DataError(f"`images` must hold at least one pixel, got shape {tuple(images.shape)}.")


def check_rest(
    labels: Any, factor_names: Sequence[str], class_names: Sequence[str], *, dynamic: bool, flip: bool
) -> None:
    """Types of the arguments besides the images."""
    checked_names("factor_names", factor_names)
    checked_names("class_names", class_names)
    check_bool("dynamic", dynamic)
    check_bool("flip", flip)
    if isinstance(labels, Tensor):
        check_tensor("labels", labels, floating=False)
        check_has_values("labels", labels)
    elif isinstance(labels, bytes | bytearray | memoryview):
        raise TypeError(f"`labels` must be class numbers or names, got {type(labels).__name__}.")


def checked_names(argument: str, names: Sequence[str], count: int | None = None) -> tuple[str, ...]:
    """Strings as a tuple; an error unless each is one, and there are ``count`` of them or none."""
    check_type(argument, names, tuple | list, "a sequence of strings")
    for name in names:
        check_type(argument, name, str, "a sequence of strings")
    if count is not None and len(names) not in (0, count):
        raise ValueError(f"`{argument}` must be {count}, one an image, or none, got {len(names)}.")
    return tuple(names)


def check_factors(factors: Tensor, shape: tuple[int, int]) -> None:
    """Raise unless these are integers ``(N, F)``."""
    if not isinstance(factors, Tensor):
        raise TypeError(f"`factors` must be a tensor of integers, got {type(factors).__name__}.")
    check_shape("factors", factors.shape, shape)
    if factors.is_floating_point() or factors.is_complex():
        raise TypeError(f"`factors` must be a tensor of integers, got dtype {factors.dtype}.")


def condition_of(
    condition: str | Tensor | None,
    labels: Tensor | None,
    factors: Tensor | None,
    factor_sizes: Sequence[int],
    *,
    count: int,
    name: str = "this set",
) -> Tensor | None:
    """The condition of ``count`` images, of what errors call ``name``, as the tensor that it stands for."""
    if isinstance(condition, Tensor):
        return _checked_condition(condition, count)
    check_choice("condition", condition, ("labels", "factors", None))
    found = {"labels": labels, "factors": factors}
    if condition is not None and found[condition] is None:
        raise DataError(f"`condition` {condition!r} needs the {condition} of all images, and {name} has none.")
    if condition == "factors" and factors is not None:
        return factors / (torch.tensor(factor_sizes) - 1).clamp(min=1)
    return labels if condition == "labels" else None


def _checked_condition(condition: Tensor, count: int) -> Tensor:
    """Labels ``(N,)`` as int64, or vectors ``(N, size)`` as float32."""
    is_vector = condition.is_floating_point()
    check_tensor("condition", condition, floating=False)
    check_shape("condition", condition.shape, (count, "size") if is_vector else (count,))
    if is_vector:
        check_finite("condition", condition)
    return condition.float() if is_vector else condition.long()
