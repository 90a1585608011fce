"""Tensors as safetensors files, JSON with a checksum, and a limit on what is built for them. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vaelib._checks import ModelFileError
from vaelib._files import read_json, regular_size, sha256_of

__all__ = ["Budget", "is_sealed", "read_object", "read_tensors", "sealed", "write_tensors"]

_SEAL = "sha256"

# The masks of a flow have a size quadratic in its latents, its weights one that is linear.
_ELEMENTS, _MORE_ELEMENTS = 256, 2**25
_TENSORS, _MORE_TENSORS = 64, 2_000


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
    return sha256_of(path)


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


class Budget(TorchDispatchMode):
    """Raises ``ValueError`` inside the ``with`` before tensors are made that ``weights`` could never fill.

    Sizes are computed on torch's meta device, so nothing is allocated for a size that is refused.

    Args:
        weights: The tensors that the modules will get.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._elements = _ELEMENTS * sum(tensor.numel() for tensor in weights.values()) + _MORE_ELEMENTS
        self._tensors = _TENSORS * len(weights) + _MORE_TENSORS

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func``, after its outputs are paid for; those that share memory with an input are free."""
        kwargs = kwargs or {}
        if any(output.alias_info is None for output in func._schema.returns):
            self._elements -= _size(func, args, kwargs)
            self._tensors -= 1
            if self._elements < 0 or self._tensors < 0:
                raise ValueError("it would be larger by far than the weights that are there for it")
        return func(*args, **kwargs)


def _size(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Number of elements that ``func`` would return."""
    args, kwargs = tree_map_only(
        Tensor, lambda it: torch.empty_strided(it.size(), it.stride(), dtype=it.dtype, device="meta"), (args, kwargs)
    )
    known = {argument.name for argument in func._schema.arguments}
    options: dict[str, Any] = {"device": torch.device("meta"), "generator": None}
    kwargs |= {name: value for name, value in options.items() if name in known}
    try:
        outputs = func(*args, **kwargs)
    except (RuntimeError, NotImplementedError):  # the size depends on values, and is at most that of the inputs
        return 0
    return sum(output.numel() for output in tree_leaves(outputs) if isinstance(output, Tensor))
