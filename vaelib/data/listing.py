"""Splits of a source of images, by the names that people give them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from vaelib._checks import DataError

__all__ = [
    "SPLITS",
    "canonical_split",
    "check_split",
    "folder_splits",
    "in_order",
    "shard_split",
    "shards_below",
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


def in_order(found: Iterable[str | None]) -> tuple[str, ...]:
    """The splits among ``found``, each once, in the order of ``SPLITS``."""
    found = set(found)
    return tuple(split for split in SPLITS if split in found)


def folder_splits(path: Path) -> dict[str, Path]:
    """Subfolders of a folder by the split that they hold."""
    found = {canonical_split(folder.name): folder for folder in sorted(path.iterdir()) if folder.is_dir()}
    return {split: found[split] for split in in_order(found)}


def shard_split(shard: Path, root: Path) -> str | None:
    """The split that the folder or the name of a shard below ``root`` means, such as ``train-000.tar``."""
    parts = shard.relative_to(root).parts
    words = [*parts[:-1], *re.split(r"[-_. ]", parts[-1])]
    return next((split for word in words if (split := canonical_split(word)) is not None), None)


def shards_below(path: Path) -> list[Path]:
    """Tar shards: the path itself, or those in a folder and in its subfolders that name a split."""
    if not path.is_dir():
        return [path]
    folders = [path, *folder_splits(path).values()]
    return sorted(shard for folder in folders for shard in folder.glob("*.tar"))


def check_split(path: Path, split: str, splits: tuple[str, ...]) -> None:
    """Raise unless ``path``, which has those splits, has ``split``, or has none and a tenth of it can be held out."""
    if split == "all" or split in splits:
        return
    if splits:
        raise DataError(f"`split` must be one of those that {path} has ({', '.join(splits)}) or 'all', got {split!r}.")
    if split == "val":
        raise DataError(
            f"`split` must be 'train', 'test' or 'all' for {path}, which has no splits of its own, got 'val'."
            " Put validation images into a subfolder or shards named val beside train, or hold some out of 'train'."
        )
