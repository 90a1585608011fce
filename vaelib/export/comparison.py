"""The proof that a graph is what it claims to be; whatever fails raises."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
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
from vaelib.runtime.protobuf import MODEL, ProtobufError, parse
from vaelib.runtime.rules import GraphError, check_graph

__all__ = [
    "BATCHES",
    "EXACT",
    "Limit",
    "allowed_differences",
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
_ROUNDINGS = 8.0
"""How many times torch's own distance from float64 a graph may be away."""


class Limit(NamedTuple):
    """What a kind of output may differ by."""

    tolerance: float
    """Largest ``Parity.max_rel``."""
    least_scale: float
    """Smaller values than this are measured against it, not against themselves."""


EXACT = {"image": Limit(1e-5, 1.0), "nats": Limit(1e-4, 1.0), "raw": Limit(1e-4, 1e-12)}
"""Limits of float32."""
_LEVELS = {
    "optimisations off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "optimisations on": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def compare(
    content: bytes, graph: Graph, limits: Mapping[str, Limit] = EXACT, *, third_opinion: bool = True
) -> dict[str, Parity]:
    """Largest differences per output from torch: of onnxruntime, and on one small batch of ``onnx.reference``.

    The latter does not know the operators of int8 at opset 18. What a model makes of the last bit is no fault of its
    graph: a difference of up to 8 times that of torch's answers in float32 and in float64 is allowed.

    Raises:
        ExportError: A ``ValueError`` that says which rule of :func:`check_contract` is broken, or names the output,
            batch and evaluator that are most beyond tolerance.
    """
    check_contract(content, graph)
    generator = torch.Generator().manual_seed(0)
    worst = dict.fromkeys(graph.outputs, Parity(0.0, 0.0))
    beyond = []
    sessions = {name: session(content, level) for name, level in _LEVELS.items()}
    reference = ReferenceEvaluator(onnx.load_model_from_string(content)) if third_opinion else None
    cases = [(batch, graph.inputs) for batch in BATCHES]
    if graph.multiple is not None:
        cases += [(batch, graph.larger()) for batch in BATCHES[:2]]
    for batch, shapes in cases:
        inputs = drawn_inputs(shapes, batch, generator)
        expected = answers_of_torch(graph, inputs)
        arrays = {name: value.numpy() for name, value in inputs.items()}
        answers = _by_onnxruntime(sessions, arrays, graph)
        if reference is not None and batch == 2:
            answers["onnx.reference"] = _by_reference(reference, arrays)
        for evaluator, got in answers.items():
            for (name, kind), wanted, values in zip(graph.outputs.items(), expected, got, strict=True):
                given = torch.from_numpy(np.ascontiguousarray(values))
                parity = difference(wanted, given, least_scale=limits[kind].least_scale)
                worst[name] = Parity(*map(max, worst[name], parity))
                if not parity.max_rel <= limits[kind].tolerance:
                    beyond.append((name, batch, evaluator, parity.max_rel))
    allowed = allowed_differences(graph, limits) if beyond else {}
    failures = [failure for failure in beyond if not failure[-1] <= allowed[failure[0]]]
    if failures:
        name, batch, evaluator, off = max(failures, key=lambda failure: failure[-1] / allowed[failure[0]])
        names = ", ".join(f"`{name}`" for name in dict.fromkeys(failure[0] for failure in failures))
        evaluators = "; ".join(dict.fromkeys(failure[2] for failure in failures))
        raise ExportError(
            f"The {graph.part}'s graph differs from torch, relative to the output's scale: `{name}` at batch {batch},"
            f" {evaluator}: {off:.1e} > {allowed[name]:.0e}. That is the largest of {len(failures)} differences in"
            f" {names}, by {evaluators}."
        )
    return worst


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


def answers_of_torch(graph: Graph, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The outputs of the graph's module, computed by one thread too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            answer = graph.module(*inputs.values())
    finally:
        torch.set_num_threads(threads)
    return (answer,) if isinstance(answer, Tensor) else answer


def allowed_differences(graph: Graph, limits: Mapping[str, Limit]) -> dict[str, float]:
    """By output, the largest ``Parity.max_rel``: the tolerance, or 8 times what torch in float32 is from float64.

    The latter is for ill-conditioned models; it is 0 of a network that knows float32 only.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = drawn_inputs(graph.inputs, 64, generator)
    double = graph._replace(module=copy.deepcopy(graph.module).double())
    try:
        exact = answers_of_torch(double, {name: value.double() for name, value in inputs.items()})
    except (RuntimeError, TypeError):
        return {name: limits[kind].tolerance for name, kind in graph.outputs.items()}
    allowed = {}
    for (name, kind), wanted, values in zip(graph.outputs.items(), exact, answers_of_torch(graph, inputs), strict=True):
        rounding = difference(wanted, values, least_scale=limits[kind].least_scale).max_rel
        allowed[name] = max(limits[kind].tolerance, _ROUNDINGS * rounding if math.isfinite(rounding) else 0.0)
    return allowed


def drawn_inputs(shapes: Mapping[str, tuple[int, ...]], batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Inputs by name: images of uniform 8-bit values, latents and noise normal."""
    return {
        name: at_levels(torch.rand((batch, *shape), generator=generator))
        if name == "image"
        else torch.randn((batch, *shape), generator=generator)
        for name, shape in shapes.items()
    }


def at_levels(images: Tensor) -> Tensor:
    """Images rounded to k / 255, for likelihoods that know no others."""
    return (images * 255).round() / 255


def difference(reference: Tensor, values: Tensor, *, least_scale: float) -> Parity:
    """NaN anywhere, or another shape, counts as infinitely wrong."""
    if reference.shape != values.shape or not values.isfinite().all():
        return Parity(float("inf"), float("inf"))
    max_abs = (reference - values).abs().max().item()
    return Parity(max_abs, max_abs / max(reference.abs().max().item(), least_scale))
