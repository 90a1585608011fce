"""Images from ``.npy``, ``.npz`` and ``.pt`` files: plain arrays and tensors alone.

numpy reads without pickle, and ``.pt`` files go through torch's reader of weights, which refuses every other object.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaelib._checks import DataError
from vaelib.data.dataset import ImageDataset
from vaelib.data.derive import concatenated
from vaelib.data.listing import canonical_split, check_split, in_order

__all__ = ["ARRAY_SUFFIXES", "array_splits", "load_array"]

ARRAY_SUFFIXES = (".npy", ".npz", ".pt")
_IMAGE_KEYS = ("images", "x", "data", "arr_0")
_LABEL_KEYS = ("labels", "targets", "y")


def load_array(path: Path, split: str) -> tuple[ImageDataset, bool]:
    """The images of a file, and whether the file itself was split.

    A single array or tensor is the images. Of a mapping, ``images`` (or ``x``, ``data``, ``arr_0``) are the images and
    ``labels`` (or ``targets``, ``y``) the classes; with ``_train``, ``_val`` and ``_test`` after the names they are
    split. Images are ``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)``; channels last is assumed only where the
    last axis is 1 or 3 and the second is not.
    """
    content = _read(path)
    if not isinstance(content, Mapping):
        return _dataset(path, content, None), False
    entries = {str(key).lower(): value for key, value in content.items()}
    by_split = _splits_of(entries)
    splits = list(in_order(by_split))
    check_split(path, split, tuple(splits))
    if not splits:
        images = _first(entries, _IMAGE_KEYS, "")
        if images is None and len(entries) == 1:
            images = next(iter(entries.values()))
        if images is None:
            raise DataError(f"{path} must hold one of {', '.join(_IMAGE_KEYS)}, got {', '.join(entries)}.")
        return _dataset(path, images, _first(entries, _LABEL_KEYS, "")), False
    wanted = splits if split == "all" else [split]
    parts = [
        _dataset(path, _first(entries, _IMAGE_KEYS, by_split[s]), _first(entries, _LABEL_KEYS, by_split[s]))
        for s in wanted
    ]
    return concatenated(parts), True


def array_splits(path: Path) -> tuple[str, ...]:
    """The splits that the names in a file mean, such as ``x_train`` and ``x_val``."""
    if path.suffix == ".npy":
        return ()
    content = _read(path)
    return in_order(_splits_of(content)) if isinstance(content, Mapping) else ()


def _splits_of(entries: Iterable[Any]) -> dict[str, str]:
    """The ending of names by the split that it means: ``{"val": "_valid"}`` of ``x_valid``."""
    found = {}
    for entry in entries:
        key, _, ending = str(entry).lower().rpartition("_")
        split = canonical_split(ending)
        if key in _IMAGE_KEYS and split is not None:
            found[split] = f"_{ending}"
    return found


def _first(entries: Mapping[str, Any], names: Sequence[str], ending: str) -> Any:
    return next((entries[name + ending] for name in names if name + ending in entries), None)


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".pt":
            return torch.load(path, map_location="cpu", weights_only=True)
        with path.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            return dict(content) if isinstance(content, np.lib.npyio.NpzFile) else content
    except (ValueError, EOFError, OSError, RuntimeError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable {path.suffix} file of plain arrays: {error}") from error
    except Exception as error:  # torch.load reports refused objects by an exception of the pickle module
        raise DataError(f"{path} holds more than plain tensors: {error}") from error


def _dataset(path: Path, images: Any, labels: Any) -> ImageDataset:
    tensor = _tensor(path, images)
    if tensor.ndim == 3:
        tensor = tensor[:, None]
    if tensor.ndim == 4 and tensor.shape[3] in (1, 3) and tensor.shape[1] not in (1, 3):
        tensor = tensor.permute(0, 3, 1, 2).contiguous()
    if tensor.dtype == torch.bool:
        tensor = tensor.to(torch.uint8) * 255
    try:
        return ImageDataset(tensor, labels=None if labels is None else _tensor(path, labels).flatten().long())
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: {error}") from error


def _tensor(path: Path, values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values
    if isinstance(values, np.ndarray) and values.dtype.kind in "buif":
        return torch.from_numpy(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("=")))
    raise DataError(f"{path} must hold numeric arrays, got {getattr(values, 'dtype', type(values).__name__)}.")
