"""Images from ``.npy``, ``.npz`` and ``.pt`` files: plain arrays and tensors alone.

numpy reads without pickle, and ``.pt`` files go through torch's reader of weights, which refuses every other object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaelib._checks import DataError
from vaelib.data.checks import are_attributes, class_names_of, is_text
from vaelib.data.dataset import ImageDataset, changed, concatenated, resized
from vaelib.data.entries import open_entries
from vaelib.data.folders import warn
from vaelib.data.guard import check_memory
from vaelib.data.ranges import ValueRange, as_images
from vaelib.data.sources import canonical_split, check_split, holdout, in_order

_IMAGE_KEYS = ("images", "image", "imgs", "x", "data", "arr_0", "")
_LABEL_KEYS = ("labels", "label", "targets", "y")
_FACTOR_KEYS = ("latents_classes",)
_DSPRITES = ("color", "shape", "scale", "orientation", "position_x", "position_y")
"""What the columns of dSprites mean; the file has it in a pickled entry, which is not read."""

_MOST_BANDS = 16
"""Images of more channels (satellites have 13) are taken for something else, unless ``channels_last`` is given."""

Entries = Mapping[str, Callable[[], Any]]


class _Names(NamedTuple):
    """The entries of one split."""

    images: str
    labels: str | None
    factors: str | None


def load_array(
    path: Path,
    split: str,
    size: tuple[int, int] | None,
    value_range: ValueRange | None,
    *,
    channels_last: bool | None,
    images_key: str | None,
) -> ImageDataset:
    """The images of a file; where the file itself has no splits, a tenth of them is the test split.

    A single array or tensor is the images. Of several, ``images`` (or ``image``, ``imgs``, ``x``, ``data``,
    ``arr_0``, or ``images_key``) are the images and ``labels`` (or ``label``, ``targets``, ``y``) the classes; with a
    split before or after the name (``train_images``, ``x_test``) they are split. dSprites' ``latents_classes`` become
    factors. Entries of a ``.npz`` file that are not used are not read.
    """
    entries = open_entries(path)
    by_split = _by_split(path, entries, images_key)
    splits = in_order(by_split)
    check_split(path, split, splits)
    wanted = [by_split[name] for name in splits or (None,) if name is None or split in (name, "all")]
    labels, class_names = _labels(entries, wanted, by_split.values())
    factors, sizes = _factors(path, entries, by_split.values())
    parts = []
    for names in wanted:
        where = f"{path} ({names.images})" if names.images else str(path)
        images = channels_first(where, _array(where, entries[names.images]()), channels_last)
        others = (_array(str(path), entries[other.images]()) for other in by_split.values() if other is not names)
        images = as_images(where, images, value_range, others)
        parts.append(_dataset(path, images, labels.get(names.images), class_names, factors.get(names.images, {})))
    if len({part.labels is None for part in parts}) > 1:
        warn(f"The labels of {path} were skipped, since not every split has them.")
    try:
        dataset = changed(concatenated(parts), factor_sizes=sizes)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if not splits and split != "all":
        dataset = dataset.subset(holdout(len(dataset), split))
    return dataset if size is None else resized(dataset, size)


def array_splits(path: Path, images_key: str | None = None) -> tuple[str, ...]:
    """The splits that the names in a file mean, such as ``x_train`` and ``x_val``."""
    return in_order(_by_split(path, open_entries(path), images_key))


def _by_split(path: Path, entries: Entries, images_key: str | None) -> dict[str | None, _Names]:
    """The names of entries by their split; by None where the names say none."""
    found: dict[str | None, dict[str, list[str]]] = {}
    for entry in entries:
        split, key = _split_and_key(entry)
        found.setdefault(split, {}).setdefault(key, []).append(entry)
    keys = _IMAGE_KEYS if images_key is None else (images_key.lower(),)
    if images_key is not None and images_key in entries:  # this one alone, whatever split its name means
        split, _ = _split_and_key(images_key)
        return {None: _names(found[split], images_key)}
    candidates = {split: [name for key in keys for name in of_key.get(key, [])] for split, of_key in found.items()}
    candidates = {split: names for split, names in candidates.items() if names}
    listed = (", ".join(entries) or "none") if "" not in entries else "one array without a name"
    if not candidates and images_key is None and len(entries) == 1:
        return {None: _names({}, next(iter(entries)))}
    if not candidates:
        wanted = f"one of {', '.join(_IMAGE_KEYS[:-1])}" if images_key is None else repr(images_key)
        raise DataError(f"{path} must hold {wanted}, got {listed}; name the images by `images_key`.")
    if (None in candidates and len(candidates) > 1) or any(len(names) > 1 for names in candidates.values()):
        raise DataError(f"{path} has several entries that may be the images; choose by `images_key` among {listed}.")
    return {split: _names(found[split], names[0]) for split, names in candidates.items()}


def _split_and_key(entry: str) -> tuple[str | None, str]:
    """The split and the kind of an entry: ``("val", "x")`` of ``x_valid``, ``("test", "y")`` of ``test_y``."""
    name = entry.lower()
    head, _, rest = name.partition("_")
    if canonical_split(head) is not None:
        return canonical_split(head), rest
    rest, _, tail = name.rpartition("_")
    return (canonical_split(tail), rest) if rest and canonical_split(tail) is not None else (None, name)


def _names(of_key: Mapping[str, list[str]], images: str) -> _Names:
    labels = next((of_key[key][0] for key in _LABEL_KEYS if key in of_key and of_key[key][0] != images), None)
    return _Names(images, labels, next((of_key[key][0] for key in _FACTOR_KEYS if key in of_key), None))


def _array(name: str, values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = (values.float() if values.dtype == torch.bfloat16 else values).resolve_conj().resolve_neg().numpy()
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "buif":
        hint = " Save tensors: {'images': ..., 'labels': ...}." if isinstance(values, tuple | list | Mapping) else ""
        raise DataError(
            f"{name} must hold numeric arrays, got {getattr(values, 'dtype', type(values).__name__)}.{hint}"
        )
    if values.size == 0:
        raise DataError(f"`images` must hold at least one pixel, {name} has shape {values.shape}.")
    return values


def _labels(
    entries: Entries, wanted: Iterable[_Names], every: Iterable[_Names]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The labels of the wanted splits by the name of their images, and the names of the classes of every split."""
    labels = {names.images: entries[names.labels]() for names in wanted if names.labels is not None}
    if not any(is_text(values) for values in labels.values()):
        return labels, ()
    return labels, class_names_of(*(entries[names.labels]() for names in every if names.labels is not None))


