"""Which files are below a folder: links are followed, and nothing but regular files is opened."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from vaelib.data.decode import IMAGE_SUFFIXES
from vaelib.data.skipped import Skipped

__all__ = ["census", "is_hidden", "suffix_of", "walk", "without_hidden"]

OTHER_IMAGES = (
    *(".heic", ".heif", ".jxl", ".svg", ".eps", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".psd", ".exr", ".hdr"),
    *(".dcm", ".nii", ".nii.gz", ".tga", ".ico"),
)
"""Suffixes of images that are not read; they are counted where they are found."""
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")


def suffix_of(name: str) -> str:
    """The suffix in lower case, with what stands before a compression's: ``".png"``, ``".tar.gz"``."""
    base = name[name.rfind("/") + 1 :].lower()
    stem, dot, last = base.rpartition(".")
    if not stem:
        return ""
    before = stem[stem.rfind(".") :] if last in ("gz", "bz2", "xz", "zst") and "." in stem else ""
    return before + dot + last


def is_hidden(name: str) -> bool:
    """Whether a path leads through anything that an operating system hides, or made for itself."""
    return name.startswith(".") or "/." in name or any(folder in name.split("/") for folder in _SYSTEM_FOLDERS)


def walk(root: Path, skipped: Skipped) -> Iterator[str]:
    """Regular files below ``root``, by their path from it. Linked folders come last, and no folder comes twice."""
    # What a link upwards leads to holds the set itself, and anything else.
    seen = {(above.st_dev, above.st_ino) for above in map(os.stat, root.resolve().parents)}
    folders, linked = [""], list[str]()
    while folders or linked:
        folder = folders.pop() if folders else linked.pop(0)
        try:
            status = os.stat(root / folder)
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            skipped.add("folder{s} that cannot be listed", f"{folder}: {error.strerror}")
            continue
        if (status.st_dev, status.st_ino) in seen:
            skipped.add("linked folder{s} listed already", folder)
            continue
        seen.add((status.st_dev, status.st_ino))
        if not entries and suffix_of(folder) in IMAGE_SUFFIXES:
            skipped.add("empty folder{s}", folder)
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            kind = _kind(entry)
            if kind == "folder":
                (linked if entry.is_symlink() else folders).append(path)
            elif kind == "file":
                yield path
            elif suffix_of(path) in (*IMAGE_SUFFIXES, ".tar"):
                skipped.add(kind, path)


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        entry.stat()
    except OSError:
        return "broken link{s}"
    return "pipe{s}, socket{s} or device{s}"


def without_hidden(names: Iterable[str], skipped: Skipped) -> Iterator[str]:
    """The names that are not hidden; hidden images are counted."""
    for name in names:
        if not is_hidden(name):
            yield name
        elif suffix_of(name) in IMAGE_SUFFIXES:
            skipped.add("hidden", name)


def census(names: Iterable[str]) -> str:
    """What there is, by suffix: ``"12 .heic, 1 .tar.gz"``."""
    counts = Counter(suffix_of(name) or "without suffix" for name in names).most_common()
    listed = ", ".join(f"{count} {suffix}" for suffix, count in counts[:5])
    return (listed or "no file") + (", ..." if len(counts) > 5 else "")
