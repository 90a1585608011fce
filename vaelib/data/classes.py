"""Labels of images from folders, and from the entries beside them in shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vaelib._checks import DataError
from vaelib.data.samples import LABEL_KINDS, Entry
from vaelib.data.skipped import Skipped, warn

__all__ = ["labels_of"]


def labels_of(
    path: Path, entries: Sequence[Entry], folders: Sequence[str | None], wanted: Sequence[int], *, required: bool
) -> tuple[Tensor | None, list[str], int]:
    """One label for each wanted image, the names of all classes unless the labels are numbers, and how many classes.

    The first source is taken that labels every wanted image: entries ``.cls``, ``.json``, ``.txt``, or folders.

    Args:
        path: What messages call the source.
        entries: All images, of every split: a class has the same number in each.
        folders: The class folder of each.
        wanted: Numbers of those that labels are wanted of.
        required: Whether it is an error, and not a warning, if some have none.
    """
    sources: dict[str, list[int | str | None]] = {"class folder": list(folders)}
    if entries[0].labels:
        kinds = {kind: [entry.labels[number] for entry in entries] for number, kind in enumerate(LABEL_KINDS)}
        sources = {**kinds, **sources}
    if _are_captions(sources.get(".txt", [])):
        del sources[".txt"]
    for labels in sources.values():
        if all(labels[number] is not None for number in wanted):
            return _numbered(labels, wanted)
    for source, labels in sources.items():
        missing = Skipped()
        for number in wanted:
            if labels[number] is None:
                missing.add("image{s}", entries[number].name)
        if len(missing) < len(wanted):
            reason = f"{path} has no labels, since {missing} of {len(wanted)} have no {source}."
            if required:
                raise DataError(f"`condition` 'labels' needs the labels of all images: {reason}")
            warn(reason)
            break
    return None, [], 0


def _are_captions(texts: Sequence[int | str | None]) -> bool:
    """Whether texts of several words hardly ever come twice: they describe images and name no classes."""
    different = set(texts)
    return 2 * len(different) > len(texts) and any(" " in str(text) for text in different)


def _numbered(labels: Sequence[int | str | None], wanted: Sequence[int]) -> tuple[Tensor, list[str], int]:
    chosen = [labels[number] for number in wanted]
    if all(label is None or isinstance(label, int) for label in labels):
        return torch.tensor(chosen), [], 1 + max(label for label in labels if isinstance(label, int))
    names = {str(label) for label in labels if label is not None}
    ordered = sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)
    number_of = {name: number for number, name in enumerate(ordered)}
    return torch.tensor([number_of[str(label)] for label in chosen]), ordered, len(ordered)
