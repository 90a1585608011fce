"""Array files as named entries that are read when they are asked for, each after its header has been checked."""

from __future__ import annotations

import functools
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from vaelib._checks import DataError
from vaelib.data.guard import check_expansion, check_memory, check_plain_tensor, regular_file

ARRAY_SUFFIXES = (".npy", ".npz", ".pt")
# Larger .npy files are mapped, so that only what is used is read; smaller ones are read, so that they may be replaced.
MAPPED_FROM = 2**28
_AS_NPY = "save it as .npy, which is mapped instead of read"


def open_entries(path: Path) -> dict[str, Callable[[], Any]]:
    """What reads each array of a file, by its name; the name of a lone array is empty."""
    regular_file(path)
    readers = {".npy": _npy, ".npz": _npz, ".pt": _pt}
    return _guarded(path, readers[path.suffix.lower()], path)


def _guarded(path: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except DataError:
        raise
    except (ValueError, EOFError, OSError, RuntimeError, KeyError, MemoryError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable {path.suffix} file of plain arrays: {error}") from error
    except Exception as error:  # torch.load reports refused objects by an exception of the pickle module
        refused = re.search(r"Unsupported[^.]*?: (?:GLOBAL )?([\w.]+)", str(error))  # its remedy, to trust all, is none
        if refused is None:
            raise DataError(f"{path} is not a readable .pt file: it is damaged, or holds other objects.") from error
        raise DataError(f"{path} holds more than plain tensors: an object of {refused[1]}.") from error


def _npy(path: Path) -> dict[str, Callable[[], Any]]:
    return {"": functools.partial(_guarded, path, _read_npy, path)}


def _read_npy(path: Path) -> np.ndarray:
    size = path.stat().st_size
    with path.open("rb") as stream:
        _check_header(str(path), stream, size)
        if size < MAPPED_FROM:
            stream.seek(0)
            return np.load(stream, allow_pickle=False)
    return np.load(path, mmap_mode="c", allow_pickle=False)  # "c": changes stay in memory


def _npz(path: Path) -> dict[str, Callable[[], Any]]:
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
    return {m.removesuffix(".npy"): functools.partial(_guarded, path, _read_member, path, m) for m in members}


def _read_member(path: Path, member: str) -> np.ndarray:
    name = f"{path} ({member.removesuffix('.npy')})"
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{name} is compressed as numpy never does; save it by numpy.savez_compressed.")
        check_expansion(name, info.file_size, info.compress_size, _AS_NPY)
        with archive.open(info) as stream:
            _check_header(name, stream, info.file_size)
        check_memory(name, info.file_size, _AS_NPY)
        with archive.open(info) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)


def _check_header(name: str, stream: IO[bytes], size: int) -> None:
    """Raise unless the header of a .npy file of ``size`` bytes announces just as many."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise DataError(f"{name} must be of version 1 or 2 of the .npy format, got {version}.")
    shape, _, dtype = readers[version](stream)
    if dtype.hasobject:
        raise DataError(
            f"{name} holds pickled Python objects, which are never read; save arrays of numbers or strings."
        )
    announced = math.prod(shape) * dtype.itemsize
    if announced != size - stream.tell():
        raise DataError(
            f"{name} is damaged: its header announces {announced} bytes for shape {shape} and dtype {dtype}, and"
            f" {size - stream.tell()} follow."
        )


def _pt(path: Path) -> dict[str, Callable[[], Any]]:
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        check_expansion(str(path), size, path.stat().st_size, "save it by torch.save")
    check_memory(str(path), size, "save the images as .npy, which is mapped instead of read")
    content = torch.load(path, map_location="cpu", weights_only=True)
    entries = {str(k): v for k, v in content.items()} if isinstance(content, Mapping) else {"": content}
    return {
        key: functools.partial(_guarded, path, _plain, f"{path} ({key})" if key else str(path), value)
        for key, value in entries.items()
    }


def _plain(name: str, value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    try:
        check_plain_tensor(name, value)
    except TypeError as error:
        raise DataError(str(error)) from error
    value = value.detach()
    stored = value.untyped_storage().nbytes()
    check_expansion(name, value.numel() * value.element_size(), stored, "save a tensor with values of its own")
    return value