def _factors(
    path: Path, entries: Entries, every: Iterable[_Names]
) -> tuple[dict[str, dict[str, Any]], tuple[int, ...]]:
    """The factors that vary, as arguments of :class:`ImageDataset` by the name of the images, and their sizes.

    Which vary, and how many values each has, is decided over all splits; of dSprites the shape is the class.
    """
    tables = {names: np.asarray(entries[names.factors]()) for names in every if names.factors is not None}
    for names, values in tables.items():
        if values.ndim != 2 or values.dtype.kind not in "iu":
            found = f"{values.dtype} {values.shape}"
            raise DataError(f"{path}: `{names.factors}` must be whole numbers (N, F), got {found}.")
    if len({values.shape[1] for values in tables.values()}) > 1:
        raise DataError(f"{path}: the factors must have as many columns in every split.")
    if not any(len(values) for values in tables.values()):
        return {}, ()
    whole = np.concatenate(list(tables.values()))
    largest, columns = whole.max(0), whole.shape[1]
    titles = _DSPRITES if columns == len(_DSPRITES) else [f"factor_{i}" for i in range(columns)]
    varying = np.flatnonzero(whole.min(0) < largest)
    arguments: dict[str, dict[str, Any]] = {}
    for names, values in tables.items():
        factors = torch.from_numpy(values[:, varying].astype(np.int64))
        arguments[names.images] = {"factors": factors, "factor_names": [titles[i] for i in varying]}
        if titles is _DSPRITES and names.labels is None:
            arguments[names.images]["labels"] = values[:, _DSPRITES.index("shape")]
    return arguments, tuple((largest[varying] + 1).tolist())


