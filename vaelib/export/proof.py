"""The proofs that a bundle is what it claims to be: each graph against torch, then all of it through ``OnnxVAE``."""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from vaelib._checks import ExportError
from vaelib._timing import timed
from vaelib.export.differences import EXACT, Judge, Limit, Parity, answers_of_torch, drawn_inputs, near_ties
from vaelib.export.graphs import Graph, contract_of, culprit, reason_of
from vaelib.export.manifest import write_bundle
from vaelib.export.tiling import prove_tiles
from vaelib.runtime import OnnxVAE, Plan
from vaelib.runtime.protobuf import MODEL, ProtobufError, parse
from vaelib.runtime.rules import GraphError, check_graph

__all__ = ["check_contract", "compare", "how_proved", "images_per_second", "prove", "session"]

_BATCHES = (1, 2, 3, 7, 16)
_ONE_BY_ONE = 3
"""The batch whose items onnxruntime is also given one at a time."""
_MOST_NEAR_TIES = 0.1
"""Share of the codes of a proof; beyond it there would be no proof."""
_LEVELS = {
    "optimisations off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "optimisations on": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_SAME = 5e-2
"""For int8, whose distance from torch is judged on images: how far the runtime may be from plain onnxruntime."""
_BATCHES_OF_RUNTIME = (1, 3, 16, 40)
_PLANS = (Plan(chunk=7, workers=2), Plan(chunk=16, workers=1))
_SECONDS_OF_A_SESSION = 0.5
_LEAST_ROUNDS = 7


def compare(
    content: bytes, graph: Graph, limits: Mapping[str, Limit] = EXACT, *, third_opinion: bool = True
) -> dict[str, Parity]:
    """Largest differences per output from torch: of onnxruntime, and on one small batch of ``onnx.reference``.

    The latter does not know the operators of int8 at opset 18.

    Raises:
        ExportError: With the rule of :func:`check_contract` that is broken, or the output, batch and evaluator that are
            most beyond tolerance.
    """
    check_contract(content, graph)
    generator = torch.Generator().manual_seed(0)
    judge = Judge(graph, limits)
    worst = dict.fromkeys(graph.outputs, Parity(0.0, 0.0))
    failures = []
    threads = torch.get_num_threads() if graph.is_large else 1
    sessions = {name: session(content, level, threads=threads) for name, level in _LEVELS.items()}
    third_opinion = third_opinion and not graph.is_large  # numpy takes minutes for what takes others seconds
    reference = ReferenceEvaluator(onnx.load_model_from_string(content)) if third_opinion else None
    cases = [(batch, graph) for batch in _BATCHES if batch <= graph.most]
    if graph.multiple is not None:
        cases += [(batch, graph.larger()) for batch in _BATCHES[:2]]
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


def how_proved(graph: Graph, precision: str) -> str:
    """The batches, sizes and evaluators of :func:`compare`, in words."""
    largest = max(batch for batch in _BATCHES if batch <= graph.most)
    size = ""
    if graph.multiple is not None:
        shapes = " and ".join(" x ".join(map(str, sized.inputs["image"][1:])) for sized in (graph, graph.larger()))
        size = f", for images of {shapes}"
    reference = "" if precision == "int8" or graph.is_large else " and by `onnx.reference`"
    return f"over batches of 1 to {largest}{size}, by onnxruntime with its optimisations off and on{reference}"


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


def images_per_second(
    sessions: Mapping[str, onnxruntime.InferenceSession], inputs: Mapping[str, NDArray[np.float32]]
) -> dict[str, float]:
    """The median of each session over rounds in which every one has its turn, so that drift hits all alike."""
    calls = [functools.partial(opened.run, None, dict(inputs)) for opened in sessions.values()]
    for call in calls:
        call()
    batch = len(next(iter(inputs.values())))
    times = timed(*calls, seconds=_SECONDS_OF_A_SESSION * len(calls), least=_LEAST_ROUNDS)
    return {name: batch / statistics.median(found) for name, found in zip(sessions, times, strict=True)}


class _Cut(OnnxVAE):
    """Cuts batches by plans that are given, so that nothing is measured."""

    def use(self, plan: Plan) -> None:
        for part, contract in self.contract.items():
            if contract.file is not None:
                self._graphs.engine(part).fix(plan)

    def answers(self, part: str, inputs: dict[str, Any], outputs: Sequence[str]) -> list[Any]:
        """By what is behind every method of the runtime."""
        given = {name: self._graphs.checked(part, name, values, name) for name, values in inputs.items()}
        return self._graphs.run(part, given, tuple(outputs), lambda _: None)


def prove(
    described: Mapping[str, Any],
    files: Mapping[str, bytes],
    graphs: Mapping[str, Graph],
    limits: Mapping[str, Mapping[str, Limit]],
) -> None:
    """Open ``files`` as a bundle and compare what ``OnnxVAE`` gives with torch, at several batch sizes and cuts.

    Args:
        described: The manifest but for its files.
        files: The bundle's files but its manifest, by name.
        graphs: Graphs by part.
        limits: Allowed difference by part and kind of output; ``EXACT`` where there is no file.
    """
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "bundle"
        write_bundle(directory, described, files)
        try:
            model = _Cut(directory, threads=2)
            for plan, batches in _cuts(min(graph.most for graph in graphs.values())):
                model.use(plan)
                for part, graph in graphs.items():
                    _compare(model, graph, files.get(f"{part}.onnx", b""), limits.get(part, EXACT), plan, batches)
            prove_tiles(model, limits)
        except ExportError:
            raise
        except ValueError as error:  # of a file that is refused, or of values that are not finite
            raise ExportError(
                f"vaelib.runtime refuses the bundle: {str(error).replace(f'{directory}/', '')}"
            ) from error


def _cuts(most: int) -> list[tuple[Plan, list[int]]]:
    """Plans, and the batches that are run by each: one image, calls of several images, and a batch that is cut."""
    largest = min(most, _BATCHES_OF_RUNTIME[-1])
    batches = [*(batch for batch in _BATCHES_OF_RUNTIME if batch < largest), largest]
    cut = min(_PLANS[0].chunk, largest // 2)
    return [(_PLANS[0]._replace(chunk=cut), batches), (_PLANS[1], batches[-1:])]


def _compare(
    model: _Cut, graph: Graph, content: bytes, limits: Mapping[str, Limit], plan: Plan, batches: list[int]
) -> None:
    specs = model.contract[graph.part].outputs
    names = [name for name in graph.outputs if "G" not in specs[name].shape]  # whose size the runtime does not know
    plain = session(content) if limits["image"].tolerance > _SAME else None
    judge = Judge(graph, limits)
    for batch in batches:
        inputs = drawn_inputs(graph, batch, torch.Generator().manual_seed(batch))
        arrays = {name: values.numpy() for name, values in inputs.items()}
        found = dict(zip(names, model.answers(graph.part, arrays, names), strict=True))
        if plain is None:
            expected = answers_of_torch(graph, inputs)
        else:
            expected = dict(zip(names, map(torch.from_numpy, plain.run(names, arrays)), strict=True))
        for name, parity in judge.apart(expected, found, near_ties(graph, inputs)).items():
            off = parity.max_rel
            if off <= _SAME if plain is not None else judge.accepts(name, parity):
                continue
            raise ExportError(
                f"vaelib.runtime gives another `{name}` than {'torch' if plain is None else 'onnxruntime'} for a batch"
                f" of {batch} in calls of at most {plan.chunk}: {graph.part}.onnx is off by {off:.1e} of its scale."
            )
