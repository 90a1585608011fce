"""Splits by the names that people give to folders, shards and arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vaelib._checks import DataError
from vaelib.data.skipped import Skipped, readable

__all__ = [
    "SPLITS",
    "canonical_split",
    "check_split",
    "in_order",
    "inside_splits",
    "shard_split",
    "split_by_folder",
    "splits_in_words",
]

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def canonical_split(name: str) -> str | None:
    """``"train"``, ``"val"`` or ``"test"`` for a name that means one of them in any case; None for any other."""
    return _SPLIT_NAMES.get(name.lower())


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
