"""A batch of images, a set of images by number, and its batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from vaelib._checks import check_int
from vaelib.functional.draws import permutation

__all__ = ["Batch", "ImageSet", "even_parts", "one_pass"]


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
