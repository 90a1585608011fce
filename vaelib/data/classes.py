"""Labels of images from folders, and from the entries beside them in shards."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vaelib.data.samples import LABEL_KINDS, Entry
from vaelib.data.skipped import Skipped

__all__ = ["labels_of"]


def labels_of(path: Path, entries: Sequence[Entry], folders: Sequence[str | None]) -> tuple[Tensor | None, list[str]]:
    """One label for each image, and the names of the classes unless the labels are numbers.

    The first source is taken that has one for every image: entries ``.cls``, ``.json``, ``.txt``, or folders.
    """
    sources: dict[str, list[int | str | None]] = {"class folder": list(folders)}
    if entries[0].labels:
        kinds = {kind: [entry.labels[number] for entry in entries] for number, kind in enumerate(LABEL_KINDS)}
        sources = {**kinds, **sources}
    if _are_captions(sources.get(".txt", [])):
        del sources[".txt"]
    for labels in sources.values():
        known = [label for label in labels if label is not None]
        if len(known) == len(entries):
            return _numbered(known)
    for source, labels in sources.items():
        missing = Skipped()
        for entry, label in zip(entries, labels, strict=True):
            if label is None:
                missing.add("image{s}", entry.name)
        if len(missing) < len(entries):
            warnings.warn(f"{path} has no labels, since {missing} of {len(entries)} have no {source}.", stacklevel=4)
            break
    return None, []


def _are_captions(texts: Sequence[int | str | None]) -> bool:
    """Whether texts of several words hardly ever come twice: they describe images and name no classes."""
    different = set(texts)
    return 2 * len(different) > len(texts) and any(" " in str(text) for text in different)


def _numbered(labels: Sequence[int | str]) -> tuple[Tensor, list[str]]:
    numbers = [label for label in labels if isinstance(label, int)]
    if len(numbers) == len(labels):
        return torch.tensor(numbers), []
    names = {str(label) for label in labels}
    ordered = sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)
    number_of = {name: number for number, name in enumerate(ordered)}
    return torch.tensor([number_of[str(label)] for label in labels]), ordered
