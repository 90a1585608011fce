"""Which images a folder or tar shards hold, by names alone, with the splits and classes that the names tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vaelib._checks import DataError
from vaelib.data.decode import IMAGE_SUFFIXES
from vaelib.data.folders import OTHER_IMAGES, census, suffix_of, walk, without_hidden
from vaelib.data.samples import Entry, shard_entries, without_fields
from vaelib.data.skipped import Skipped, readable
from vaelib.data.split_names import SPLITS, canonical_split, in_order, inside_splits, shard_split, split_by_folder

__all__ = ["Source", "find_images", "path_splits"]

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


def path_splits(path: Path) -> tuple[str, ...]:
    """The splits of a folder, of a ``.tar`` shard, or of a folder of shards."""
    return in_order(find_images(path).splits)


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
