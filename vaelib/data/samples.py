"""Images of shards and their labels, and the labels of folders.

Entries of one key, the name up to its first dot, are one sample, as in WebDataset.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaelib._checks import DataError
from vaelib.data.folders import IMAGE_SUFFIXES, OTHER_IMAGES, Skipped, is_hidden, readable, suffix_of, warn
from vaelib.data.tar import Member, members

LABEL_KINDS = {".cls": 1 << 10, ".json": 1 << 16, ".txt": 1 << 8}
"""Entries that may hold a label, the surest first, and the bytes up to which they are read for one."""
_JSON_KEYS = ("label", "class", "cls", "class_name", "label_name", "category", "target")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)

Label = int | str | None


class Entry(NamedTuple):
    """An image where it was found."""

    name: str
    """Its path from the source; of a shard's entry the shard's path and the entry's name."""
    file: int
    offset: int
    size: int
    """Bytes; -1 for all of a file."""
    labels: tuple[Label, ...] = ()
    """By each of ``LABEL_KINDS``."""


def key_and_field(name: str) -> tuple[str, str]:
    """The sample of an image and its field in it: ``a/001.mask.png`` is ``mask`` of ``a/001``; numbers are no field."""
    folder, _, base = name.rpartition("/")
    stem = base.rpartition(".")[0]
    key, _, field = stem.partition(".")
    if field.replace(".", "").isdecimal():
        key, field = stem, ""
    return f"{folder}/{key}", field


def without_fields(entries: Sequence[Entry], skipped: Skipped) -> list[Entry]:
    """The images without those that belong to another one, as ``001.mask.png`` does to ``001.png``.

    A name is one of a field if any image of that name stands beside the image that it belongs to.
    """
    parts = _parts(entries)
    if not parts:
        return list(entries)
    others = (key_and_field(entry.name)[0] for number, entry in enumerate(entries) if number not in parts)
    whole = {key for key, _ in parts.values()}.intersection(others)
    fields = {field for key, field in parts.values() if key in whole}
    kept = []
    for number, entry in enumerate(entries):
        if number in parts and parts[number][1] in fields:
            skipped.add("further field{s} of a sample", entry.name)
        else:
            kept.append(entry)
    return kept


def shared_samples(entries: Sequence[Entry]) -> list[str]:
    """Names such as ``1.image.png`` and ``1.mask.png``, without a ``1.png``, if other samples have these fields."""
    samples: dict[str, dict[str, str]] = {}
    for number, (key, field) in _parts(entries).items():
        samples.setdefault(key, {})[field] = entries[number].name
    shared = [fields for fields in samples.values() if len(fields) > 1]
    counts = Counter(field for fields in shared for field in fields)
    return [name for fields in shared for field, name in fields.items() if counts[field] > 1]


def _parts(entries: Sequence[Entry]) -> dict[int, tuple[str, str]]:
    """Key and field, by number, of the images whose names have a field."""
    dotted = {i: key_and_field(e.name) for i, e in enumerate(entries) if e.name.count(".", e.name.rfind("/") + 1) > 1}
    return {i: (key, field) for i, (key, field) in dotted.items() if field}


def shard_entries(root: Path, shards: Sequence[str], skipped: Skipped) -> list[Entry]:
    """The images of shards in order, one of each sample, with the labels that the sample's other entries hold."""
    entries: list[Entry] = []
    for number, shard in enumerate(shards):
        entries += _one_of_a_stem(_entries(root / shard, shard, number, skipped), skipped)
    return without_fields(entries, skipped)


def _one_of_a_stem(entries: Sequence[Entry], skipped: Skipped) -> Iterator[Entry]:
    """Of ``a.jpg`` and ``a.png`` in one sample, that of the first suffix in ``IMAGE_SUFFIXES``."""
    by_stem: dict[str, list[Entry]] = {}
    for entry in entries:
        by_stem.setdefault(entry.name.rpartition(".")[0], []).append(entry)
    for candidates in by_stem.values():
        first, *others = sorted(candidates, key=lambda entry: IMAGE_SUFFIXES.index(suffix_of(entry.name)))
        for other in others:
            skipped.add("second image{s} of a sample", other.name)
        yield first


