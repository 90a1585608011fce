"""One data set made from another, or from several."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from vaelib._checks import DataError, check_choice, check_int_tuple
from vaelib.data.checks import condition_of
from vaelib.data.dataset import ImageDataset, changed, to_float
from vaelib.data.guard import check_memory

__all__ = ["binarized", "concatenated", "conditioned", "fit_to_size", "height_and_width", "holdout", "resized"]


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """One number for a square, or both."""
    pair = (image_size, image_size) if isinstance(image_size, Integral) else image_size
    height, width = check_int_tuple("image_size", pair, length=2)
    return height, width


def fit_to_size(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop ``(..., C, H, W)`` around the centre to the aspect ratio of ``size``, then resize bilinearly."""
    from torchvision.transforms.v2 import functional as tv

    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    scale = min(height / size[0], width / size[1])
    crop = [max(1, round(size[0] * scale)), max(1, round(size[1] * scale))]
    return tv.resize(tv.center_crop(images, crop), list(size), antialias=True)


def resized(dataset: ImageDataset, size: tuple[int, int]) -> ImageDataset:
    """All images cropped and resized to ``(height, width)``."""
    if dataset.image_shape[1:] == size:
        return dataset
    count, channels = dataset.images.shape[:2]
    taken = count * channels * math.prod(size) * dataset.images.element_size()
    check_memory(f"{count} images of {size[0]} x {size[1]}", taken, "use a smaller `image_size`")
    images = dataset.images.new_empty((count, channels, *size))
    _fill(images, dataset.images, lambda piece: fit_to_size(piece, size))
    return changed(dataset, images=images.clamp_(0, 1) if images.is_floating_point() else images)


def binarized(dataset: ImageDataset, how: str | None, *, seed: int = 0) -> ImageDataset:
    """Black and white: ``"static"``, one fixed draw of ``seed``; ``"dynamic"``, per use; None, as it is."""
    check_choice("binarize", how, ("static", "dynamic", None))
    if how != "static":
        return changed(dataset, dynamic=True) if how == "dynamic" else dataset
    images = torch.empty(dataset.images.shape, dtype=torch.uint8)
    _fill(images, dataset.images, lambda piece: _drawn_once(piece, seed))
    return changed(dataset, images=images)


def conditioned(dataset: ImageDataset, condition: str | None, name: str) -> ImageDataset:
    """The same set, which errors call ``name``, with its labels or factors as the condition."""
    labels, factors, sizes = dataset.labels, dataset.factors, dataset.factor_sizes
    found = condition_of(condition, labels, factors, sizes, count=len(dataset), name=name)
    return changed(dataset, condition=found)


def _fill(result: Tensor, images: Tensor, convert: Callable[[Tensor], Tensor]) -> None:
    """Write what ``convert`` makes of ``images``, a few at a time: what it makes in between would not fit for all."""
    for piece, converted in zip(images.split(256), result.split(256), strict=True):
        converted.copy_(convert(piece))


def _drawn_once(images: Tensor, seed: int) -> Tensor:
    """Black or white pixels, uint8, with the images' values as probabilities.

    The noise of an image follows from its own values and the seed: an image has the same pixels in every split and
    subset, and no two different images share noise.
    """
    grey = to_float(images, False, None).cpu().numpy()
    noise = (hashlib.shake_128(b"%d " % seed + image.tobytes()).digest(4 * image.size) for image in grey)
    uniform = np.frombuffer(b"".join(noise), "<u4").reshape(grey.shape)
    return torch.from_numpy(uniform < grey.astype(np.float64) * 2**32).to(torch.uint8) * 255


def holdout(count: int, split: str) -> Tensor:
    """Indices, rising, of the test tenth (at least one image) or the training rest of a fixed random order."""
    if count < 2:
        raise DataError(f"A train/test split needs at least 2 images, got {count}; use split='all'.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    num_test = max(1, count // 10)
    return (order[:num_test] if split == "test" else order[num_test:]).sort().values


def concatenated(parts: Sequence[ImageDataset]) -> ImageDataset:
    """Several sets of one kind and with the same class names, in order; their values were checked as each was made."""
    if len(parts) == 1:
        return parts[0]
    shapes = list(dict.fromkeys(part.image_shape for part in parts))
    if len(shapes) > 1:
        raise DataError(f"All splits must have images of one shape (C, H, W), got {' and '.join(map(str, shapes))}.")
    is_mixed = len({part.images.dtype for part in parts}) > 1

    def joined(field: str) -> Tensor | None:
        values = [getattr(part, field) for part in parts]
        return None if any(value is None for value in values) else torch.cat(values)

    return changed(
        parts[0],
        images=torch.cat([to_float(part.images, False, None) if is_mixed else part.images for part in parts]),
        labels=joined("labels"),
        factors=joined("factors"),
        condition=joined("condition"),
        num_classes=max(part.num_classes for part in parts),
        factor_sizes=tuple(map(max, *(part.factor_sizes for part in parts))),
        names=tuple(name for part in parts for name in part.names) if all(part.names for part in parts) else (),
    )
