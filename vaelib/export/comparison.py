"""The proof that a graph is what it claims to be; whatever fails raises."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from vaelib._checks import ExportError
from vaelib.export.graphs import Graph, contract_of, culprit
from vaelib.export.parity import Parity
from vaelib.export.quiet import reason_of
from vaelib.export.ties import ROUNDINGS, in_double, near_ties
from vaelib.runtime.protobuf import MODEL, ProtobufError, parse
from vaelib.runtime.rules import GraphError, check_graph

__all__ = [
    "BATCHES",
    "EXACT",
    "Judge",
    "Limit",
    "answers_of_torch",
    "at_levels",
    "check_contract",
    "compare",
    "difference",
    "drawn_inputs",
    "session",
]

BATCHES = (1, 2, 3, 7, 16)
_ONE_BY_ONE = 3
"""The batch whose items onnxruntime is also given one at a time."""


class Limit(NamedTuple):
    """What a kind of output may differ by."""

    tolerance: float
    """Largest ``Parity.max_rel``."""
    least_scale: float
    """Smaller values than this are measured against it, not against themselves."""


EXACT = {"image": Limit(1e-5, 1.0), "nats": Limit(1e-4, 1.0), "raw": Limit(1e-4, 1e-12), "codes": Limit(1.0, 1.0)}
"""Limits of float32; codes are those of torch but for near-ties, see :meth:`Judge.apart`."""
_MOST_NEAR_TIES = 0.1
"""Share of the codes of a proof; beyond it there would be no proof."""
_LEVELS = {
    "optimisations off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "optimisations on": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class Judge:
    """By how much the answers of a graph may differ from torch's, and by how much they do.

    What a model makes of the last bit is no fault of its graph: beyond the tolerance, a difference of up to 8 times
    that of torch's answers in float32 and in float64 is allowed. The latter is 0 of a network that knows float32 only.
    """

    def __init__(self, graph: Graph, limits: Mapping[str, Limit] = EXACT) -> None:
        self.graph, self.limits = graph, limits

    def apart(self, expected: Mapping[str, Tensor], got: Mapping[str, Any], ties: Tensor | None) -> dict[str, Parity]:
        """The difference of each output that there is in ``got``.

        Args:
            expected: What torch gives.
            got: What is judged.
            ties: Near-ties, ``(B, N)``: where ``got`` may have another code. Of an image with such a code whose z is
                another, nothing else is compared.
        """
        given = {name: torch.as_tensor(np.ascontiguousarray(values)) for name, values in got.items()}
        kept = torch.ones(len(next(iter(expected.values()))), dtype=torch.bool)
        if ties is not None and given["z"].shape == expected["z"].shape:
            kept = torch.isclose(given["z"], expected["z"]).flatten(1).all(1) | ~ties.any(1)
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
        inputs = drawn_inputs(graph, 64, torch.Generator().manual_seed(0))
        double = graph._replace(module=copy.deepcopy(graph.module).double())
        try:
            exact = answers_of_torch(double, in_double(inputs))
        except (RuntimeError, TypeError):
            return allowed
        ties = near_ties(graph, inputs)
        for name, parity in self.apart(exact, answers_of_torch(graph, inputs), ties).items():
            allowed[name] = max(allowed[name], ROUNDINGS * parity.max_rel if math.isfinite(parity.max_rel) else 0.0)
        return allowed


def compare(
    content: bytes, graph: Graph, limits: Mapping[str, Limit] = EXACT, *, third_opinion: bool = True
) -> dict[str, Parity]:
    """Largest differences per output from torch: of onnxruntime, and on one small batch of ``onnx.reference``.

    The latter does not know the operators of int8 at opset 18.

    Raises:
        ExportError: A ``ValueError`` that says which rule of :func:`check_contract` is broken, or names the output,
            batch and evaluator that are most beyond tolerance.
    """
    check_contract(content, graph)
    generator = torch.Generator().manual_seed(0)
    judge = Judge(graph, limits)
    worst = dict.fromkeys(graph.outputs, Parity(0.0, 0.0))
    failures = []
    sessions = {name: session(content, level) for name, level in _LEVELS.items()}
    reference = ReferenceEvaluator(onnx.load_model_from_string(content)) if third_opinion else None
    cases = [(batch, graph) for batch in BATCHES]
    if graph.multiple is not None:
        cases += [(batch, graph.larger()) for batch in BATCHES[:2]]
    near = total = 0
    for batch, sized in cases:
        inputs = drawn_inputs(sized, batch, generator)
        expected = answers_of_torch(graph, inputs)
        ties = near_ties(graph, inputs)
        if ties is not None:
            near, total = near + int(ties.sum()), total + ties.numel()
        arrays = {name: value.numpy() for name, value in inputs.items()}
        answers = _by_onnxruntime(sessions, arrays, graph)
        if reference is not None and batch == 2:
            answers["onnx.reference"] = _by_reference(reference, arrays)
        for evaluator, got in answers.items():
            named = dict(zip(graph.outputs, got, strict=True))
            for name, parity in judge.apart(expected, named, ties).items():
                worst[name] = Parity(max(worst[name][0], parity[0]), max(worst[name][1], parity[1]))
                if not judge.accepts(name, parity):
                    failures.append((name, batch, evaluator, parity.max_rel))
    if failures:
        raise ExportError(_described(graph, failures, judge.allowed))
    if near > _MOST_NEAR_TIES * total:
        raise ExportError(
            f"`model` must tell its codes apart, but of {total} codes of random images {near} are within rounding of"
            " another: train the model first."
        )
    return {name: p._replace(near_ties=near) if graph.outputs[name] == "codes" else p for name, p in worst.items()}


def _described(graph: Graph, failures: list[tuple[str, int, str, float]], allowed: Mapping[str, float]) -> str:
    name, batch, evaluator, off = max(failures, key=lambda failure: failure[-1] / allowed[failure[0]])
    names = ", ".join(f"`{name}`" for name in dict.fromkeys(failure[0] for failure in failures))
    evaluators = "; ".join(dict.fromkeys(failure[2] for failure in failures))
    return (
        f"The {graph.part}'s graph differs from torch, relative to the output's scale: `{name}` at batch {batch},"
        f" {evaluator}: {off:.1e} > {allowed[name]:.0e}. That is the largest of {len(failures)} differences in"
        f" {names}, by {evaluators}."
    )


def _by_onnxruntime(
    sessions: Mapping[str, onnxruntime.InferenceSession], arrays: Mapping[str, Any], graph: Graph
) -> dict[str, Any]:
    """The outputs of each session; of one batch also those of its items, one by one."""
    try:
        answers: dict[str, Any] = {name: opened.run(None, dict(arrays)) for name, opened in sessions.items()}
        if len(next(iter(arrays.values()))) == _ONE_BY_ONE:
            answers |= {f"{name}, one by one": _one_by_one(opened, arrays) for name, opened in sessions.items()}
    except Exception as error:  # as in `session`
        raise ExportError(f"onnxruntime cannot run {culprit(graph)}: {reason_of(error)}") from error
    return answers


def _one_by_one(opened: onnxruntime.InferenceSession, arrays: Mapping[str, Any]) -> list[Any]:
    """The outputs of each item by itself, put together."""
    items = range(len(next(iter(arrays.values()))))
    answers = [opened.run(None, {name: values[i : i + 1] for name, values in arrays.items()}) for i in items]
    return [np.concatenate(values) for values in zip(*answers, strict=True)]


def _by_reference(reference: ReferenceEvaluator, arrays: dict[str, Any]) -> Any:
    try:
        with np.errstate(all="ignore"):  # it computes both branches of a Where
            return reference.run(None, arrays)
    except Exception as error:  # whatever numpy says of an operator
        raise ExportError(
            f"onnx.reference cannot run the graph, so there is no third opinion: {reason_of(error)}"
        ) from error


def check_contract(content: bytes, graph: Graph) -> None:
    """Refuse a file with a fixed batch, another contract than the module's, or what the runtime refuses.

    That comes before anything is run: a division of whole numbers by zero would end the process.

    Raises:
        ExportError: A ``ValueError`` that says which rule is broken.
    """
    try:
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx.checker refuses the graph: {reason_of(error)}") from error
    graph_proto = onnx.load_model_from_string(content).graph
    for value in (*graph_proto.input, *graph_proto.output):
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise ExportError(
                f"The batch axis of {value.name!r} must be free, got a fixed one: {culprit(graph)} takes the length"
                " of a batch as a Python int, as int(x.shape[0]) and len(x) do; take x.shape[0] or -1."
            )
    try:
        check_graph(parse(content, MODEL), contract_of(graph))
    except (GraphError, ProtobufError) as error:
        raise ExportError(f"vaelib.runtime could not run {culprit(graph)}: {error}.") from error


def session(
    content: bytes, level: onnxruntime.GraphOptimizationLevel = _LEVELS["optimisations on"], *, threads: int = 1
) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the CPU; of one thread, so that rounding is the same wherever it is measured."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        raise ExportError(f"onnxruntime cannot open the graph: {reason_of(error)}") from error


def answers_of_torch(graph: Graph, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of the graph's module, computed by one thread too.

    Raises:
        ExportError: A ``ValueError``: if it gives others than the graph has.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
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
    """Inputs by name: images of uniform 8-bit values, labels and codes uniform, latents and noise normal."""
    drawn = {}
    for name, shape in graph.inputs.items():
        if name in graph.choices:
            drawn[name] = torch.randint(graph.choices[name], (batch, *shape), generator=generator)
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
