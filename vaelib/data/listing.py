"""The images of a folder or of tar shards by their number, for sets in memory and streams alike.

Every image's header is read once, of all splits: what cannot be read is known, and reported, before anything is
decoded, and all splits have one number of channels.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaelib._checks import DataError
from vaelib.data.decode import UNREADABLE, Decoded, are_dark, check_levels, decode, with_channels
from vaelib.data.folders import readable, warn
from vaelib.data.headers import Header, Part, read_headers
from vaelib.data.ranges import ValueRange
from vaelib.data.samples import Entry, labels_of, shared_samples
from vaelib.data.sources import (
    Source,
    canonical_split,
    check_split,
    find_images,
    holdout,
    in_order,
    splits_in_words,
)

_PLACE = np.dtype([("file", np.int32), ("offset", np.int64), ("size", np.int64), ("frame", np.int32)])
_FEW = 64
_MASK_FOLDERS = ("masks", "labels", "annotations", "segmentations", "groundtruth", "ground_truth")
_READ_AT_ONCE = 2**26  # bytes


@dataclass(frozen=True)
class Listing:
    """Images that can be had by their number."""

    files: list[str]
    """Image files, or shards."""
    places: np.ndarray
    """``(N,)`` records: number of the file, offset in it, bytes from there or -1 for all, and frame."""
    labels: Tensor | None
    """``(N,)`` int64."""
    class_names: tuple[str, ...]
    num_classes: int
    """Of all splits; 0 without labels."""
    channels: int
    """1, or 3 if any image of any split is coloured."""
    size: tuple[int, int] | None
    """Height and width if all have one."""
    sizes: str
    """Two images of different sizes, in words."""
    value_range: ValueRange | None
    frames: str | None
    names: list[str]
    """Path of each image, of a shard's entry the shard's path and its name; empty if not asked for."""

    def __len__(self) -> int:
        return len(self.places)

    def decode(self, index: int, size: tuple[int, int] | None) -> Decoded:
        """One image with the channels of all, cropped and resized if a size is given."""
        (found,) = self.decode_file(index, size, only=self.places["frame"][index])
        return found._replace(image=with_channels(found.image, self.channels))

    def decode_file(self, index: int, size: tuple[int, int] | None, only: int | None = None) -> list[Decoded]:
        """All images of the file that one image is in, or ``only`` the one of that number."""
        file, offset, length, _ = self.places[index]
        with open(self.files[file], "rb", buffering=0) as opened:
            part = Part(opened, int(offset), int(length))
            is_small = part.size <= _READ_AT_ONCE  # else it may be more than the image in it
            content = io.BytesIO(part.read(part.size)) if is_small else io.BufferedReader(part)
            return decode(self.name(index), content, size, value_range=self.value_range, frames=self.frames, only=only)

    def by_file(self) -> list[np.ndarray]:
        """Numbers of the images, those of each file together."""
        starts = np.flatnonzero(np.diff(self.places["file"]) | np.diff(self.places["offset"])) + 1
        return np.split(np.arange(len(self)), starts)

    def name(self, index: int) -> str:
        """Where one image is."""
        if self.names:
            return self.names[index]
        file, offset, length, _ = self.places[index]
        return self.files[file] if length < 0 else f"{self.files[file]} at byte {offset}"

    def common_size(self) -> tuple[int, int]:
        """Height and width of all images; a ``DataError`` names two that differ."""
        if self.size is None:
            raise DataError(f"Images must have one size, or give `image_size`: {self.sizes}.")
        return self.size

    def subset(self, indices: np.ndarray) -> Listing:
        """The images at ``indices``."""
        labels = None if self.labels is None else self.labels[torch.from_numpy(indices)]
        names = [self.names[index] for index in indices.tolist()] if self.names else []
        return replace(self, places=self.places[indices], labels=labels, names=names)


def list_images(
    path: Path,
    split: str,
    *,
    value_range: ValueRange | None = None,
    frames: str | None = None,
    named: bool = False,
    labelled: bool = False,
) -> Listing:
    """The images of a split of a folder, of a ``.tar`` shard, or of a folder of shards, as far as headers can be read.

    Channels, common size and classes are those of all splits together. What is skipped is reported in a warning.
    Names of the images are kept only if ``named``: of millions they take more memory than all else. If ``labelled``, an
    image without a label is an error, else all labels are skipped then.
    """
    source = find_images(path)
    check_split(path, split, in_order(source.splits))
    shared: dict[tuple[Header, ...], tuple[Header, ...]] = {}  # most images have the header of another one
    found = (tuple(_headers(source, entry, value_range, frames)) for entry in source.entries)
    headers = [shared.setdefault(each, each) for each in found]
    # One number for each image: a file of several frames comes several times.
    numbers = np.repeat(np.arange(len(headers)), [len(each) for each in headers]).tolist()
    if not numbers:
        raise DataError(f"No image in {path} could be read: {source.skipped}.")
    source.skipped.warn(path)
    _warn_of_probable_splits(path, source)
    _warn_of_masks(path, source)
    entries = [source.entries[number] for number in numbers]
    has_splits = any(source.splits) and split != "all"
    wanted = [i for i, number in enumerate(numbers) if not has_splits or source.splits[number] == split]
    if not wanted:
        raise DataError(f"No image of the split {split!r} of {path} could be read: {source.skipped}.")
    folders = [source.classes[number] for number in numbers]
    labels, class_names, num_classes = labels_of(path, entries, folders, wanted, required=labelled)
    all_headers = list(itertools.chain.from_iterable(headers))
    size, sizes = _common_size(entries, all_headers)
    places = _places(source.entries, headers)
    listing = Listing(
        files=[os.path.join(source.root, file) for file in source.files],
        places=places[wanted],
        labels=labels,
        class_names=tuple(class_names),
        num_classes=num_classes,
        channels=max(header.channels for header in all_headers),
        size=size,
        sizes=sizes,
        value_range=value_range,
        frames=frames,
        names=[os.path.join(source.root, entries[i].name) for i in wanted] if named else [],
    )
    every = replace(listing, places=places, names=[])
    _check_levels(path, every, np.array([header.bits for header in all_headers]))
    if has_splits or split == "all":
        return listing
    return listing.subset(holdout(len(listing), split).numpy())


def _warn_of_probable_splits(path: Path, source: Source) -> None:
    """Report folders that are called as splits are, and are none."""
    if any(source.splits):
        return
    deeper, alike = set[str](), dict[str, str]()
    for folder in {os.path.dirname(entry.name) for entry in source.entries}:
        parts = folder.split("/")
        for depth, part in enumerate(parts):
            name, found = "/".join(parts[: depth + 1]), splits_in_words(part)
            if canonical_split(part):
                deeper.add(name)
            if len(found) == 1:
                alike[name] = found.pop()
    # One such word, as in a class `train_station`, is no sign of splits.
    probable = deeper or (alike if len(set(alike.values())) > 1 else ())
    if probable:
        named = ", ".join(sorted(probable)[:5])
        warn(f"{named} are no splits of {path}: only folders directly below it that are called train, val or test are.")


def _warn_of_masks(path: Path, source: Source) -> None:
    """Report names that often are those of masks, which are read as images nevertheless."""
    classes = {name for name in source.classes if name is not None}
    masks = sorted(name for name in classes if name.lower() in _MASK_FOLDERS)
    if masks and len(classes) > 1:
        warn(f"The folder {masks[0]} of {path} is read as a class: move it elsewhere if its images are masks.")
    names = shared_samples(source.entries)
    if names:
        named = ", ".join(readable(name) for name in names[:4])
        warn(f"{len(names)} images of {path} share samples by name ({named}, ...), and all are read: remove any masks.")


def _check_levels(path: Path, listing: Listing, bits: np.ndarray) -> None:
    """Raise ``DataError`` if images are likely to need another ``value_range``: a few can tell, else all."""
    for depth in np.unique(bits):
        every = (bits == depth).nonzero()[0]
        few = every[np.linspace(0, len(every) - 1, min(len(every), _FEW)).astype(int)]
        if are_dark(_decoded(listing, few)):
            check_levels(str(path), _decoded(listing, every))


def _decoded(listing: Listing, indices: Iterable[int]) -> Iterator[Decoded]:
    for index in indices:
        with contextlib.suppress(*UNREADABLE):
            yield listing.decode(int(index), (1, 1))


def _places(entries: Sequence[Entry], headers: Sequence[Sequence[Header]]) -> np.ndarray:
    places = [
        (entry.file, entry.offset, entry.size, frame)
        for entry, found in zip(entries, headers, strict=True)
        for frame in range(len(found))
    ]
    return np.array(places, dtype=_PLACE)


def _headers(source: Source, entry: Entry, value_range: ValueRange | None, frames: str | None) -> list[Header]:
    try:
        with open(os.path.join(source.root, source.files[entry.file]), "rb", buffering=0) as file:
            part = Part(file, entry.offset, entry.size)
            if part.size:
                name = os.path.join(source.root, entry.name)
                return read_headers(name, io.BufferedReader(part), value_range=value_range, frames=frames)
            source.skipped.add("empty", entry.name)
    except UNREADABLE as error:
        source.skipped.add("unreadable", f"{entry.name}: {error}")
    return []


def _common_size(entries: Sequence[Entry], headers: Sequence[Header]) -> tuple[tuple[int, int] | None, str]:
    first = headers[0][1:3]
    for entry, header in zip(entries, headers, strict=True):
        if header[1:3] != first:
            one, other = (f"{height}x{width}" for height, width in (first, header[1:3]))
            return None, f"{readable(entries[0].name)} is {one}, {readable(entry.name)} is {other}"
    return first, ""
