"""Codes that rounding may decide: the only ones in which a graph may differ from torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vaelib.export.graphs import Graph

__all__ = ["ROUNDINGS", "in_double", "near_ties"]

ROUNDINGS = 8.0
"""How many times torch's own distance from float64 a graph may be away."""
_LEAST_MARGIN = 1e-6
"""Of the largest margin of a batch: what is less is a near-tie however well torch rounds."""


def near_ties(graph: Graph, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Where another rounding may give another code, ``(B, N)``; None of a graph that makes none of images.

    A code is nearly tied if it is closer to being another than 8 times what torch in float32 is from float64, measured
    on these inputs where both give the same codes: in squared distance, or to the edge at which a channel is rounded.
    """
    module: Any = graph.module
    if "image" not in graph.inputs or "z" not in graph.outputs or not hasattr(module.model.latent, "margins"):
        return None
    single, double = (
        _margins(each, given) for each, given in ((module, inputs), (copy.deepcopy(module).double(), in_double(inputs)))
    )
    (margins, codes), (exact, exact_codes) = single, double
    same = (codes == exact_codes).all(1)
    rounding = (margins - exact)[same].abs().max().item() if same.any() else 0.0
    return margins <= max(ROUNDINGS * rounding, _LEAST_MARGIN * margins.max().item())


def _margins(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """By image and code, how far it is from being another; and the codes."""
    view = module.view(inputs.get("condition"))
    with torch.no_grad():
        features = view._run(view.encoder, inputs["image"])
        return view.latent.margins(features), view.latent.encoded(features)


def in_double(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs in float64; whole numbers stay."""
    return {name: values.double() if values.is_floating_point() else values for name, values in inputs.items()}
