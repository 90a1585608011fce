"""Images in batches, with a condition where a model takes one, from whatever holds them.

Arrays, sets of images by number, a ``TensorDataset``, a loader.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from vaelib._checks import check_int, check_shape, check_tensor, check_unit_range, shown
from vaelib.functional.draws import permutation

IMAGE_KEYS = ("image", "images", "pixel_values", "img", "x")
"""Names under which batches that are dicts may hold their images."""
CONDITION_KEYS = ("condition", "label", "labels")
"""Names under which batches that are dicts may hold the condition."""


class Batch(NamedTuple):
    """Images, and what a model is given beside them."""

    x: Tensor
    """float32 ``(B, C, H, W)`` in [0, 1]."""
    condition: Tensor | None = None
    """One row per image: labels, int64 ``(B,)``, or vectors, float32 ``(B, size)``."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        overlaps = device.type != "cpu"  # a copy to the CPU that is not waited for may be read too early
        condition = None if self.condition is None else self.condition.to(device, non_blocking=overlaps)
        return Batch(self.x.to(device, non_blocking=overlaps), condition)


@runtime_checkable
class ImageSet(Protocol):
    """Images by number: :class:`vaelib.data.ImageDataset` and :class:`vaelib.data.ImageStream`.

    A set whose batches have a condition has an attribute ``condition``, that of all images.
    """

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


class ConditionPart(Protocol):
    """What a model makes of conditions: :class:`vaelib.Labels`, ``Vector``."""

    def check(self, condition: Any) -> Tensor:
        """One row per image, or an error that names the value."""


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
    name: str,
    data: Any,
    batch_size: int,
    device: torch.device,
    *,
    condition: ConditionPart | None = None,
    generator: Generator | None = None,
) -> Iterator[Batch]:
    """One pass over ``data``, which errors call ``name``, in batches on ``device``.

    ``batch_size`` is that of images that come in no batches. For a model that takes a ``condition``, batches without
    one are an error; if None, what a loader yields beside images is ignored.

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
    second of the tuple, or under one of ``CONDITION_KEYS``. 8-bit values of 0 and 1 alone are an error: they may mean
    either range.
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


def check_condition(name: str, data: Any, condition: ConditionPart | None) -> None:
    """Raise ``ValueError`` unless a set of images has a condition exactly where the model takes one, and a fitting one.

    What yields batches is checked with each batch.
    """
    if not isinstance(data, ImageSet):
        return
    found = getattr(data, "condition", None)
    if condition is None:
        if found is not None:
            raise ValueError(
                f"`{name}` must have no condition for a model without one: build the model with"
                " condition=vl.Labels(num_classes) or vl.Vector(size), or open the images without `condition`."
            )
        return
    if found is None:
        raise missing(name, "images alone")
    classes, wanted = getattr(data, "class_names", ()), getattr(condition, "names", None)
    if classes and wanted and tuple(classes) != tuple(wanted):
        raise ValueError(
            f"`{name}` must have the classes of the model, {', '.join(wanted)}, got {', '.join(classes)}: the number of"
            " a class would mean another one."
        )
    checked_rows(name, found, condition, getattr(data, "names", ()))


def missing(name: str, found: str) -> ValueError:
    """The error of images without a condition for a model that takes one."""
    return ValueError(
        f"`{name}` must have a condition for a model that takes one, got {found}: open images by"
        ' vl.data.load(..., condition="labels"), or give a loader of pairs (images, condition) or of dicts with one of'
        f" the keys {', '.join(CONDITION_KEYS)}."
    )


def checked_rows(
    name: str, found: Any, condition: ConditionPart, names: Sequence[str] = (), *, count: int | None = None
) -> Tensor:
    """One row of a condition per image; an error names the first image whose row breaks a rule."""
    try:
        rows = condition.check(found)
    except (TypeError, ValueError) as error:
        for index in range(len(found) if hasattr(found, "__len__") else 0):
            try:
                condition.check(found[index : index + 1])
            except (TypeError, ValueError) as reason:
                image = f"image {index} ({names[index]})" if names else f"image {index}"
                raise type(reason)(f"`{name}`, {image}: {reason}") from error
        raise
    if count is not None and len(rows) != count:
        raise ValueError(f"`{name}` must have one condition per image, got {len(rows)} for {count} images.")
    return rows


def condition_in(name: str, batch: Any, count: int, condition: ConditionPart) -> Tensor:
    """The condition of what a loader yields: the second of a tuple, or under one of ``CONDITION_KEYS`` in a dict."""
    if isinstance(batch, Mapping):
        keys = [key for key in CONDITION_KEYS if key in batch]
        if len(keys) != 1:
            raise missing(name, f"the keys {', '.join(map(str, batch))}")
        found = batch[keys[0]]
    else:
        found = batch[1] if isinstance(batch, list | tuple) and len(batch) > 1 else None
    if found is None:
        raise missing(name, "images alone")
    return checked_rows(name, found, condition, count=count)
