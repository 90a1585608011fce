"""Validation images for a set that has none of its own."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from vaelib._checks import DataError, check_float
from vaelib.data.dataset import ImageDataset
from vaelib.data.stream import ImageStream

__all__ = ["hold_out"]

Images = TypeVar("Images", ImageDataset, ImageStream)


def hold_out(images: Images, fraction: float = 0.1) -> tuple[Images, Images]:
    """Split training images in two: those to train on, and a fixed random part to validate on.

    Epochs and settings that are chosen by test images look better on them than they are; choose by the part that is
    held out, and look at test images once. The part is the same each time, and its images are not flipped at random.

    Args:
        images: Training images, in memory or streamed, at least 2.
        fraction: Share that is held out, in (0, 1); at least one image is, and at least one remains.

    Returns:
        The images to train on and those held out, each in their order, with their labels.

    Raises:
        TypeError: If ``images`` is neither an :class:`ImageDataset` nor an :class:`ImageStream`.
        ValueError: If ``fraction`` is out of its range.
        DataError: A ``ValueError``: if there are fewer than 2 images.

    Examples:
        >>> import vaelib as vl
        >>> train, val = hold_out(vl.data.shapes(500, image_size=8))
        >>> len(train), len(val)
        (450, 50)
    """
    if not isinstance(images, ImageDataset | ImageStream):
        raise TypeError(f"`images` must be an ImageDataset or an ImageStream, got {type(images).__name__}.")
    if check_float("fraction", fraction, 0.0, 1.0, above=True) == 1.0:
        raise ValueError("`fraction` must be > 0 and < 1, got 1.")
    count = len(images)
    if count < 2:
        raise DataError(f"`images` must be at least 2, to train on one and validate on one, got {count}.")
    held = min(max(1, round(fraction * count)), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    val: Any = images.subset(order[:held].sort().values)
    val.flip = False
    return images.subset(order[held:].sort().values), val
