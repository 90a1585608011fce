"""Whether a network computes the same at every size. Torch traces at one, and the size is a number in that graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vaelib.tiling.field import Refusal, layer_of, traced

__all__ = ["size_dependence"]

_OF_SIZES = {
    *("_reshape_alias", "_unsafe_view", "expand", "reshape", "view", "upsample_bilinear2d", "upsample_nearest2d"),
    *("_assert_tensor_metadata", "new_ones", "new_zeros", "ones", "zeros"),
}
"""Operators whose whole numbers are sizes of what they give."""


def size_dependence(network: nn.Module, examples: Sequence[Tensor], sizes: Sequence[Sequence[int]]) -> Refusal | None:
    """The first layer that computes in another way, or with other numbers, for a map of one of ``sizes``.

    Args:
        network: Network, as :func:`receptive_field` takes it.
        examples: Its inputs, as :func:`receptive_field` takes them.
        sizes: Height and width of other inputs.

    Examples:
        >>> class Gain(nn.Module):
        ...     def forward(self, x):
        ...         return x * x.shape[-1]
        >>> str(size_dependence(nn.Sequential(Gain()), [torch.zeros(1, 1, 32, 32)], [(8, 16)]))
        '`0` (Gain) has other numbers for maps of 8 x 16 than for 32 x 32'
        >>> size_dependence(nn.Conv2d(1, 1, 3), [torch.zeros(1, 1, 32, 32)], [(8, 16)]) is None
        True
    """
    first, *more = examples
    usual = list(_made(network, examples))
    for height, width in sizes:
        other = list(_made(network, [first.new_zeros(*first.shape[:2], height, width), *more]))
        words = f"for maps of {height} x {width} than for {first.shape[2]} x {first.shape[3]}"
        for (node, name, numbers), (_, other_name, other_numbers) in zip(usual, other, strict=False):
            if name != other_name:
                return Refusal(layer_of(node), f"calls other operators {words}", is_branch=True)
            if numbers != other_numbers:
                # Whatever else reads a size can do so in a graph of any size too.
                return Refusal(layer_of(node), f"has other numbers {words}", is_branch="pool" in name or "conv" in name)
        if len(usual) != len(other):
            return Refusal(f"`{type(network).__name__}`", f"calls other operators {words}", is_branch=True)
    return None


def _made(network: nn.Module, examples: Sequence[Tensor]) -> Iterator[tuple[Any, str, list[Any]]]:
    """Each call of the graph: its node, its operator, and its numbers that are no sizes."""
    for node in traced(network, examples).graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            name = node.target._schema.name.removeprefix("aten::")
            numbers = [leaf for leaf in tree_leaves((node.args, node.kwargs)) if not isinstance(leaf, torch.fx.Node)]
            if name == "slice":
                numbers = _cut(*node.args)
            elif name in _OF_SIZES:
                numbers = [number for number in numbers if not isinstance(number, int)]
            yield node, name, numbers


def _cut(values: Any, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1) -> list[Any]:
    """What a slice leaves away at the end, in place of where that is."""
    size = values.meta["val"].shape[dim]
    return [dim, start, None if stop is None else min(stop - size if stop >= 0 else stop, 0) or None, step]
