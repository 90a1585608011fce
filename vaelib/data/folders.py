"""Which files are below a folder, and what is skipped: links are followed, nothing but regular files is opened."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".webp", ".avif", ".jp2", ".j2k"),
    *(".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm", ".gif"),
)
OTHER_IMAGES = (
    *(".heic", ".heif", ".jxl", ".svg", ".eps", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".psd", ".exr", ".hdr"),
    *(".dcm", ".nii", ".nii.gz", ".tga", ".ico"),
)
"""Suffixes of images that are not read; they are counted where they are found."""
_SHOWN = 5  # names of what is skipped
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


class Skipped:
    """Counts of what is skipped, by the reason, with the first names of each."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, reason: str, name: str) -> None:
        """Count one more; ``reason`` stands after the number, such as ``"empty"`` or ``"broken link{s}"``."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        names = self._names.setdefault(reason, [])
        if len(names) < _SHOWN:
            names.append(readable(name))

    def __len__(self) -> int:
        return sum(self._counts.values())

    def __str__(self) -> str:
        parts = []
        for reason, count in self._counts.items():
            names = self._names[reason]
            more = f" and {count - len(names)} more" if count > len(names) else ""
            parts.append(f"{count} {reason.format(s='s' if count > 1 else '')} ({', '.join(names)}{more})")
        return "; ".join(parts)

    def warn(self, source: object) -> None:
        """Report all of them in one warning, if there are any."""
        if len(self):
            files = "file was" if len(self) == 1 else "files were"
            warn(f"{len(self)} {files} skipped in {source}: {self}.")


def warn(message: str) -> None:
    """Warn with the line of the caller's code that called vaelib, however deep in vaelib the warning arises."""
    level, frame = 2, sys._getframe(1)  # to warnings, this function is level 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("vaelib."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def readable(name: str) -> str:
    """A name without what a terminal could take for something else than a name."""
    return name if name.isprintable() else ascii(name)[1:-1]
