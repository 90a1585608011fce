"""Tensors as safetensors files and JSON with a checksum. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from vaelib._checks import ModelFileError
from vaelib._files import read_json, regular_size

__all__ = ["is_sealed", "read_object", "read_tensors", "sealed", "write_tensors"]

_SEAL = "sha256"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file.

    Returns:
        Its SHA-256.

    Raises:
        OSError: If it cannot be written, such as on a full disk.
        ValueError: If two tensors share memory: they would be two after loading.
    """
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    except RuntimeError as error:
        raise ValueError(f"Weights that share memory cannot be saved: {str(error).strip().splitlines()[0]}") from error
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_tensors(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; nothing of the file is looked at before its hash.

    Args:
        path: A regular file.
        sha256: What :func:`write_tensors` returned; None for a file of version 0.1, of which no hash was kept.

    Raises:
        OSError: If it cannot be read.
        ModelFileError: If it is another file, torn or no safetensors file.
    """
    try:
        regular_size(path)
    except ValueError as error:
        raise ModelFileError(str(error)) from error
    content = path.read_bytes()  # read once, and not mapped: what is hashed is what is loaded
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise ModelFileError(f"{path} is torn or foreign: its SHA-256 is not that of the file that was saved.")
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelFileError(f"{path} is torn or no safetensors file: {error!r:.200}.") from error


def sealed(content: dict[str, Any]) -> str:
    """JSON text of ``content`` and a checksum of it; spaces and the order of keys do not matter."""
    plain = json.loads(json.dumps(content))
    return json.dumps({**plain, _SEAL: _checksum(plain)}, indent=2) + "\n"


def is_sealed(content: dict[str, Any]) -> bool:
    """Whether ``content`` is what :func:`sealed` was given."""
    plain = {name: value for name, value in content.items() if name != _SEAL}
    return content.get(_SEAL) == _checksum(plain)


def read_object(path: Path, limit: int) -> dict[str, Any]:
    """A JSON object of at most ``limit`` bytes.

    Raises:
        OSError: If it cannot be read.
        ModelFileError: If it is anything else.
    """
    try:
        content = read_json(path, limit)
    except ValueError as error:
        raise ModelFileError(str(error)) from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} must hold a JSON object, got {type(content).__name__!r}.")
    return content


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