def _dataset(
    path: Path, images: np.ndarray, labels: Any, class_names: tuple[str, ...], more: dict[str, Any]
) -> ImageDataset:
    try:
        if labels is not None and are_attributes(labels, len(images)):
            warn(
                f"The labels of {path} were skipped: shape {np.shape(labels)} is attributes of an image, not one class."
            )
            labels = None
        return ImageDataset(_tensor(images), class_names=class_names, **({"labels": labels} | more))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: {error}") from error


def _tensor(images: np.ndarray) -> Tensor:
    """A tensor that shares the array's memory where torch can; a mapped file stays mapped."""
    dtype = np.float32 if images.dtype.itemsize > 8 else images.dtype.newbyteorder("=")
    if not images.flags.c_contiguous or dtype != images.dtype:
        check_memory(
            "A copy of the images in another order", images.size * np.dtype(dtype).itemsize, "give fewer images"
        )
    return torch.from_numpy(np.ascontiguousarray(images, dtype=dtype))


def channels_first(name: str, values: np.ndarray, channels_last: bool | None) -> np.ndarray:
    """A view ``(N, C, H, W)`` of images ``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)``.

    Where ``channels_last`` is None, the shape decides: channels are 1, 3, or at most 16 and fewer than either of the
    other two. A shape that fits both ways or neither is an error; more than 3 channels last are said in a warning.
    """
    if values.ndim == 3:
        if channels_last:
            raise DataError(f"`channels_last` needs 4 axes (N, H, W, C), {name} has shape {values.shape}.")
        if channels_last is None:
            _check_grey(name, values.shape)
        return values[:, None]
    if values.ndim != 4:
        hint = " Reshape rows to images first." if values.ndim == 2 else ""
        raise DataError(
            f"`images` must have shape (N, H, W), (N, C, H, W) or (N, H, W, C), {name} has {values.shape}.{hint}"
        )
    if channels_last is None:
        channels_last = _is_channels_last(name, values.shape)
    return np.moveaxis(values, 3, 1) if channels_last else values


def _check_grey(name: str, shape: Sequence[int]) -> None:
    """Raise or warn where three axes are hardly ``(N, H, W)``."""
    first, second, third = shape
    if third <= 4 and third < min(first, second):
        raise DataError(
            f"{name} of shape {shape} looks like one image (H, W, C), not like {first} of {second}x{third} pixels;"
            f" save it as (1, {first}, {second}, {third}), or give channels_last=False if it is (N, H, W)."
        )
    if first == second != third:
        raise DataError(
            f"{name} of shape {shape} looks like (H, W, N), the order of MATLAB; transpose it to"
            f" ({third}, {first}, {second}), or give channels_last=False if it is (N, H, W)."
        )
    if first == 3 and min(second, third) >= 16:
        warn(
            f"{name} of shape {shape} is read as 3 grey images: give channels_last=False to confirm it, or save one"
            f" colour image as (1, 3, {second}, {third})."
        )


def _is_channels_last(name: str, shape: Sequence[int]) -> bool:
    _, second, third, last = shape
    may_be_first = _may_be_channels(second, third, last)
    may_be_last = _may_be_channels(last, second, third)
    if max(second, third, last) == 1:
        return False
    if may_be_first == may_be_last:
        raise DataError(
            f"`channels_last` must be given for {name}: of its shape {shape}, {second} or {last} may be the channels."
            " False means (N, C, H, W), True (N, H, W, C)."
        )
    if may_be_last and last not in (1, 3):
        warn(
            f"{name} of shape {shape} is read as {second}x{third} images of {last} channels, which come last."
            " Give channels_last=True to confirm it, False for (N, C, H, W)."
        )
    return may_be_last


def _may_be_channels(size: int, *others: int) -> bool:
    return size in (1, 3) or (size <= _MOST_BANDS and size < min(others))
