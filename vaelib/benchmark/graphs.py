"""What is measured of a bundle, and its graphs in other forms: joined, in float64, in int8."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from vaelib.benchmark.backend import Array, Subject, draw, first_condition
from vaelib.export.precision import quantized_graph
from vaelib.runtime.bundle import Bundle

__all__ = ["of_bundle", "write_int8"]

_PARTS = {"encode": "encoder", "decode": "decoder"}
_OWN_TOLERANCE = {"fp32": 0.0, "fp16": 1e-2, "int8": 0.2}
"""How far evaluators of one graph may be apart."""


def of_bundle(bundle: Path, directory: Path, needs: Collection[str]) -> Subject:
    """Fill ``directory`` with the graphs of a bundle; int8 if it is needed and the bundle is in float32."""
    opened = Bundle(bundle)
    parts, metadata = {operation: opened.read(part) for operation, part in _PARTS.items()}, opened.metadata
    shutil.copytree(bundle, directory / "bundle")
    graphs: dict[str, Any] = {name: onnx.load_model_from_string(part.content) for name, part in parts.items()}
    condition = metadata["condition"]
    if condition is None:
        _write_graphs(graphs, directory, "")
    first = None if condition is None else np.asarray(first_condition(condition.get("size")))[None]
    in_float64 = metadata["precision"] == "fp32"
    evaluated = {name: _doubled(graph) if in_float64 else graph for name, graph in graphs.items()}

    def exact(operation: str, values: Array) -> NDArray[np.float64]:
        answer: NDArray[Any] = values.astype(np.float64) if in_float64 else values
        for step in ("encode", "decode") if operation == "reconstruct" else (operation,):
            graph = evaluated[step]
            inputs = {str(graph.graph.input[0].name): answer}
            if first is not None and any(entry.name == "condition" for entry in graph.graph.input):
                inputs["condition"] = np.repeat(first, len(values), axis=0)
            outputs: Any = ReferenceEvaluator(graph).run(None, inputs)
            answer = outputs[0]
        return answer.astype(np.float64)

    subject = Subject(
        directory,
        tuple(metadata["image_shape"]),
        tuple(metadata["latent_shape"]),
        exact,
        lambda batch: sorted({0, batch - 1}),
        {},
        _OWN_TOLERANCE[metadata["precision"]],
    )
    if in_float64 and "int8" in needs:
        write_int8(subject)
    return subject


def _write_graphs(graphs: dict[str, Any], directory: Path, prefix: str) -> None:
    """Encoder and decoder, and the two in a row."""
    encoder, decoder = (onnx.compose.add_prefix(graphs[name], f"{name}/") for name in ("encode", "decode"))
    for graph in (encoder, decoder):  # whose words differ
        del graph.metadata_props[:]
    joint = [(encoder.graph.output[0].name, decoder.graph.input[0].name)]
    whole = onnx.compose.merge_models(encoder, decoder, io_map=joint, outputs=[decoder.graph.output[0].name])
    for name, graph in {**graphs, "reconstruct": whole}.items():
        onnx.save(graph, directory / f"{prefix}{name}.onnx")


def write_int8(subject: Subject) -> None:
    """The graphs of the bundle in ``subject.directory``, quantized and calibrated on the benchmark's own inputs."""
    graphs = {}
    for operation, part in _PARTS.items():
        content = (subject.directory / "bundle" / f"{part}.onnx").read_bytes()
        name = str(onnx.load_model_from_string(content).graph.input[0].name)
        graphs[operation] = onnx.load_model_from_string(
            quantized_graph(content, {name: draw(subject, operation, 64)[0]})
        )
    _write_graphs(graphs, subject.directory, "int8-")


def _doubled(model: Any) -> Any:
    """The same graph with every float32 constant, and so every result, in float64."""
    doubled = onnx.ModelProto()
    doubled.CopyFrom(model)
    graph = doubled.graph
    tensors = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))]
    for tensor in tensors:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return doubled
