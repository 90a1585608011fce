"""What torch gives for drawn inputs, and by how much other answers may differ from it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaelib._checks import ExportError
from vaelib.export.graphs import Graph, culprit

__all__ = ["EXACT", "Judge", "Limit", "Parity", "answers_of_torch", "at_levels", "at_most", "difference"]
__all__ += ["drawn_inputs", "near_ties"]

_ROUNDINGS = 8.0
"""How many times torch's own distance from float64 a graph may be away."""
_LEAST_MARGIN = 1e-6
"""Of the largest margin of a batch: what is less is a near-tie however well torch rounds."""


class Parity(NamedTuple):
    """How far a graph is from torch on one output, over all batches, optimisation levels and evaluators."""

    max_abs: float
    """Largest absolute difference; of codes, how many differ."""
    max_rel: float
    """The same, divided by the largest absolute value that torch gave; of images and nats, by 1 at least; of codes by
    their number."""
    near_ties: int = 0
    """Of codes: how many of those compared are so close to another code that rounding may decide; no other may differ
    from torch's."""


def at_most(difference: float) -> float:
    """The next power of ten, for files: digits of rounding errors differ between machines, bytes must not."""
    return float(f"1e{math.ceil(math.log10(difference))}") if difference else 0.0


class Limit(NamedTuple):
    """What a kind of output may differ by."""

    tolerance: float
    """Largest ``Parity.max_rel``."""
    least_scale: float
    """Smaller values than this are measured against it, not against themselves."""


EXACT = {"image": Limit(1e-5, 1.0), "nats": Limit(1e-4, 1.0), "raw": Limit(1e-4, 1e-12), "codes": Limit(1.0, 1.0)}
"""Limits of float32; codes are those of torch but for near-ties, see :meth:`Judge.apart`."""


class Judge:
    """By how much the answers of a graph may differ from torch's, and by how much they do.

    What a model makes of the last bit is no fault of its graph: beyond the tolerance, a difference of up to 8 times
    that of torch's answers in float32 and in float64 is allowed. The latter is 0 of a network that knows float32 only.
    """

    def __init__(self, graph: Graph, limits: Mapping[str, Limit] = EXACT) -> None:
        self.graph, self.limits = graph, limits

    def apart(self, expected: Mapping[str, Tensor], got: Mapping[str, Any], ties: Tensor | None) -> dict[str, Parity]:
        """The difference of each output in ``got`` from torch's.

        ``ties`` are near-ties, ``(B, N)``: where ``got`` may have another code. Of an image with such a code whose z is
        another, nothing else is compared.
        """
        given = {name: torch.as_tensor(np.ascontiguousarray(values)) for name, values in got.items()}
        kept = torch.ones(len(next(iter(expected.values()))), dtype=torch.bool)
        if ties is not None and given["z"].shape == expected["z"].shape:
            kept = torch.isclose(given["z"].to(expected["z"]), expected["z"]).flatten(1).all(1) | ~ties.any(1)
        found = {}
        for name, values in given.items():
            wanted, kind = expected[name], self.graph.outputs[name]
            if kind == "codes":
                found[name] = _difference_of_codes(wanted, values, ties)
            elif values.shape != wanted.shape:
                found[name] = Parity(math.inf, math.inf)
            else:
                found[name] = difference(wanted[kept], values[kept], least_scale=self.limits[kind].least_scale)
        return found

    def accepts(self, name: str, parity: Parity) -> bool:
        """Whether an output may differ so much."""
        return parity.max_rel <= self.limits[self.graph.outputs[name]].tolerance or parity.max_rel <= self.allowed[name]

    @cached_property
    def allowed(self) -> dict[str, float]:
        """By output, the largest ``Parity.max_rel``."""
        graph = self.graph
        allowed = {name: self.limits[kind].tolerance for name, kind in graph.outputs.items()}
        inputs = drawn_inputs(graph, graph.most, torch.Generator().manual_seed(0))
        double = graph._replace(module=copy.deepcopy(graph.module).double())
        try:
            exact = answers_of_torch(double, _in_double(inputs))
        except (RuntimeError, TypeError):
            return allowed
        ties = near_ties(graph, inputs)
        for name, parity in self.apart(exact, answers_of_torch(graph, inputs), ties).items():
            allowed[name] = max(allowed[name], _ROUNDINGS * parity.max_rel if math.isfinite(parity.max_rel) else 0.0)
        return allowed


