"""What checkpoints of version 0.1 hold in another form."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

__all__ = ["by_parameter"]


def by_parameter(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimiser by parameter: in version 0.1 the weights of one dtype were one tensor.

    They lay in it as they lie in memory, one after the other, each from a multiple of 16 numbers on.
    """
    numbers = itertools.count()
    groups = [[(next(numbers), weight) for weight in group["params"]] for group in optimizer.param_groups]
    if _is_by_parameter(state, groups):
        return state
    moments: dict[int, Any] = {}
    for kept, group in zip(state["param_groups"], groups, strict=True):
        trained = sorted((pair for pair in group if pair[1].requires_grad), key=lambda pair: str(pair[1].dtype))
        alike = itertools.groupby(trained, key=lambda pair: pair[1].dtype)
        for whole, (_, pairs) in zip(kept["params"], alike, strict=True):
            start = 0
            for number, weight in pairs:
                moments[number] = {
                    name: value.as_strided(weight.shape, weight.stride(), start) if value.ndim else value.clone()
                    for name, value in state["state"].get(whole, {}).items()
                }
                start += -(-weight.numel() // 16) * 16
    numbered = ([number for number, _ in group] for group in groups)
    return {
        "state": moments,
        "param_groups": [kept | {"params": own} for kept, own in zip(state["param_groups"], numbered, strict=True)],
    }


def _is_by_parameter(state: dict[str, Any], groups: list[list[tuple[int, nn.Parameter]]]) -> bool:
    if [len(kept["params"]) for kept in state["param_groups"]] != [len(group) for group in groups]:
        return False
    averages = [(weight, state["state"].get(number, {}).get("exp_avg")) for group in groups for number, weight in group]
    return all(kept is None or kept.ndim != 1 or kept.shape == weight.shape for weight, kept in averages)
