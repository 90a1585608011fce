"""Images from files into memory: single ones, folders, and tar shards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vaelib._checks import DataError, check_choice, check_path, check_type
from vaelib.data.dataset import ImageDataset, changed, height_and_width
from vaelib.data.decode import UNREADABLE, Decoded, check_levels, decode, with_channels
from vaelib.data.folders import IMAGE_SUFFIXES, Skipped, suffix_of, walk, without_hidden
from vaelib.data.guard import check_memory
from vaelib.data.listing import list_images
from vaelib.data.ranges import ValueRange, check_value_range


def read_images(
    paths: Sequence[str | Path],
    *,
    image_size: int | Sequence[int] | None = None,
    channels: int | None = None,
    value_range: Sequence[float] | None = None,
    frames: str | None = None,
) -> Tensor:
    """Read image files of any size and mode.

    Args:
        paths: The files.
        image_size: Height and width to crop and resize to, one number for a square; None if all have one size.
        channels: 1 for grey, 3 for colour; None for colour if any image has it.
        value_range: See :func:`vaelib.data.load`.
        frames: See :func:`vaelib.data.load`.

    Returns:
        uint8 ``(N, C, H, W)``, in order.

    Raises:
        DataError: A ``ValueError`` that names the first file that is no image, or sizes that differ, or the
            argument that files need, such as ``value_range``.
        FileNotFoundError: If a file is missing.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     Image.new("RGB", (40, 30)).save(f"{directory}/wide.png")
        ...     read_images([f"{directory}/wide.png"], image_size=(16, 16), channels=1).shape
        torch.Size([1, 1, 16, 16])
    """
    check_choice("channels", channels, (None, 1, 3))
    check_choice("frames", frames, ("first", "all", None))
    levels = check_value_range(value_range)
    check_type("paths", paths, tuple | list, "a sequence of paths")
    for path in paths:
        check_path(path, "paths")
    size = None if image_size is None else height_and_width(image_size)
    if not paths:
        raise ValueError("`paths` must name at least one image, got none.")
    found: list[tuple[str, Decoded]] = []
    for path in paths:
        try:
            images = decode(str(path), path, size, value_range=levels, frames=frames)
        except UNREADABLE as error:
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(f"`paths` must be existing files. There is no image at {path}.") from error
            raise DataError(f"{path} is not a readable image: {error}") from error
        found += [(str(path), image) for image in images]
    return _stack("`paths`", found, channels, levels)


def load_images(
    path: Path,
    split: str,
    size: tuple[int, int] | None,
    value_range: ValueRange | None,
    *,
    frames: str | None,
    labelled: bool,
) -> ImageDataset:
    """The images of a split of a folder or of shards in memory."""
    listing = list_images(path, split, value_range=value_range, frames=frames, named=True, labelled=labelled)
    height, width = size or listing.common_size()
    shape = (len(listing), listing.channels, height, width)
    check_memory(f"{path} in memory", math.prod(shape), "use `vaelib.data.stream`, or a smaller `image_size`")
    images, skipped = torch.empty(shape, dtype=torch.uint8), Skipped()
    kept: list[int] = []
    for indices in listing.by_file():
        try:
            found = listing.decode_file(int(indices[0]), (height, width))
        except UNREADABLE as error:
            skipped.add("unreadable", f"{listing.name(int(indices[0]))}: {error}")
            continue
        for index in indices.tolist():
            decoded = found[listing.places["frame"][index]]
            images[len(kept)] = with_channels(decoded.image, listing.channels)
            kept.append(index)
    if not kept:
        raise DataError(f"No image in {path} could be read: {skipped}.")
    skipped.warn(path)
    labels = None if listing.labels is None else listing.labels[kept]
    names = [listing.name(index) for index in kept]
    dataset = ImageDataset(images[: len(kept)], labels=labels, class_names=listing.class_names, names=names)
    return changed(dataset, num_classes=listing.num_classes)


def read_files(
    paths: Sequence[str | Path],
    image_size: tuple[int, int],
    channels: int,
    *,
    value_range: Sequence[float] | None = None,
    frames: str | None = None,
) -> tuple[ImageDataset, Skipped]:
    """Image files, and all those below folders, at one size and with 1 or 3 channels; and what was skipped."""
    skipped, levels = Skipped(), check_value_range(value_range)
    files = [file for path in paths for file in _files_at(Path(path), skipped)]
    check_memory(
        f"{len(files)} images in memory", len(files) * channels * math.prod(image_size), "give fewer at a time"
    )
    found: list[tuple[str, Decoded]] = []
    for file in files:
        try:
            decoded = decode(str(file), file, image_size, value_range=levels, frames=frames)
        except (DataError, OSError) as error:
            skipped.add("unreadable", f"{file}: {error}")
            continue
        names = [str(file)] if len(decoded) == 1 else [f"{file} [{i}]" for i in range(len(decoded))]
        found += zip(names, decoded, strict=True)
    if not found:
        raise DataError(f"No image in {', '.join(map(str, paths))} could be read: {skipped or 'there is none'}.")
    images = _stack("these images", found, channels, levels)
    return ImageDataset(images, names=[name for name, _ in found]), skipped


def _files_at(path: Path, skipped: Skipped) -> list[Path]:
    """A file itself; of a folder the images below it, the rest counted as skipped."""
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    if not path.is_dir():
        return [path]
    files = []
    for name in without_hidden(sorted(walk(path, skipped)), skipped):
        if suffix_of(name) in IMAGE_SUFFIXES:
            files.append(path / name)
        else:
            skipped.add("no images by their suffix", f"{path / name}")
    return files


def _stack(
    what: str, found: Sequence[tuple[str, Decoded]], channels: int | None, value_range: ValueRange | None
) -> Tensor:
    """One tensor of them all; grey images among coloured ones become coloured."""
    if value_range is None:
        check_levels(what, (decoded for _, decoded in found))
    first_name, size = found[0][0], found[0][1].image.shape[1:]
    for name, decoded in found:
        if decoded.image.shape[1:] != size:
            shown = [f"{height}x{width}" for height, width in (size, decoded.image.shape[1:])]
            raise DataError(
                f"Images must have one size, or give `image_size`: {first_name} is {shown[0]}, {name} is {shown[1]}."
            )
    wanted = channels or max(decoded.image.shape[0] for _, decoded in found)
    return torch.stack([with_channels(decoded.image, wanted) for _, decoded in found])
