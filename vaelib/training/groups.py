"""Which weights the optimiser treats alike."""

from __future__ import annotations

from typing import Any

from torch import nn

from vaelib._checks import check_float, shown

__all__ = ["parameter_groups"]


def parameter_groups(module: Any) -> list[dict[str, Any]]:
    """The groups that the objective of ``module`` asks for, behind one of all weights that are in none of them.

    Args:
        module: The model in its objective.

    Raises:
        TypeError: If a group is no dict with ``params``.
        ValueError: If a weight is in two groups or is not trained here, or an ``lr_scale`` is negative.
    """
    asked = getattr(getattr(module, "objective", None), "parameter_groups", None)
    groups = [] if asked is None else [_checked(group) for group in asked(module.model)]
    known, taken = {id(weight) for weight in module.parameters()}, set[int]()
    for group in groups:
        own = [id(weight) for weight in group["params"]]
        if len({*own}) < len(own) or taken & {*own} or not known >= {*own}:
            raise ValueError("`parameter_groups` must give each weight of the model or the objective at most once.")
        taken |= {*own}
    rest = [weight for weight in module.parameters() if id(weight) not in taken]
    return [group for group in ({"params": rest}, *groups) if any(weight.requires_grad for weight in group["params"])]


def _checked(group: Any) -> dict[str, Any]:
    if not isinstance(group, dict) or "params" not in group:
        raise TypeError(f"`parameter_groups` must give dicts with `params`, got {shown(group)}.")
    weights = list(group["params"])
    for weight in weights:
        if not isinstance(weight, nn.Parameter):
            raise TypeError(f"`parameter_groups` must give parameters, got {shown(weight)}.")
    check_float("lr_scale", group.get("lr_scale", 1.0), 0.0)
    return {**group, "params": weights}
