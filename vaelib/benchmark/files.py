"""What the ways to run a model open, written once, and what their answers are held to."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vaelib.benchmark.backends import OPERATIONS, Array, functions_of
from vaelib.export import export_onnx
from vaelib.export.precision import quantized_graph
from vaelib.runtime.bundle import Bundle
from vaelib.serialization import save
from vaelib.vae import VAE, AutoEncoder

__all__ = ["Source", "Subject", "draw", "write_files"]

Source = VAE | AutoEncoder | Path
"""A model, or the directory of a bundle."""
_PARTS = {"encode": "encoder", "decode": "decoder"}
_ROTATED = 4
_MOST_BYTES = 2**28
_OWN_TOLERANCE = {"fp32": 0.0, "fp16": 1e-2, "int8": 0.2}
"""How far evaluators of one graph may be apart."""


class Subject(NamedTuple):
    """What is measured."""

    directory: Path
    """Holds the files of all backends."""
    image_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    exact: Callable[[str, Array], NDArray[np.float64]]
    """The answer to a batch in float64: torch's, or of a bundle the reference evaluator's."""
    checked: Callable[[int], Sequence[int]]
    """Which images of a batch are compared with it: all, or of a bundle the first and the last."""
    flops: dict[str, int]
    """Of an operation on one image; of a bundle unknown."""
    tolerance: float
    """What its own precision adds to a backend's."""
    is_bundle: bool


def write_files(source: Source, directory: Path, needs: Collection[str]) -> Subject:
    """Fill ``directory`` with what backends need: ``model``, ``bundle``, ``graphs`` of each operation, in ``int8``."""
    if isinstance(source, Path):
        return _of_bundle(source, directory, needs)
    return _of_model(source, directory, needs)


def draw(subject: Subject, operation: str, batch: int) -> Array:
    """Batches in a stack: images uniform in [0, 1], latents normal. Their turns keep answers out of the caches."""
    shape = subject.latent_shape if operation == "decode" else subject.image_shape
    number = max(2, min(_ROTATED, _MOST_BYTES // (4 * batch * int(np.prod(shape)))))
    generator = np.random.default_rng(0)
    sampler = generator.standard_normal if operation == "decode" else generator.random
    return sampler((number, batch, *shape), dtype=np.float32)


def _of_model(model: VAE | AutoEncoder, directory: Path, needs: Collection[str]) -> Subject:
    model = copy.deepcopy(model).cpu().float().eval()
    if "model" in needs:
        save(model, directory / "model")
    if {"bundle", "int8"} & set(needs):
        export_onnx(model, directory / "bundle")
    functions = functions_of(copy.deepcopy(model).double())

    def exact(operation: str, values: Array) -> NDArray[np.float64]:
        with torch.inference_mode():
            return torch.cat(
                [functions[operation](part.double()) for part in torch.from_numpy(values).split(64)]
            ).numpy()

    subject = Subject(
        directory, tuple(model.image_shape), tuple(model.latent_shape), exact, range, {}, 0.0, is_bundle=False
    )
    for operation in OPERATIONS:
        example = torch.from_numpy(draw(subject, operation, 2)[0])
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            functions_of(model)[operation](example[:1])
        subject.flops[operation] = counter.get_total_flops()
        if "graphs" in needs:
            _write_plain_graph(model, operation, example, directory)
    if "int8" in needs:
        _write_int8(subject)
    return subject


def _write_plain_graph(model: nn.Module, operation: str, example: torch.Tensor, directory: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Operation(model, operation),
            (example,),
            directory / f"{operation}.onnx",
            input_names=["x"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            dynamo=True,
            verbose=False,
        )


class _Operation(nn.Module):
    """One direction of a model, as one would export it by hand."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: Any) -> Any:
        return functions_of(self.model)[self.name](x)


def _of_bundle(bundle: Path, directory: Path, needs: Collection[str]) -> Subject:
    parts = {operation: Bundle(bundle).read(part) for operation, part in _PARTS.items()}
    metadata = parts["encode"].metadata
    shutil.copytree(bundle, directory / "bundle")
    graphs: dict[str, Any] = {name: onnx.load_model_from_string(part.content) for name, part in parts.items()}
    _write_graphs(graphs, directory, "")
    in_float64 = metadata["precision"] == "fp32"
    evaluated = {name: _doubled(graph) if in_float64 else graph for name, graph in graphs.items()}

    def exact(operation: str, values: Array) -> NDArray[np.float64]:
        answer: NDArray[Any] = values.astype(np.float64) if in_float64 else values
        for step in ("encode", "decode") if operation == "reconstruct" else (operation,):
            graph = evaluated[step]
            outputs: Any = ReferenceEvaluator(graph).run(None, {str(graph.graph.input[0].name): answer})
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
        is_bundle=True,
    )
    if in_float64 and "int8" in needs:
        _write_int8(subject)
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


def _write_int8(subject: Subject) -> None:
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
