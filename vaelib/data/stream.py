"""Pictures that stay on disk: sets of any size, read by worker processes a few batches ahead of the training.

A folder is listed and a tar shard's index is read once, so that any picture can be had by its number. Order, position
and resuming are then those of a set in memory, and the memory needed is that of a few batches.
"""

from __future__ import annotations

import copy
import io
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vaelib._checks import DataError, check_choice, check_int
from vaelib.data.dataset import even_parts, prepared
from vaelib.data.decode import PICTURE_SUFFIXES, UNREADABLE, decode_picture, with_channels
from vaelib.data.derive import fit_to_size, height_and_width, holdout
from vaelib.data.listing import SPLITS, canonical_split, shards_below
from vaelib.data.pictures import folder_files, shard_files

__all__ = ["ImageStream", "stream"]

Transform = Callable[[Tensor], Tensor]


def stream(
    path: str | Path,
    split: str = "train",
    *,
    image_size: int | Sequence[int] | None = None,
    binarize: str | None = None,
    flip: bool = False,
    transform: Transform | None = None,
    workers: int = 2,
) -> ImageStream:
    """Open a folder of pictures or WebDataset ``.tar`` shards without reading them into memory.

    Splits, cropping and resizing are those of :func:`vaelib.data.load`.

    Args:
        path: A folder of pictures of any depth, a ``.tar`` shard, or a folder of them.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"all"``; see :func:`vaelib.data.load`.
        image_size: Height and width, one number for a square; the first picture's if None.
        binarize: ``"dynamic"`` draws black or white pixels anew each time an image is used; None keeps grey values.
        flip: Mirror images left to right at random, on the training device.
        transform: Such as one of ``torchvision.transforms.v2``: a uint8 ``(C, H, W)`` picture of the file's own size to
            another; runs in the workers. Its draws depend on the seed, the epoch and the picture alone.
        workers: Processes that read and decode; 0 reads in the training process.

    Returns:
        An :class:`ImageStream`, which ``Trainer.fit`` and the evaluations take like any other set.

    Raises:
        FileNotFoundError: If there is no such path.
        DataError: A ``ValueError``: if it holds no picture, or a shard or the first picture cannot be read.
        ValueError: If an argument is out of its range.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     Image.new("L", (40, 30)).save(f"{directory}/wide.png")
        ...     pictures = stream(directory, "all", image_size=16, workers=0)
        ...     len(pictures), pictures.image_shape, pictures[0].dtype
        (1, (1, 16, 16), torch.uint8)
    """
    path = Path(path)
    check_choice("split", split, (*SPLITS, "all"))
    check_choice("binarize", binarize, ("dynamic", None))
    check_int("workers", workers, minimum=0)
    if not path.exists():
        raise FileNotFoundError(f"`path` must be a folder of pictures, or of .tar shards, got {str(path)!r}.")
    if path.suffix == ".tar" or shards_below(path):
        files, splits = shard_files(path, split)
        places = _tar_places(files)
    else:
        found, splits = folder_files(path, split)
        files = [file for root, file in found if not splits or split in (canonical_split(root.name), "all")]
        places = np.array([(number, 0, -1) for number in range(len(files))], dtype=_PLACE)
    if not splits and split != "all":
        places = places[holdout(len(places), split).numpy()]
    size = None if image_size is None else height_and_width(image_size)
    return ImageStream(
        files, places, size, dynamic=binarize == "dynamic", flip=flip, transform=transform, workers=workers
    )


_PLACE = np.dtype([("file", np.int32), ("offset", np.int64), ("size", np.int64)])


