"""A limit on what the construction of modules may allocate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["Budget", "BudgetError"]

# The masks of a flow have a size quadratic in its latents, its weights one that is linear.
_ELEMENTS, _MORE_ELEMENTS = 256, 2**25
_TENSORS, _MORE_TENSORS = 64, 2_000


class BudgetError(ValueError):
    """Modules were to be larger by far than the weights for them."""


class Budget(TorchDispatchMode):
    """Raises :class:`BudgetError` inside the ``with`` before tensors are made that ``weights`` could never fill.

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
                raise BudgetError("it would be larger by far than the weights that are there for it")
        return func(*args, **kwargs)


def _size(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Number of elements that ``func`` would return."""
    args, kwargs = tree_map(_on_meta, (args, kwargs))
    known = {argument.name for argument in func._schema.arguments}
    options: dict[str, Any] = {"device": torch.device("meta"), "generator": None}
    kwargs |= {name: value for name, value in options.items() if name in known}
    try:
        outputs = func(*args, **kwargs)
    except (RuntimeError, NotImplementedError):  # the size depends on values, and is at most that of the inputs
        return 0
    return sum(output.numel() for output in tree_leaves(outputs) if isinstance(output, Tensor))


def _on_meta(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
