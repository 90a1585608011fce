"""What tells one set of images from another, small enough for every checkpoint."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from vaelib._images import Batch, ImageSet
from vaelib.data import ImageStream
from vaelib.training.batches import first_batch

__all__ = ["FIRST_BATCH", "differences", "fingerprint", "marks_of"]

FIRST_BATCH = "first batch"
_MOST_BYTES = 2**28  # of images that are hashed: a quarter of a second
_MOST_FILES = 1000  # whose size is asked for, since a network file system answers slowly


def marks_of(name: str, data: Any, condition: Any = None) -> dict[str, Any] | None:
    """What a checkpoint keeps of ``train`` or ``val``, to refuse others; ``condition`` is the model's part, or None."""
    if data is None or isinstance(data, ImageSet):
        return None if data is None else fingerprint(data)
    return _fingerprint_of_loader(data, first_batch(name, data, torch.device("cpu"), condition))


def fingerprint(data: Any) -> dict[str, Any]:
    """Of images that can be had by number: how many, of what shape, and a hash.

    In memory the hash is of all bytes up to 256 MiB, of larger sets of evenly spaced images. Of a stream it is of the
    names of its files, the places of images in shards, and the sizes of up to 1,000 evenly spaced files.
    """
    marks: dict[str, Any] = {"images": len(data), "image_shape": list(data.image_shape)}
    marks |= {"dynamic": data.dynamic, "flip": data.flip}
    condition = getattr(data, "condition", None)
    marks |= {} if condition is None else {"condition": _hash_of(condition)}
    if isinstance(data, ImageStream):
        return marks | {"files": _hash_of_files(data)}
    return marks | {"dtype": str(data.images.dtype), "contents": _hash_of(data.images)}


def _fingerprint_of_loader(loader: Any, first: Batch) -> dict[str, Any]:
    """Of somebody else's loader, whose ``first`` batch need not be the same each time.

    Images are hashed where the loader's set is a ``TensorDataset`` or a ``Subset`` of one.
    """
    marks: dict[str, Any] = {
        "batches": len(loader),
        "image_shape": list(first.x.shape[1:]),
        "dtype": str(first.x.dtype),
    }
    dataset: Any = getattr(loader, "dataset", None)
    if hasattr(dataset, "__len__"):
        marks["images"] = len(dataset)
    contents = _contents_of(dataset)
    marks |= {} if contents is None else {"contents": contents}
    return marks | {FIRST_BATCH: "".join(_hash_of(part) for part in first if part is not None)}


def differences(kept: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of the marks that both have and that differ, with their values."""
    return [
        f"{name} {kept[name]} there, {value} here"
        for name, value in found.items()
        if name in kept and kept[name] != value
    ]


def _contents_of(dataset: Any) -> str | None:
    """The hash of the images of a ``TensorDataset``, or of a ``Subset`` of it; None of all else."""
    if isinstance(dataset, TensorDataset):
        return _hash_of(dataset.tensors[0])
    whole = _contents_of(dataset.dataset) if isinstance(dataset, Subset) else None
    return None if whole is None else _hash_of(torch.as_tensor(dataset.indices)) + whole


def _hash_of(rows: Tensor) -> str:
    digest = hashlib.sha256()
    stride = -(-rows.nbytes // _MOST_BYTES) or 1
    for piece in rows[::stride].split(1024):
        digest.update(piece.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _hash_of_files(data: ImageStream) -> str:
    places = data.listing.places
    digest = hashlib.sha256(places.tobytes())
    files = [data.listing.files[number] for number in np.unique(places["file"])]
    root = os.path.commonpath([os.path.dirname(file) for file in files])
    for file in files:
        digest.update(os.path.relpath(file, root).encode(errors="surrogateescape") + b"\0")
    for file in files[:: -(-len(files) // _MOST_FILES)]:
        digest.update(b"%d\0" % os.path.getsize(file))
    return digest.hexdigest()[:16]