def _entries(shard: Path, name: str, number: int, skipped: Skipped) -> list[Entry]:
    images, labels, seen = dict[str, Member](), dict[str, list[Label]](), set[str]()
    with shard.open("rb") as file:
        for member in members(shard):
            inner = "/".join(part for part in member.name.split("/") if part not in ("", ".", ".."))
            suffix = suffix_of(inner)
            if not _is_wanted(member, inner, f"{name}/{inner}", skipped):
                continue
            if inner in seen:
                raise DataError(f"{shard} must hold every name once, got {readable(inner)} twice: pack it again.")
            seen.add(inner)
            if suffix in IMAGE_SUFFIXES:
                images[inner] = member
            elif suffix == ".cls" and member.size > LABEL_KINDS[suffix]:
                raise DataError(
                    f"{shard}/{inner} must hold a class: a name, or a whole number >= 0, has {member.size} bytes."
                )
            elif member.size <= LABEL_KINDS[suffix]:
                file.seek(member.offset)
                found = labels.setdefault(inner.rpartition(".")[0], [None] * len(LABEL_KINDS))
                found[list(LABEL_KINDS).index(suffix)] = _label(suffix, file.read(member.size), f"{shard}/{inner}")
    shared: dict[tuple[Label, ...], tuple[Label, ...]] = {}  # else every image would keep a copy of its label
    entries = []
    for inner, member in images.items():
        found_labels = _labels_of(inner, labels)
        found_labels = shared.setdefault(found_labels, found_labels)
        entries.append(Entry(f"{name}/{inner}", number, member.offset, member.size, found_labels))
    return entries


def _is_wanted(member: Member, inner: str, name: str, skipped: Skipped) -> bool:
    """Whether an entry is an image or may hold a label; images that are not read are counted."""
    suffix = suffix_of(inner)
    if member.kind == "folder" or suffix not in (*IMAGE_SUFFIXES, *OTHER_IMAGES, *LABEL_KINDS):
        return False
    is_image, reason = suffix not in LABEL_KINDS, ""
    if is_hidden(inner):
        reason = "hidden"
    elif member.kind != "file":
        reason = "link{s} or device{s}"
    elif suffix in OTHER_IMAGES:
        reason = "of a kind that is not read"
    if is_image and reason:
        skipped.add(reason, name)
    return not reason


def _labels_of(inner: str, labels: dict[str, list[Label]]) -> tuple[Label, ...]:
    """Those of an image's own name (``shot.1`` of ``shot.1.png``), else of its sample (``shot``)."""
    stem = inner.rpartition(".")[0]
    folder, slash, base = stem.rpartition("/")
    found = labels.get(stem) or labels.get(folder + slash + base.partition(".")[0])
    return tuple(found or [None] * len(LABEL_KINDS))


def _label(kind: str, content: bytes, where: str) -> Label:
    """A class number, the name of a class, or None of an entry that holds neither."""
    text = content.decode("utf-8", "replace").strip()
    if kind == ".cls" and not text:
        raise DataError(f"{where} must hold a class: a name, or a whole number >= 0, got nothing.")
    if kind == ".json":
        text = _class_in_json(text)
    if _NUMBER.fullmatch(text):
        number = text.removesuffix(".0")
        if number.isascii() and number.isdecimal() and len(number) < 19:
            return int(number)
        if kind == ".cls":
            raise DataError(f"{where} must hold a class: a name, or a whole number >= 0, got {text[:40]}.")
        return None
    return readable(text) or None


def _class_in_json(text: str) -> str:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if isinstance(value, dict):
        value = next((value[key] for key in _JSON_KEYS if key in value), None)
    return "" if value is None or isinstance(value, (bool, list, dict)) else str(value)


def labels_of(
    path: Path, entries: Sequence[Entry], folders: Sequence[str | None], wanted: Sequence[int], *, required: bool
) -> tuple[Tensor | None, list[str], int]:
    """One label for each wanted image, the names of all classes unless the labels are numbers, and how many classes.

    The first source is taken that labels every wanted image: entries ``.cls``, ``.json``, ``.txt``, or folders.
    ``entries`` and their ``folders`` are those of every split: a class has the same number in each. If ``required``, it
    is an error, and not a warning, that some have none.
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
