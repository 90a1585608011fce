"""Images that stay on disk: sets of any size, read by worker processes a few batches ahead of the training.

A folder is listed and a tar shard's index is read once, so that any image can be had by its number. Order, position
and resuming are then those of a set in memory, and the memory needed is that of a few batches.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from vaelib._checks import (
    DataError,
    check_bool,
    check_callable,
    check_choice,
    check_int,
    check_path,
    check_unit_range,
    shown,
)
from vaelib._images import Batch, one_pass
from vaelib.data.dataset import changed, fit_to_size, height_and_width, paired, prepared
from vaelib.data.decode import UNREADABLE
from vaelib.data.folders import warn
from vaelib.data.guard import check_memory
from vaelib.data.listing import Listing, list_images
from vaelib.data.ranges import check_value_range
from vaelib.data.sources import SPLITS

_IN_A_ROW = 100  # unreadable images that end a training: a disk is gone, rather than a file damaged
Transform = Callable[[Tensor], Tensor]
Read = tuple[Tensor, int | Tensor, list[str], DataError | None]


def stream(
    path: str | Path,
    split: str = "train",
    *,
    image_size: int | Sequence[int] | None = None,
    binarize: str | None = None,
    flip: bool = False,
    value_range: Sequence[float] | None = None,
    frames: str | None = None,
    transform: Transform | None = None,
    condition: str | None = None,
    workers: int = 2,
) -> ImageStream:
    """Open a folder of images or WebDataset ``.tar`` shards without reading them into memory.

    The images, their order, splits, labels, channels and sizes are those of :func:`vaelib.data.load`. Opening reads the
    header and the end of every file: what is unreadable, empty or cut off is skipped and reported then. Where an image
    turns out to be damaged only when it is decoded, the next one takes its place, with a warning that names it: the
    number of images and of steps stays what it is, and a resumed run sees the same images.

    Args:
        path: A folder of images of any depth, a ``.tar`` shard, or a folder of them.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"all"``; see :func:`vaelib.data.load`.
        image_size: Height and width, one number for a square; None if all images have one size.
        binarize: ``"dynamic"`` draws black or white pixels again each time an image is used; None keeps grey values.
        flip: Mirror images left to right at random, on the training device.
        value_range: See :func:`vaelib.data.load`.
        frames: See :func:`vaelib.data.load`.
        transform: Such as one of ``torchvision.transforms.v2``: a uint8 ``(C, H, W)`` image of the file's own size to
            another, uint8 or floating point in [0, 1]; runs in the workers. Its draws depend on the seed, the epoch and
            the image alone.
        condition: ``"labels"`` to yield the label of each image as its condition; None for images alone.
        workers: Processes that read and decode; 0 reads in the training process.

    Returns:
        An :class:`ImageStream`, which ``Trainer.fit`` and the evaluations take like any other set.

    Raises:
        FileNotFoundError: If there is no such path.
        DataError: A ``ValueError``: if it holds no readable image or not the split, if a shard is damaged, or if images
            differ in size and ``image_size`` is None.
        ValueError: If an argument is out of its range.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     Image.new("L", (40, 30), 200).save(f"{directory}/wide.png")
        ...     images = stream(directory, "all", image_size=16, workers=0)
        ...     len(images), images.image_shape, images[0].dtype
        (1, (1, 16, 16), torch.float32)
    """
    check_path(path)
    path = Path(path)
    check_choice("split", split, (*SPLITS, "all"))
    check_bool("flip", flip)
    if transform is not None:
        check_callable("transform", transform)
    check_choice("binarize", binarize, ("dynamic", None))
    check_choice("frames", frames, ("first", "all", None))
    check_choice("condition", condition, ("labels", None))
    check_int("workers", workers, minimum=0)
    if not path.exists():
        raise FileNotFoundError(
            f"`path` must be a folder of images, or of .tar shards, got {str(path)!r}. Named sets are read by `load`."
        )
    if not path.is_dir() and not (path.suffix.lower() == ".tar" and path.is_file()):
        raise ValueError(
            f"`path` must be a folder of images, or of .tar shards, or one shard, got {str(path)!r}. Arrays are read by"
            " `load`."
        )
    size = None if image_size is None else height_and_width(image_size)
    levels, labelled = check_value_range(value_range), condition == "labels"
    listing = list_images(path, split, value_range=levels, frames=frames, labelled=labelled)
    if labelled and listing.labels is None:
        raise DataError(f"`condition` 'labels' needs the labels of all images, and {path} has none.")
    size = size or listing.common_size()
    check_memory("One image as float32", 4 * listing.channels * math.prod(size), "use a smaller `image_size`")
    return ImageStream(
        listing,
        size,
        dynamic=binarize == "dynamic",
        flip=flip,
        transform=transform,
        labelled=labelled,
        workers=workers,
    )


class ImageStream(Dataset[Any]):
    """Images by their number, read when they are needed; made by :func:`stream`.

    Args:
        listing: List of the images.
        size: Height and width.
        dynamic: See :func:`stream`, as for the rest.
        flip: See :func:`stream`.
        transform: See :func:`stream`.
        labelled: Whether the labels are the condition.
        workers: See :func:`stream`.

    Attributes:
        files: Paths of the image files, or of the shards.
        places: ``(N,)`` records: number of the file, offset in it, bytes from there or -1 for all, and frame.
        labels: Class of each image, ``(N,)`` int64, or None.
        class_names: Names of the classes, by their number.
        num_classes: Number of classes in all splits.
        condition: Given to a model in addition to each image: the labels, if they were asked for.
    """

    def __init__(
        self,
        listing: Listing,
        size: tuple[int, int],
        *,
        dynamic: bool = False,
        flip: bool = False,
        transform: Transform | None = None,
        labelled: bool = False,
        workers: int = 2,
    ) -> None:
        self.listing, self.image_shape = listing, (listing.channels, *size)
        self.files, self.class_names, self.num_classes = listing.files, listing.class_names, listing.num_classes
        self.places, self.labels = listing.places, listing.labels
        self.condition = listing.labels if labelled else None
        self.dynamic, self.flip, self.transform, self.workers = dynamic, flip, transform, workers
        self.device = torch.device("cpu")
        self._reported: set[str] = set()

    def __len__(self) -> int:
        return len(self.listing)

    def __repr__(self) -> str:
        classes = f", {len(self.class_names)} classes" if self.class_names else ""
        return f"ImageStream({len(self)} images in {len(self.files)} files, {self.image_shape}{classes})"

    def __getitem__(self, index: int) -> Tensor | Batch:
        """One image as it is used, float32 ``(C, H, W)`` in [0, 1], as :class:`ImageDataset` gives it."""
        image, place, unreadable = self._reader(0).image_at(range(len(self))[index])
        self._report(unreadable)
        condition = None if self.condition is None else self.condition[place]
        return paired(prepared(image, self.dynamic, self.flip, None), condition)

    def fetch(
        self, parts: Iterable[Tensor], device: torch.device, *, seed: int = 0, generator: Generator | None = None
    ) -> Iterator[Batch]:
        """One batch on ``device`` for each of the ``parts``, which are indices; ``seed`` is that of the transform."""
        loader: DataLoader[Any] = DataLoader(
            self._reader(seed),
            batch_sampler=(indices.tolist() for indices in parts),
            num_workers=self.workers,
            collate_fn=collated,
            worker_init_fn=outlive_sigterm,
            pin_memory=torch.device(device).type == "cuda",
            generator=torch.Generator().manual_seed(seed),
        )
        for images, places, unreadable, error in loader:
            self._report(unreadable)
            if error is not None:
                raise error
            condition = None if self.condition is None else self.condition[places]
            batch = Batch(images, condition).to(torch.device(device))
            yield batch._replace(x=prepared(batch.x, self.dynamic, self.flip, generator))

    def batches(self, batch_size: int, *, shuffle: bool = False, generator: Generator | None = None) -> Iterator[Any]:
        """One pass in batches whose sizes differ by at most one, as :meth:`ImageDataset.batches`."""
        for batch in one_pass(self, batch_size, self.device, shuffle=shuffle, generator=generator):
            yield paired(*batch)

    def subset(self, indices: Tensor | slice) -> ImageStream:
        """The stream of the images at ``indices``, with their labels."""
        at = indices.cpu() if isinstance(indices, Tensor) else indices
        at = torch.arange(len(self))[at]  # by torch, since numpy takes a tensor of one index for a number
        listing = self.listing.subset(at.numpy())
        condition = None if self.condition is None else listing.labels
        return self.replace(listing=listing, places=listing.places, labels=listing.labels, condition=condition)

    def to(self, device: torch.device | str) -> ImageStream:
        """The same stream with its batches on ``device``."""
        return self.replace(device=torch.device(device))

    def replace(self, **attributes: object) -> ImageStream:
        """The same stream with other attributes."""
        return changed(self, **attributes)

    def _reader(self, seed: int) -> Reader:
        return Reader(self.listing, self.image_shape, self.transform, seed)

    def _report(self, unreadable: Sequence[str]) -> None:
        for image in unreadable:
            if image not in self._reported:
                self._reported.add(image)
                warn(f"An image cannot be read, and the next one takes its place: {image}.")


class Reader(Dataset[Read]):
    """Images by number with what could not be read, which workers cannot report themselves.

    ``seed`` is that of the transform's draws.
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
