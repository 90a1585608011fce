"""Gradients through a choice of code: the forward pass returns the code's vector itself, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["GRADIENTS", "rotated", "straight_through"]

_TINY = 1e-6


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(rows: Tensor, vectors: Tensor) -> Tensor:
        return vectors.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(rows: Tensor, vectors: Tensor) -> Tensor:
        return vectors.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        rows, vectors = ctx.saved_tensors
        length, wanted = _length(rows), _length(vectors)
        row, vector = rows / length, vectors / wanted
        between = row + vector
        middle = between / _length(between)

        def along(direction: Tensor) -> Tensor:
            return (direction * gradient).sum(-1, keepdim=True)

        turned = gradient - 2 * middle * along(middle) + 2 * row * along(vector)
        # Between a vector and its opposite, or where one is zero, there is no one rotation.
        known = (length > _TINY) & (wanted > _TINY) & (_length(between) > _TINY)
        return torch.where(known, turned * wanted / length, gradient), None


def _length(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)


def straight_through(rows: Tensor, vectors: Tensor) -> Tensor:
    """``vectors``, with the gradient of the result handed on to ``rows`` as it is.

    Examples:
        >>> rows = torch.tensor([[0.9, 0.2]], requires_grad=True)
        >>> (straight_through(rows, torch.tensor([[1.0, 0.0]])) * torch.tensor([3.0, 5.0])).sum().backward()
        >>> rows.grad
        tensor([[3., 5.]])

    References:
        Bengio et al. (2013), section 5, https://arxiv.org/abs/1308.3432; van den Oord et al. (2017),
        https://arxiv.org/abs/1711.00937
    """
    found: Tensor = _StraightThrough.apply(rows, vectors)
    return found


def rotated(rows: Tensor, vectors: Tensor) -> Tensor:
    """``vectors`` as the rotation and rescaling that takes each of ``rows`` ``(..., C)`` there, held constant.

    The gradient is turned back and scaled by ``|vector| / |row|``; where the rotation is not unique (a zero vector, or
    opposite ones) it is that of :func:`straight_through`.

    Examples:
        >>> rows = torch.tensor([[2.0, 0.0]], requires_grad=True)
        >>> (rotated(rows, torch.tensor([[0.0, 1.0]])) * torch.tensor([3.0, 5.0])).sum().backward()
        >>> rows.grad  # a quarter turn back, half as long
        tensor([[ 2.5000, -1.5000]])

    References:
        Fifty et al. (2024), Restructuring vector quantization with the rotation trick, section 4.
        https://arxiv.org/abs/2410.06424
    """
    found: Tensor = _Rotated.apply(rows, vectors)
    return found


GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "straight_through": straight_through,
    "rotation": rotated,
}
