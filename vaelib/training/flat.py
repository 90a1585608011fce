"""Weights and gradients of a model, each in one piece of memory.

An update of many small tensors is mostly overhead; Adam and the norm of the gradients do not care where a weight lies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["flattened", "unflattened"]

_ALIGNMENT = 16  # numbers, for kernels that read 64 bytes at once


def flattened(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """One parameter per dtype, of which the trained ones among ``parameters``, and their gradients, become views."""
    trained = sorted((p for p in parameters if p.requires_grad), key=lambda parameter: str(parameter.dtype))
    return [_flat(list(group)) for _, group in itertools.groupby(trained, key=lambda parameter: parameter.dtype)]


def unflattened(model: nn.Module) -> None:
    """Give every parameter memory of its own again, and no gradient."""
    for parameter in model.parameters():
        parameter.data, parameter.grad = parameter.data.clone(), None


def _flat(parameters: list[nn.Parameter]) -> nn.Parameter:
    sizes = [-(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT for parameter in parameters]
    whole = nn.Parameter(parameters[0].new_zeros(sum(sizes)))
    whole.grad = torch.zeros_like(whole)
    for parameter, start in zip(parameters, itertools.accumulate(sizes, initial=0), strict=False):
        weights = _view(whole.data, parameter, start).copy_(parameter.data)
        parameter.data, parameter.grad = weights, _view(whole.grad, parameter, start)
    return whole


def _view(memory: Tensor, parameter: Tensor, start: int) -> Tensor:
    """As the parameter lies in memory: channels last stay so."""
    return memory.as_strided(parameter.shape, parameter.stride(), start)
