"""Which images a folder or tar shards hold, by names alone, with the splits and classes that the names tell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vaelib._checks import DataError
from vaelib.data.folders import IMAGE_SUFFIXES, OTHER_IMAGES, Skipped, census, readable, suffix_of, walk, without_hidden
from vaelib.data.samples import Entry, shard_entries, without_fields

_WORDS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
SPLITS = tuple(_WORDS)
PACKED_SHARDS = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Source(NamedTuple):
    """Images by the place where they were found, in order."""

    root: Path
    files: Sequence[str]
    entries: list[Entry]
    splits: list[str | None]
    """Of each entry."""
    classes: list[str | None]
    """The class folder of each entry."""
    skipped: Skipped


def find_images(path: Path) -> Source:
    """Images by their names alone, in order."""
    skipped = Skipped()
    if path.is_file():
        names, shards = [path.name], [path.name]
        source = _in_shards(path, shards, skipped)
    else:
        names = sorted(without_hidden(walk(path, skipped), skipped), key=lambda name: name.split("/"))
        for name in names:
            if suffix_of(name) in OTHER_IMAGES:
                skipped.add("of a kind that is not read", name)
        images = [name for name in names if suffix_of(name) in IMAGE_SUFFIXES]
        shards = [name for name in names if suffix_of(name) == ".tar"]
        on_top = any("/" not in shard or canonical_split(shard.partition("/")[0]) for shard in shards)
        beside = images if shards and (on_top or not images) else shards
        if beside is images:
            for name in names:
                if suffix_of(name) in PACKED_SHARDS:
                    skipped.add("packed shard{s}, to be unpacked to plain .tar", name)
        for name in beside:
            skipped.add("image{s} beside tar shards" if beside is images else "tar shard{s} among images", name)
        source = _in_shards(path, shards, skipped) if beside is images else _in_folders(path, images, skipped)
    if not source.entries:
        seen = f"; skipped: {skipped}" if len(skipped) else ""
        raise DataError(
            f"There is no image in {path}: looked for {', '.join(IMAGE_SUFFIXES)}, also inside .tar shards, and found"
            f" {census(names)}{seen}."
        )
    return source


def _in_folders(path: Path, images: list[str], skipped: Skipped) -> Source:
    entries = without_fields([Entry(image, number, 0, -1) for number, image in enumerate(images)], skipped)
    return _divided(path, images, entries, [entry.name for entry in entries], skipped)


def _in_shards(path: Path, shards: Sequence[str], skipped: Skipped) -> Source:
    root = path.parent if path.is_file() else path
    entries = shard_entries(root, shards, skipped)
    inner = [entry.name[len(shards[entry.file]) :].lstrip("/") for entry in entries]
    by_shard = [None if path.is_file() else shard_split(shard) for shard in shards]
    if not any(by_shard):
        return _divided(path, shards, entries, _below_common_folder(inner), skipped)
    # A shard of a split may repeat its name as the first folder inside.
    splits = [by_shard[entry.file] for entry in entries]
    for number, name in enumerate(inner):
        folder, _, rest = name.partition("/")
        if rest and splits[number] == canonical_split(folder):
            inner[number] = rest
    inner = [
        f"{split}/{name}" if split else name for split, name in zip(splits, _below_common_folder(inner), strict=True)
    ]
    return _divided(path, shards, entries, inner, skipped)


def _below_common_folder(names: list[str]) -> list[str]:
    """Names without the folders that all share, such as the one that was packed; they tell no class."""
    while True:
        folders = {name.partition("/")[0] if "/" in name else "" for name in names}
        if len(folders) != 1 or "" in folders or any(canonical_split(folder) for folder in folders):
            return names
        names = [name.partition("/")[2] for name in names]


def _divided(path: Path, files: Sequence[str], entries: list[Entry], names: Sequence[str], skipped: Skipped) -> Source:
    """Entries with their splits and classes, by the folders in ``names``."""
    splits = split_by_folder(path, names)
    inside = inside_splits(path, [entry.name for entry in entries], splits, skipped)
    inside.sort(key=lambda number: SPLITS.index(splits[number] or SPLITS[0]))
    classes = []
    for number in inside:
        rest = names[number].partition("/")[2] if splits[number] else names[number]
        classes.append(readable(rest.partition("/")[0]) if "/" in rest else None)
    return Source(
        path.parent if path.is_file() else path,
        files,
        [entries[number] for number in inside],
        [splits[number] for number in inside],
        classes,
        skipped,
    )


def canonical_split(name: str) -> str | None:
    """``"train"``, ``"val"`` or ``"test"`` for a name that means one of them in any case; None for any other."""
    return next((split for split, words in _WORDS.items() if name.lower() in words), None)


def splits_in_words(name: str) -> set[str]:
    """The splits that words of a name mean: those of ``set-val-00.tar``, ``train2017``, ``seg_test`` and ``trainA``."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    return {split for word in words if (split := canonical_split(word))}


