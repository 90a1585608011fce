"""Limits for files from strangers, checked before anything is read or decoded: kind of file, memory, kind of tensor."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import torch
from torch import Tensor

from vaelib._checks import DataError

# Decoding 8192 x 8192 takes 0.5 to 0.9 GiB of memory, of WebP and JPEG 2000 1.2 GiB (measured with Pillow 13); with
# the 0.8 GiB of torch that is below 2 GiB. Images of 64 megapixels fit (9248 x 6944); PIL itself stops at 179 million.
MAX_PIXELS = 2**26
# What a compressed file may hold. dSprites, the largest set that is commonly shared as one compressed file, has
# 2.8 GiB; deflate makes 1,000 bytes out of one, so that 3 MB can ask for as much.
MAX_EXPANDED = 3 * 2**30
# Files that expand no more than this are no bombs, whatever their size.
_FAIR_EXPANSION = 8
# Of the free memory, since batches, the model and the rest of the process need some.
_SHARE_OF_FREE_MEMORY = 0.8


def regular_file(path: Path) -> Path:
    """``path`` if it is a file that ends; opening a pipe or a device can wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(
            f"{path} is not a regular file, but a {'folder' if path.is_dir() else 'pipe, socket or device'}."
        )
    return path


def check_pixels(size: tuple[int, int]) -> None:
    """Raise ``ValueError`` if an image of this width and height takes too much memory to decode."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise ValueError(f"an image may have at most {MAX_PIXELS:,} pixels, this has {width} x {height}")


def check_expansion(what: str, size: int, compressed: int, remedy: str) -> None:
    """Raise :class:`DataError` if ``compressed`` bytes would become too many."""
    if size > max(MAX_EXPANDED, _FAIR_EXPANSION * compressed):
        raise DataError(
            f"{what} would expand from {_readable(compressed)} to {_readable(size)}, above the limit of"
            f" {_readable(MAX_EXPANDED)} for compressed files; {remedy}."
        )


def check_memory(what: str, size: int, remedy: str) -> None:
    """Raise :class:`DataError` if ``size`` bytes do not fit into the memory that is free."""
    free = _free_memory()
    if free is not None and size > _SHARE_OF_FREE_MEMORY * free:
        raise DataError(f"{what} would take {_readable(size)} of the {_readable(free)} of free memory; {remedy}.")


def check_plain_tensor(name: str, tensor: Tensor) -> None:
    """Raise ``TypeError`` unless a tensor has its values in memory, one after the other, in a dtype with arithmetic."""
    kinds = {
        "nested": tensor.is_nested,
        "sparse": not tensor.is_nested and tensor.layout != torch.strided,
        "on the meta device, without values": tensor.is_meta,
        "quantized": tensor.is_quantized,
    }
    kind = next((kind for kind, holds in kinds.items() if holds), None)
    if kind is None and (tensor.dtype.itemsize == 1) and tensor.is_floating_point():
        kind = f"of dtype {tensor.dtype}"
    if kind is not None:
        raise TypeError(f"`{name}` must be a dense tensor of a common dtype, got one that is {kind}.")


def _free_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _readable(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
