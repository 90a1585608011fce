"""Single images of a stream, read in worker processes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vaelib._checks import DataError, check_unit_range, shown
from vaelib.data.decode import UNREADABLE
from vaelib.data.derive import fit_to_size
from vaelib.data.listing import Listing

__all__ = ["Reader", "Transform", "collated", "outlive_sigterm"]

_IN_A_ROW = 100  # unreadable images that end a training: a disk is gone, rather than a file damaged
Transform = Callable[[Tensor], Tensor]
Read = tuple[Tensor, int | Tensor, list[str], DataError | None]


class Reader(Dataset[Read]):
    """Images by number with what could not be read, which workers cannot report themselves.

    Args:
        listing: Where the images are.
        image_shape: ``(C, H, W)``.
        transform: See :func:`vaelib.data.stream`.
        seed: Of the transform's draws.
    """

    def __init__(
        self, listing: Listing, image_shape: tuple[int, int, int], transform: Transform | None, seed: int
    ) -> None:
        self._listing, self._shape, self._transform, self._seed = listing, image_shape, transform, seed

    def __getitem__(self, index: int) -> Read:
        try:
            return *self.image_at(index), None
        except DataError as error:  # raised in a worker, its message would be a traceback
            return torch.empty(0), index, [], error

    def image_at(self, index: int) -> tuple[Tensor, int, list[str]]:
        """An image, its number, and what is unreadable: the next one that is readable takes its place."""
        channels, height, width = self._shape
        unreadable: list[str] = []
        for candidate in range(index, index + _IN_A_ROW):
            place = candidate % len(self._listing)
            try:
                image = self._listing.decode(place, None if self._transform else (height, width)).image
                break
            except UNREADABLE as error:
                unreadable.append(f"{self._listing.name(place)}: {error}")
        else:
            raise DataError(f"{_IN_A_ROW} images in a row cannot be read: {'; '.join(unreadable[:3])}; ...")
        if self._transform is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self._seed + index)
                image = _checked(self._transform(image), channels)
        return fit_to_size(image, (height, width)), place, unreadable


def _checked(image: Any, channels: int) -> Tensor:
    """What a transform has returned, if it is an image."""
    rule = f"`transform` must return images ({channels}, H, W), uint8 or floating point in [0, 1]"
    if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] != channels:
        raise DataError(f"{rule}, got {shown(image)}.")
    if image.dtype != torch.uint8:
        try:
            check_unit_range("image", image)
        except ValueError as error:
            raise DataError(f"{rule}: {error}") from error
    return image


def outlive_sigterm(worker: int) -> None:
    """A signal to the whole process group is the training's, which ends its workers after the checkpoint."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def collated(items: Sequence[Read]) -> Read:
    """One of several, or the first error among them."""
    error = next((error for *_, error in items if error is not None), None)
    images = torch.empty(0) if error else torch.stack([image for image, *_ in items])
    places = torch.tensor([place for _, place, *_ in items])
    return images, places, [name for _, _, unreadable, _ in items for name in unreadable], error