def in_order(found: Iterable[str | None]) -> tuple[str, ...]:
    """The splits among ``found``, each once, in the order of ``SPLITS``."""
    found = set(found)
    return tuple(split for split in SPLITS if split in found)


def check_split(path: Path, split: str, splits: tuple[str, ...]) -> None:
    """Raise unless ``path``, which has those splits, has ``split``, or has none and a tenth of it can be held out."""
    if split == "all" or split in splits:
        return
    if splits:
        raise DataError(f"`split` must be one of those that {path} has ({', '.join(splits)}) or 'all', got {split!r}.")
    if split == "val":
        raise DataError(
            f"`split` must be 'train', 'test' or 'all' for {path}, which has no splits of its own, got 'val'."
            " Put validation images into a subfolder or shards named val beside train, or take some of 'train' by"
            " `vaelib.data.hold_out`."
        )


def holdout(count: int, split: str) -> Tensor:
    """Indices, rising, of the test tenth (at least one image) or the training rest of a fixed random order."""
    if count < 2:
        raise DataError(f"A train/test split needs at least 2 images, got {count}; use split='all'.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    num_test = max(1, count // 10)
    return (order[:num_test] if split == "test" else order[num_test:]).sort().values


def shard_split(shard: str) -> str | None:
    """The split that a word of a shard's folder or name means, as in ``val/0.tar`` and ``train-000.tar``."""
    folder, slash, _ = shard.partition("/")
    if slash and canonical_split(folder) is not None:
        return canonical_split(folder)
    found = in_order(splits_in_words(shard.rpartition("/")[2]))
    if len(found) > 1:
        raise DataError(f"The name of a shard must say one split, got {' and '.join(found)} in {readable(shard)}.")
    return found[0] if found else None


def split_by_folder(path: Path, names: Sequence[str]) -> list[str | None]:
    """The split of every file by its first folder below ``path``."""
    folders = {name.partition("/")[0] for name in names if "/" in name}
    splits = {folder: canonical_split(folder) for folder in sorted(folders)}
    by_split: dict[str, str] = {}
    for folder, split in splits.items():
        if split is not None and by_split.setdefault(split, folder) != folder:
            raise DataError(f"{path} must have one folder for each split, got {by_split[split]} and {folder}.")
    return [splits[name.partition("/")[0]] if "/" in name else None for name in names]


def inside_splits(path: Path, names: Sequence[str], splits: Sequence[str | None], skipped: Skipped) -> list[int]:
    """Numbers of the files that lie in a split, or of all if there is none.

    Beside two splits the rest is skipped and counted; beside a single one it is not clear that it is one.
    """
    found = in_order(splits)
    outside = [name for name, split in zip(names, splits, strict=True) if split is None]
    if len(found) == 1 and outside:
        raise DataError(
            f"{path} has the split {found[0]!r} by a name in it, and images outside of it, such as"
            f" {readable(outside[0])}. Move them into a second split, such as 'train' or 'test'; or, if {found[0]!r} is"
            " no split but a class, rename it."
        )
    if not found:
        return list(range(len(names)))
    for name in outside:
        skipped.add(f"outside {', '.join(found)}", name)
    return [number for number, split in enumerate(splits) if split is not None]
