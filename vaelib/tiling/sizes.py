"""Whether a network computes the same at every size. Torch traces at one, and the size is a number in that graph."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vaelib.tiling.field import Refusal, field_and_calls
from vaelib.tiling.traces import Called, calls_of, remembered, traced

__all__ = ["size_dependence"]

_calls = remembered(lambda network, examples: calls_of(traced(network, examples)))


def size_dependence(
    network: nn.Module,
    examples: Sequence[Tensor],
    sizes: Sequence[Sequence[int]],
    usual: Sequence[Called] | None = None,
) -> Refusal | None:
    """The first layer that computes in another way, or with other numbers, for a map of one of ``sizes``.

    Args:
        network: Network, as :func:`receptive_field` takes it.
        examples: Its inputs, as :func:`receptive_field` takes them.
        sizes: Height and width of other inputs.
        usual: Calls for the examples, if they are known.

    Examples:
        >>> import torch
        >>> class Gain(nn.Module):
        ...     def forward(self, x):
        ...         return x * x.shape[-1]
        >>> str(size_dependence(nn.Sequential(Gain()), [torch.zeros(1, 1, 32, 32)], [(8, 16)]))
        '`0` (Gain) has other numbers for maps of 8 x 16 than for 32 x 32'
        >>> size_dependence(nn.Conv2d(1, 1, 3), [torch.zeros(1, 1, 32, 32)], [(8, 16)]) is None
        True
    """
    first, *more = examples
    usual = field_and_calls(network, examples)[1] if usual is None else usual
    for height, width in sizes:
        other = _calls(network, [first.new_zeros(*first.shape[:2], height, width), *more])
        words = f"for maps of {height} x {width} than for {first.shape[2]} x {first.shape[3]}"
        for one, same in zip(usual, other, strict=False):
            if one.name != same.name:
                return Refusal(one.layer, f"calls other operators {words}", is_branch=True)
            if one.numbers != same.numbers:
                # Whatever else reads a size can do so in a graph of any size too.
                is_branch = "pool" in one.name or "conv" in one.name
                return Refusal(one.layer, f"has other numbers {words}", is_branch)
        if len(usual) != len(other):
            return Refusal(f"`{type(network).__name__}`", f"calls other operators {words}", is_branch=True)
    return None