class ImageStream(Dataset[Tensor]):
    """Pictures by their number, read when they are needed; made by :func:`stream`.

    Args:
        files: Picture files, or shards.
        places: ``(N,)`` records of the file's number, the offset in it, and the bytes from there; -1 for all.
        size: Height and width; the first picture's if None.
        dynamic: See :func:`stream`, as for the rest.
        flip: See :func:`stream`.
        transform: See :func:`stream`.
        workers: See :func:`stream`.
    """

    def __init__(
        self,
        files: Sequence[Path],
        places: np.ndarray,
        size: tuple[int, int] | None,
        *,
        dynamic: bool = False,
        flip: bool = False,
        transform: Transform | None = None,
        workers: int = 2,
    ) -> None:
        if not len(places):
            raise DataError("A stream needs at least one picture, found none.")
        self.files, self.places = list(files), places
        self.dynamic, self.flip, self.transform, self.workers = dynamic, flip, transform, workers
        self.device = torch.device("cpu")
        self._epoch_seed = 0
        first = self._decode(0, size)
        channels, height, width = first.shape
        self.image_shape = (channels, *(size or (height, width)))

    def __len__(self) -> int:
        return len(self.places)

    def __repr__(self) -> str:
        return f"ImageStream({len(self)} pictures in {len(self.files)} files, {self.image_shape})"

    def __getitem__(self, index: int) -> Tensor:
        """One picture, uint8 (or what ``transform`` returns), of the stream's shape."""
        channels, *size = self.image_shape
        picture = self._decode(index, None if self.transform else (size[0], size[1]))
        picture = with_channels(picture, channels)
        if self.transform is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self._epoch_seed + index)
                picture = self.transform(picture)
        if picture.shape[1:] != tuple(size):
            picture = fit_to_size(picture, (size[0], size[1]))
        return picture

    def fetch(self, index_batches: Iterable[Tensor], device: torch.device | str, *, seed: int = 0) -> Iterator[Tensor]:
        """Batches for a training loop, one per tensor of indices; ``seed`` is of the transform's draws."""
        source = copy.copy(self)
        source._epoch_seed = seed
        loader: DataLoader[Tensor] = DataLoader(
            source,
            batch_sampler=(indices.tolist() for indices in index_batches),
            num_workers=self.workers,
            collate_fn=torch.stack,
            pin_memory=torch.device(device).type == "cuda",
            generator=torch.Generator().manual_seed(seed),
        )
        for images in loader:
            yield prepared(images.to(device, non_blocking=True), self.dynamic, self.flip, None)

    def batches(
        self, batch_size: int, *, shuffle: bool = False, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        """One pass in batches whose sizes differ by at most one, as :meth:`ImageDataset.batches`."""
        check_int("batch_size", batch_size)
        order = torch.randperm(len(self), generator=generator) if shuffle else torch.arange(len(self))
        plain = self.replace(dynamic=False, flip=False)
        for images in plain.fetch((order[a:b] for a, b in even_parts(len(self), batch_size)), self.device):
            yield prepared(images, self.dynamic, self.flip, generator)

    def to(self, device: torch.device | str) -> ImageStream:
        """The same stream with its batches on ``device``."""
        return self.replace(device=torch.device(device))

    def replace(self, **attributes: object) -> ImageStream:
        """The same stream with other attributes."""
        other = copy.copy(self)
        vars(other).update(attributes)
        return other

    def _decode(self, index: int, size: tuple[int, int] | None) -> Tensor:
        place = self.places[index]
        file = self.files[place["file"]]
        try:
            with file.open("rb") as stream:
                stream.seek(place["offset"])
                return decode_picture(io.BytesIO(stream.read(place["size"])), size, name=str(file))
        except UNREADABLE as error:
            where = f"{file} at byte {place['offset']}" if place["size"] >= 0 else str(file)
            raise DataError(f"{where} is not a readable picture: {error}") from error


def _tar_places(shards: Sequence[Path]) -> np.ndarray:
    return np.concatenate([_places_in(number, shard) for number, shard in enumerate(shards)])


def _places_in(number: int, shard: Path) -> np.ndarray:
    places = []
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps every header it has seen
                if member.isfile() and Path(member.name).suffix.lower() in PICTURE_SUFFIXES:
                    places.append((number, member.offset_data, member.size))
    except tarfile.TarError as error:
        raise DataError(f"{shard} is not a readable tar file: {error}") from error
    return np.array(places, dtype=_PLACE)