def answers_of_torch(graph: Graph, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of the graph's module, computed by one thread too; of a large network by all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if graph.is_large else 1)
    try:
        with torch.no_grad():
            answer = graph.module(*inputs.values())
    finally:
        torch.set_num_threads(threads)
    answers = (answer,) if isinstance(answer, Tensor) else answer
    if len(answers) != len(graph.outputs) or not all(isinstance(values, Tensor) for values in answers):
        raise ExportError(
            f"`model` must give {', '.join(graph.outputs)}, but {culprit(graph)} gives {len(answers)} values."
        )
    return dict(zip(graph.outputs, answers, strict=True))


def drawn_inputs(graph: Graph, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Inputs by name: images of uniform 8-bit values, codes uniform, labels one after the other, all else normal."""
    drawn = {}
    for name, shape in graph.inputs.items():
        if name in graph.choices:
            choices = graph.choices[name]
            drawn[name] = torch.randint(choices, (batch, *shape) if shape else (1,), generator=generator)
            if not shape:  # so that the labels of a batch differ
                drawn[name] = (drawn[name] + torch.arange(batch)) % choices
        elif name == "image":
            drawn[name] = at_levels(torch.rand((batch, *shape), generator=generator))
        else:
            drawn[name] = torch.randn((batch, *shape), generator=generator)
    return drawn


def at_levels(images: Tensor) -> Tensor:
    """Images rounded to k / 255, for likelihoods that know no others."""
    return (images * 255).round() / 255


def _difference_of_codes(reference: Tensor, values: Tensor, ties: Tensor | None) -> Parity:
    """How many are others, and their share; one that is no near-tie counts as infinitely wrong."""
    if reference.shape != values.shape:
        return Parity(math.inf, math.inf)
    others = reference != values
    if (others if ties is None else others & ~ties).any():
        return Parity(math.inf, math.inf)
    return Parity(float(others.sum()), others.float().mean().item())


def difference(reference: Tensor, values: Tensor, *, least_scale: float) -> Parity:
    """NaN anywhere, or another shape, counts as infinitely wrong."""
    if reference.shape != values.shape or not values.isfinite().all():
        return Parity(math.inf, math.inf)
    if not reference.numel():
        return Parity(0.0, 0.0)
    max_abs = (reference - values).abs().max().item()
    return Parity(max_abs, max_abs / max(reference.abs().max().item(), least_scale))


def near_ties(graph: Graph, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Where another rounding may give another code, ``(B, N)``; None of a graph that makes none of images.

    A code is nearly tied if it is closer to being another than 8 times what torch in float32 is from float64, measured
    on these inputs where both give the same codes: in squared distance, or to the edge at which a channel is rounded.
    """
    module: Any = graph.module
    if "image" not in graph.inputs or "z" not in graph.outputs or not hasattr(module.model.latent, "margins"):
        return None
    single, double = (
        _margins(each, given)
        for each, given in ((module, inputs), (copy.deepcopy(module).double(), _in_double(inputs)))
    )
    (margins, codes), (exact, exact_codes) = single, double
    same = (codes == exact_codes).all(1)
    rounding = (margins - exact)[same].abs().max().item() if same.any() else 0.0
    return margins <= max(_ROUNDINGS * rounding, _LEAST_MARGIN * margins.max().item())


def _margins(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """By image and code, how far it is from being another; and the codes."""
    view = module.view(inputs.get("condition"))
    with torch.no_grad():
        features = view._run(view.encoder, inputs["image"])
        return view.latent.margins(features), view.latent.encoded(features)


def _in_double(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs in float64; whole numbers stay."""
    return {name: values.double() if values.is_floating_point() else values for name, values in inputs.items()}
