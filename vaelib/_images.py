"""Images in batches, from whatever holds them: arrays, vaelib's own sets, a ``TensorDataset``, a loader."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from vaelib._checks import check_int, check_shape, check_tensor, check_unit_range, shown
from vaelib.functional.draws import permutation

__all__ = ["Batch", "ImageSet", "as_batch", "as_batches", "even_parts", "one_pass", "opened"]

IMAGE_KEYS = ("image", "images", "pixel_values", "img", "x")
"""Names under which batches that are dicts may hold their images."""


class Batch(NamedTuple):
    """Images, and what a model is given beside them."""

    x: Tensor
    """float32 ``(B, C, H, W)`` in [0, 1]."""
    condition: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        overlaps = device.type != "cpu"  # a copy to the CPU that is not waited for may be read too early
        condition = None if self.condition is None else self.condition.to(device, non_blocking=overlaps)
        return Batch(self.x.to(device, non_blocking=overlaps), condition)


@runtime_checkable
class ImageSet(Protocol):
    """Images by number: :class:`vaelib.data.ImageDataset` and :class:`vaelib.data.ImageStream`."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``(C, H, W)``."""

    def __len__(self) -> int:
        """Number of images."""

    def subset(self, indices: Tensor) -> ImageSet:
        """The images at ``indices``."""

    def fetch(
        self, parts: Iterable[Tensor], device: torch.device, *, seed: int = 0, generator: Generator | None = None
    ) -> Iterator[Batch]:
        """One batch on ``device`` for each of the ``parts``, which are indices.

        ``seed`` is that of transforms, ``generator`` that of dynamic binarisation and flips; if None, these draw from
        the global generator of the device.
        """


def even_parts(count: int, batch_size: int) -> list[tuple[int, int]]:
    """The first and the last-but-one index of every batch, sizes at most ``batch_size`` and alike but for one."""
    parts = -(-count // batch_size)
    return [(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def one_pass(
    images: ImageSet,
    batch_size: int,
    device: torch.device,
    *,
    shuffle: bool = False,
    generator: Generator | None = None,
) -> Iterator[Batch]:
    """All images of a set once, in batches on ``device`` whose sizes differ by at most one."""
    check_int("batch_size", batch_size)
    order = permutation(len(images), device, generator) if shuffle else torch.arange(len(images))
    parts = (order[first:last] for first, last in even_parts(len(images), batch_size))
    yield from images.fetch(parts, device, generator=generator)


def as_batches(
    name: str, data: Any, batch_size: int, device: torch.device, *, generator: Generator | None = None
) -> Iterator[Batch]:
    """One pass over ``data``, which errors call ``name``, in batches on ``device``.

    Raises:
        TypeError: If something else is yielded; see :func:`as_batch`.
    """
    check_int("batch_size", batch_size)
    data = opened(name, data)
    if isinstance(data, ImageSet):
        yield from one_pass(data, batch_size, device, generator=generator)
        return
    for batch in data.split(batch_size) if isinstance(data, Tensor) else data:
        yield as_batch(name, batch).to(device)


def opened(name: str, data: Any) -> Any:
    """What numpy arrays, ``TensorDataset`` and ``Subset`` hold: a tensor, or a set of vaelib's; all else as it is.

    Raises:
        TypeError: If ``data`` is another ``Dataset`` of single images, an array of another dtype, or what cannot hold
            images: it cannot be iterated, or is text, a mapping or a scalar.
    """
    if isinstance(data, ImageSet):  # which has no iterator of its own
        return data
    if isinstance(data, TensorDataset):
        data = data.tensors[0]
    if isinstance(data, np.ndarray):
        data = _tensor(name, data)
    if isinstance(data, Subset):
        whole, indices = opened(name, data.dataset), torch.as_tensor(data.indices, dtype=torch.long)
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


def as_batch(name: str, batch: Any) -> Batch:
    """Floating-point images of what a loader yields: alone, first of a tuple, or under one of ``IMAGE_KEYS``.

    8-bit images are divided by 255; those of numpy become float32.

    Raises:
        TypeError: If there are no images, or of another dtype.
        ValueError: If values leave [0, 1], or 8-bit values are 0 and 1 alone, which may mean either range.
    """
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
        return Batch(images.float().div_(255))
    check_unit_range(name, images)  # an ImageDataset has been checked when it was made
    check_tensor(name, images)
    return Batch(images)


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
