"""Images from picture files: single ones, folders, and WebDataset tar shards."""

from __future__ import annotations

import io
import tarfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from vaelib._checks import DataError, MissingExtraError, check_choice
from vaelib.data.dataset import ImageDataset
from vaelib.data.decode import PICTURE_SUFFIXES, UNREADABLE, Decoded, check_levels, decode, with_channels
from vaelib.data.listing import canonical_split, check_split, folder_splits, in_order, shard_split, shards_below

__all__ = [
    "folder_files",
    "load_folder",
    "load_shards",
    "read_pictures",
    "shard_files",
]


def read_pictures(
    paths: Sequence[str | Path], *, image_size: tuple[int, int] | None = None, channels: int | None = None
) -> Tensor:
    """Read picture files of any size and mode.

    Args:
        paths: The files.
        image_size: Height and width to crop and resize to; None if all pictures have one size.
        channels: 1 for grey, 3 for colour; None for colour if any picture has it.

    Returns:
        uint8 ``(N, C, H, W)``, in order.

    Raises:
        DataError: A ``ValueError`` that names the first file that is no picture, or sizes that differ.
        FileNotFoundError: If a file is missing.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     Image.new("RGB", (40, 30)).save(f"{directory}/wide.png")
        ...     read_pictures([f"{directory}/wide.png"], image_size=(16, 16), channels=1).shape
        torch.Size([1, 1, 16, 16])
    """
    check_choice("channels", channels, (None, 1, 3))
    if not paths:
        raise ValueError("`paths` must name at least one picture, got none.")
    pictures: list[tuple[str, Decoded]] = []
    for path in paths:
        try:
            pictures += [(str(path), image) for image in decode(str(path), path, image_size)]
        except UNREADABLE as error:
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(f"There is no picture at {path}.") from error
            raise DataError(f"{path} is not a readable picture: {error}") from error
    check_levels("`paths`", (decoded for _, decoded in pictures))
    return _stack(pictures, channels)


def load_folder(path: Path, split: str, size: tuple[int, int] | None) -> tuple[ImageDataset, bool]:
    """All pictures below a folder, labelled by their subfolder; and whether the folder itself is split."""
    files, splits = folder_files(path, split)
    # A class has the same number in every split, also in one where another class is missing.
    classes = sorted({name for root, file in files if (name := _subfolder(root, file)) is not None})
    sources = (
        (str(file), file, None if name is None else classes.index(name))
        for root, file in files
        if not splits or split in (canonical_split(root.name), "all")
        for name in [_subfolder(root, file)]
    )
    return _dataset(path, sources, size), bool(splits)


def load_shards(path: Path, split: str, size: tuple[int, int] | None) -> tuple[ImageDataset, bool]:
    """WebDataset shards: a ``.tar`` file, or a folder of them; labels are the numbers in their ``cls`` entries."""
    shards, splits = shard_files(path, split)
    return _dataset(path, _shard_samples(shards), size), bool(splits)


def folder_files(path: Path, split: str) -> tuple[list[tuple[Path, Path]], tuple[str, ...]]:
    """Every picture of every split below a folder with the root of its split; and which splits the folder has."""
    by_split = folder_splits(path)
    check_split(path, split, tuple(by_split))
    files = [
        (root, file)
        for root in by_split.values() or [path]
        for file in sorted(root.rglob("*"))
        if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file()
    ]
    if not files:
        raise DataError(f"There is no picture ({', '.join(PICTURE_SUFFIXES)}) below {path}.")
    return files, tuple(by_split)


def shard_files(path: Path, split: str) -> tuple[list[Path], tuple[str, ...]]:
    """The tar shards of a split; and which splits their names and folders say."""
    shards = shards_below(path)
    names = [None if path.is_file() else shard_split(shard, path) for shard in shards]
    splits = in_order(names)
    check_split(path, split, splits)
    if splits and split != "all":
        shards = [shard for shard, name in zip(shards, names, strict=True) if name == split]
    return shards, splits


def _shard_samples(shards: Sequence[Path]) -> Iterator[tuple[str, IO[bytes], int | None]]:
    try:
        from webdataset.tariterators import group_by_keys, tar_file_expander
    except ImportError as error:
        raise MissingExtraError("Reading tar shards", "data") from error
    for shard in shards:
        with shard.open("rb") as stream:
            files = tar_file_expander([{"url": str(shard), "stream": stream}])
            try:
                for sample in group_by_keys(files):
                    picture = next((sample[key] for key in sample if f".{key}" in PICTURE_SUFFIXES), None)
                    if picture is not None:
                        text = sample.get("cls", b"").decode(errors="replace").strip()
                        label = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None
                        yield f"{shard}/{sample['__key__']}", io.BytesIO(picture), label
            except tarfile.TarError as error:
                raise DataError(f"{shard} is not a readable tar file: {error}") from error


def _subfolder(root: Path, file: Path) -> str | None:
    parts = file.relative_to(root).parts
    return parts[0] if len(parts) > 1 else None


def _dataset(
    path: Path, sources: Iterable[tuple[str, Path | IO[bytes], int | None]], size: tuple[int, int] | None
) -> ImageDataset:
    pictures: list[tuple[str, Decoded]] = []
    labels, broken = [], []
    for name, source, label in sources:
        try:
            found = decode(name, source, size)
            pictures += [(name, decoded) for decoded in found]
            labels += [label] * len(found)
        except UNREADABLE as error:
            broken.append(f"{name} ({error})")
    if not pictures:
        raise DataError(f"No picture below {path} could be read: {'; '.join(broken) or 'it holds none'}.")
    if broken:
        warnings.warn(f"{len(broken)} unreadable pictures were left out: {'; '.join(broken)}.", stacklevel=4)
    check_levels(str(path), (decoded for _, decoded in pictures))
    known = [label for label in labels if label is not None]
    return ImageDataset(_stack(pictures, None), labels=torch.tensor(known) if len(known) == len(labels) else None)


def _stack(pictures: Sequence[tuple[str, Decoded]], channels: int | None) -> Tensor:
    """One tensor of them all; grey pictures among coloured ones become coloured."""
    wanted = channels or max(decoded.image.shape[0] for _, decoded in pictures)
    images = []
    first_name, first = pictures[0]
    for name, decoded in pictures:
        (height, width), wanted_size = decoded.image.shape[1:], first.image.shape[1:]
        if (height, width) != wanted_size:
            raise DataError(
                f"Pictures must have one size, or give `image_size`: {first_name} is"
                f" {wanted_size[0]}x{wanted_size[1]}, {name} is {height}x{width}."
            )
        images.append(with_channels(decoded.image, wanted))
    return torch.stack(images)
