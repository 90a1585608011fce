"""Class labels: numbers, one-hot rows or names to int64 per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaelib._checks import check_shape

__all__ = ["are_attributes", "class_labels", "class_names_of", "is_text"]


def class_labels(labels: Any, count: int, class_names: Sequence[str] = ()) -> Tensor:
    """Class numbers, int64 ``(count,)``, on the labels' device.

    Args:
        labels: Whole numbers >= 0 of any dtype, ``(N,)`` or ``(N, 1)``; one-hot rows ``(N, K)``; or names.
        count: Number of images N.
        class_names: Names of the classes: needed for labels that are names, else an upper limit for the numbers.
    """
    values = _array(labels)
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
    return torch.from_numpy(numbers).to(labels.device if isinstance(labels, Tensor) else "cpu")


def class_names_of(*labels: Any) -> tuple[str, ...]:
    """The sorted names in several arrays of names; none if they hold numbers."""
    arrays = [array for values in labels if is_text(array := _array(values))]
    return tuple(sorted({name for array in arrays for name in _strings(array)}))


def is_text(values: Any) -> bool:
    """Whether an array holds names rather than numbers."""
    array = _array(values)
    is_object = array.dtype.kind == "O" and array.size > 0
    return array.dtype.kind in "SUT" or (is_object and all(isinstance(value, str) for value in array.flat))


def are_attributes(values: Any, count: int) -> bool:
    """Whether ``count`` rows ``(N, K)`` are finite numbers and not all one-hot: several attributes, not one class."""
    array = _array(values)
    if array.ndim != 2 or len(array) != count or array.shape[1] < 2 or array.dtype.kind not in "buif":
        return False
    is_one_hot = ((array == 0) | (array == 1)).all() and (array.sum(1) == 1).all()
    return bool(np.isfinite(array).all() and not is_one_hot)


def _array(labels: Any) -> np.ndarray:
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
