"""The rules for what an :class:`vaelib.data.ImageDataset` is made of: images, labels, factors, condition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaelib._checks import (
    DataError,
    check_choice,
    check_finite,
    check_has_values,
    check_shape,
    check_tensor,
    check_type,
    check_unit_range,
)
from vaelib.data.folders import warn
from vaelib.data.guard import check_plain_tensor


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


def condition_of(condition: str | Tensor | None, images: Any, name: str = "this set") -> Tensor | None:
    """The condition of an ``ImageDataset``, which errors call ``name``: labels ``(N,)`` or vectors ``(N, size)``."""
    if not isinstance(condition, Tensor):
        check_choice("condition", condition, ("labels", "factors", None))
        if condition is None:
            return None
        found = getattr(images, condition)
        if found is None:
            raise DataError(f"`condition` {condition!r} needs the {condition} of all images, and {name} has none.")
        return found if condition == "labels" else found / (torch.tensor(images.factor_sizes) - 1).clamp(min=1)
    is_vector = condition.is_floating_point()
    check_tensor("condition", condition, floating=False)
    check_shape("condition", condition.shape, (len(images), "size") if is_vector else (len(images),))
    if is_vector:
        check_finite("condition", condition)
    return condition.float() if is_vector else condition.long()


def class_labels(labels: Any, count: int, class_names: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
    """Class numbers, int64 ``(count,)``, on the labels' device, and the names of the classes.

    Labels are whole numbers >= 0 of any dtype, ``(N,)`` or ``(N, 1)``; one-hot rows ``(N, K)``; or names.
    ``class_names`` are those that labels may be; of numbers, an upper limit.
    """
    if isinstance(labels, Tensor):
        check_tensor("labels", labels, floating=False)
        check_has_values("labels", labels)
    elif isinstance(labels, bytes | bytearray | memoryview):
        raise TypeError(f"`labels` must be class numbers or names, got {type(labels).__name__}.")
    class_names = class_names or class_names_of(labels)
    values = _as_array(labels)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if is_text(values):
        check_shape("labels", values.shape, (count,))
        numbers = _numbers_of_names(values, class_names)
    else:
        if values.dtype.kind not in "buif":
            raise TypeError(f"`labels` must be class numbers or names, got dtype {values.dtype}.")
        if values.ndim == 2:
            check_shape("labels", values.shape, (count, "K"))
            values = _from_one_hot(values)
        check_shape("labels", values.shape, (count,))
        numbers = _whole_numbers(values)
    if class_names and count and numbers.max() >= len(class_names):
        raise ValueError(f"`labels` must be below {len(class_names)}, the number of class names, got {numbers.max()}.")
    return torch.from_numpy(numbers).to(labels.device if isinstance(labels, Tensor) else "cpu"), class_names


def class_names_of(*labels: Any) -> tuple[str, ...]:
    """The sorted names in several arrays of names; none if they hold numbers."""
    arrays = [array for values in labels if is_text(array := _as_array(values))]
    return tuple(sorted({name for array in arrays for name in _strings(array)}))


def is_text(values: Any) -> bool:
    """Whether an array holds names rather than numbers."""
    array = _as_array(values)
    is_object = array.dtype.kind == "O" and array.size > 0
    return array.dtype.kind in "SUT" or (is_object and all(isinstance(value, str) for value in array.flat))


def are_attributes(values: Any, count: int) -> bool:
    """Whether ``count`` rows ``(N, K)`` are finite numbers and not all one-hot: several attributes, not one class."""
    array = _as_array(values)
    if array.ndim != 2 or len(array) != count or array.shape[1] < 2 or array.dtype.kind not in "buif":
        return False
    is_one_hot = ((array == 0) | (array == 1)).all() and (array.sum(1) == 1).all()
    return bool(np.isfinite(array).all() and not is_one_hot)


def _as_array(labels: Any) -> np.ndarray:
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
        labels = labels.double() if labels.is_floating_point() else labels
    if isinstance(labels, np.ma.MaskedArray) and np.ma.is_masked(labels):
        raise ValueError(
            "`labels` must have a value for every image, got a masked array: fill it or leave these images out."
        )
    try:
        return np.asarray(labels)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"`labels` must be one class an image: {error}") from error


def _strings(values: np.ndarray) -> list[str]:
    return [v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in values.ravel().tolist()]


def _numbers_of_names(values: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    number_of = {name: number for number, name in enumerate(class_names)}
    names = _strings(values)
    foreign = next((name for name in names if name not in number_of), None)
    if foreign is not None:
        raise ValueError(f"`labels` must be among the class names {', '.join(class_names)}, got {foreign!r}.")
    return np.array([number_of[name] for name in names], dtype=np.int64)


def _from_one_hot(rows: np.ndarray) -> np.ndarray:
    is_one_hot = ((rows == 0) | (rows == 1)).all(1) & (rows.sum(1) == 1)
    if not is_one_hot.all():
        first = int(np.argmin(is_one_hot))
        raise ValueError(
            f"`labels` of shape {rows.shape} must be one-hot, one 1 in each row, got row {first}: {rows[first]}."
        )
    return rows.argmax(1)


def _whole_numbers(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        values = values.astype(np.float64)  # 2**53 is beyond float16
        is_whole = np.isfinite(values) & (values == np.floor(values))
        if not is_whole.all():
            first = int(np.argmin(is_whole))
            raise ValueError(f"`labels` must be whole numbers, got {values[first]:g} at {first}.")
    if len(values) and (values.min() < 0 or values.max() > 2**53):
        extreme = values.min() if values.min() < 0 else values.max()
        raise ValueError(f"`labels` must be class numbers from 0, got {extreme}.")
    return values.astype(np.int64)
