"""The proof that a graph is what it claims to be; whatever fails raises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx.reference import ReferenceEvaluator

from vaelib._checks import ExportError
from vaelib.export.differences import EXACT, Judge, Limit, answers_of_torch, drawn_inputs
from vaelib.export.graphs import Graph, contract_of, culprit
from vaelib.export.parity import Parity
from vaelib.export.quiet import reason_of
from vaelib.export.ties import near_ties
from vaelib.runtime.protobuf import MODEL, ProtobufError, parse
from vaelib.runtime.rules import GraphError, check_graph

__all__ = ["BATCHES", "check_contract", "compare", "session"]

BATCHES = (1, 2, 3, 7, 16)
_ONE_BY_ONE = 3
"""The batch whose items onnxruntime is also given one at a time."""
_MOST_NEAR_TIES = 0.1
"""Share of the codes of a proof; beyond it there would be no proof."""
_LEVELS = {
    "optimisations off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "optimisations on": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


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
