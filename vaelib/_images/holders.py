"""Batches from whatever holds images: arrays, sets, a ``TensorDataset``, a loader."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from vaelib._checks import check_int, check_shape, check_tensor, check_unit_range, shown
from vaelib._images.batches import Batch, ImageSet, one_pass
from vaelib._images.pairs import ConditionPart, check_condition, checked_rows, condition_in, missing

__all__ = ["as_batch", "as_batches", "opened"]

IMAGE_KEYS = ("image", "images", "pixel_values", "img", "x")
"""Names under which batches that are dicts may hold their images."""


def as_batches(
    name: str,
    data: Any,
    batch_size: int,
    device: torch.device,
    *,
    condition: ConditionPart | None = None,
    generator: Generator | None = None,
) -> Iterator[Batch]:
    """One pass over ``data``, which errors call ``name``, in batches on ``device``.

    Args:
        name: What errors call the data.
        data: Whatever holds images.
        batch_size: Of images that come in no batches.
        device: Where the batches go.
        condition: The part of a model that takes one: batches without a condition are an error then. If None, what a
            loader yields beside images is ignored.
        generator: Of dynamic binarisation and flips.

    Raises:
        TypeError: If something else is yielded; see :func:`as_batch`.
        ValueError: If a condition is missing, or breaks a rule.
    """
    check_int("batch_size", batch_size)
    data = opened(name, data, condition)
    if isinstance(data, ImageSet):
        yield from one_pass(data, batch_size, device, generator=generator)
    elif isinstance(data, Batch) and data.condition is not None:
        for x, rows in zip(data.x.split(batch_size), data.condition.split(batch_size), strict=True):
            yield Batch(as_batch(name, x).x, rows).to(device)
    else:
        for batch in data.split(batch_size) if isinstance(data, Tensor) else data:
            yield as_batch(name, batch, condition).to(device)


def opened(name: str, data: Any, condition: ConditionPart | None = None) -> Any:
    """What numpy arrays, ``TensorDataset`` and ``Subset`` hold: a tensor, or a set of vaelib's; all else as it is.

    For a model that takes a ``condition``, a ``TensorDataset`` of images and conditions is a :class:`Batch` of all.

    Raises:
        TypeError: If ``data`` is another ``Dataset`` of single images, an array of another dtype, or what cannot hold
            images: it cannot be iterated, or is text, a mapping or a scalar.
        ValueError: If there is no condition for a model that takes one, or a row of it breaks a rule.
    """
    data = _whole(name, data, with_condition=condition is not None)
    if condition is None:
        return data
    if isinstance(data, Tensor):
        raise missing(name, "images alone")
    if isinstance(data, Batch):
        return Batch(data.x, checked_rows(name, data.condition, condition, count=len(data.x)))
    check_condition(name, data, condition)
    return data


def _whole(name: str, data: Any, *, with_condition: bool) -> Any:
    if isinstance(data, ImageSet):  # which has no iterator of its own
        return data
    if isinstance(data, TensorDataset):
        data = Batch(*data.tensors[:2])
    if isinstance(data, Batch):
        if with_condition and data.condition is not None:
            return data
        data = data.x
    if isinstance(data, np.ndarray):
        data = _tensor(name, data)
    if isinstance(data, Subset):
        whole = _whole(name, data.dataset, with_condition=with_condition)
        indices = torch.as_tensor(data.indices, dtype=torch.long)
        if isinstance(whole, Batch):
            return Batch(*(values[indices] for values in whole if values is not None))
        return whole[indices] if isinstance(whole, Tensor) else whole.subset(indices)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(
            f"`{name}` must be images or batches of images, got {type(data).__name__}, a Dataset of single images:"
            " give torch.utils.data.DataLoader(dataset, batch_size=...)."
        )
    is_foreign = isinstance(data, str | bytes | bytearray | memoryview | Mapping | type)
    if is_foreign or getattr(data, "ndim", 1) == 0 or not isinstance(data, Iterable):
        raise TypeError(f"`{name}` must be images, an ImageDataset, or batches of images, got {shown(data)}.")
    if isinstance(data, Tensor):
        check_tensor(name, data, floating=False)
        _check_8_bit(name, data)
    return data


def as_batch(name: str, batch: Any, condition: ConditionPart | None = None) -> Batch:
    """Floating-point images of what a loader yields: alone, first of a tuple, or under one of ``IMAGE_KEYS``.

    8-bit images are divided by 255; those of numpy become float32. For a model that takes a ``condition``, it is the
    second of the tuple, or under one of ``CONDITION_KEYS``.

    Raises:
        TypeError: If there are no images, or of another dtype.
        ValueError: If values leave [0, 1], or 8-bit values are 0 and 1 alone, which may mean either range; or if a
            condition is missing or breaks a rule.
    """
    images = _images_in(name, batch)
    return Batch(images, None if condition is None else condition_in(name, batch, len(images), condition))


def _images_in(name: str, batch: Any) -> Tensor:
    images = batch
    if isinstance(batch, Mapping):
        keys = [key for key in IMAGE_KEYS if key in batch]
        if len(keys) != 1:
            raise TypeError(
                f"`{name}` must be images, an ImageDataset, or batches with one of the keys {', '.join(IMAGE_KEYS)};"
                f" got {type(batch).__name__} with the keys {', '.join(map(str, batch)) or 'none'}."
            )
        images = batch[keys[0]]
    elif isinstance(batch, list | tuple) and batch:
        images = batch[0]
    if isinstance(images, np.ndarray):
        images = _tensor(name, images)
    if not isinstance(images, Tensor):
        raise TypeError(
            f"`{name}` must be images, an ImageDataset, or yield batches of images, alone, first of a tuple or in a"
            f" dict; got {type(images).__name__} in {type(batch).__name__}."
        )
    check_tensor(name, images, floating=False)
    if images.dtype == torch.uint8:
        _check_8_bit(name, images)
        return images.float().div_(255)
    check_unit_range(name, images)  # an ImageDataset has been checked when it was made
    check_tensor(name, images)
    return images


def _tensor(name: str, images: np.ndarray) -> Tensor:
    """8-bit as it is, floats as float32; shares the array's memory where torch can."""
    if isinstance(images, np.ma.MaskedArray) or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
        kind = "a masked array" if isinstance(images, np.ma.MaskedArray) else f"dtype {images.dtype}"
        raise TypeError(f"`{name}` must be uint8, or floating point in [0, 1], got {kind}.")
    check_shape(name, images.shape, ("N", "C", "H", "W"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing here writes to it
        return torch.from_numpy(np.ascontiguousarray(images, np.uint8 if images.dtype == np.uint8 else np.float32))


def _check_8_bit(name: str, images: Tensor) -> None:
    if images.dtype == torch.uint8 and images.numel() and int(images.max()) == 1:
        raise ValueError(
            f"`{name}` must be clear about its range, got 8-bit values of 0 and 1: give floats, or 0 and 255."
        )
