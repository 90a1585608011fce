"""From a graph's torch module to ONNX bytes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from onnxscript import opset18 as op

from vaelib._checks import ExportError
from vaelib.export.graphs import Graph, culprit, reason_of
from vaelib.export.lowering import lower
from vaelib.export.together import Together, cut, decodes_its_z, together

__all__ = ["convert", "lowest_ir_version", "to_bytes", "with_metadata"]

_LOGGERS = ("torch", "onnx_ir", "onnxscript", "onnxruntime")


def _log_sigmoid(x: Any) -> Any:
    """min(x, 0) - log(1 + u), u = exp(-|x|), the logarithm as 2 artanh(u / (2 + u)).

    Its series ends where float32 does, and is made of operators that give an image the same bits in any batch.
    """
    u = op.Exp(op.Neg(op.Abs(x)))
    t = op.Div(u, op.Add(u, _like(x, 2.0)))
    square, series = op.Mul(t, t), _like(x, 2.0 / 13.0)
    for odd in (11.0, 9.0, 7.0, 5.0, 3.0, 1.0):
        series = op.Add(op.Mul(series, square), _like(x, 2.0 / odd))
    return op.Sub(op.Min(x, _like(x, 0.0)), op.Mul(t, series))


def _expm1(x: Any) -> Any:
    return op.Mul(op.Tanh(op.Mul(x, _like(x, 0.5))), op.Add(op.Exp(x), _like(x, 1.0)))


def _like(x: Any, value: float) -> Any:
    """A constant of the dtype of ``x``."""
    constant: Any = op.Constant(value_float=value)
    return op.CastLike(constant, x)


# torch writes Log(Sigmoid(x)), infinite for the logits of any sure decoder, and Exp(x) - 1, which cancels near zero.
_TRANSLATIONS: dict[Any, Any] = {torch.ops.aten.log_sigmoid.default: _log_sigmoid, torch.ops.aten.expm1.default: _expm1}


def to_bytes(graph: Graph, opset: int) -> bytes:
    """One ONNX file with a free batch axis and no trace of this machine."""
    with _export_errors(graph):
        return _written(_converted(graph, opset))


def convert(graphs: Mapping[str, Graph], opset: int) -> dict[str, bytes]:
    """The ONNX file of each graph of one model, as of :func:`to_bytes`.

    Most time of an export is torch's, and much of it the same for a small graph and a large one: so the graphs are
    converted as one, in which each network occurs once, and cut out of it.
    """
    whole = together(graphs)
    with contextlib.suppress(ExportError), _export_errors(whole):
        if decodes_its_z(graphs["vae"]):
            model = _converted(whole, opset)
            if _has_free_axes(model, whole):
                return {part: _written(graph) for part, graph in cut(model, graphs)}
    # Each by itself: where the decoder is given more than z, or for an error that names the graph that fails.
    return {part: to_bytes(graph, opset) for part, graph in graphs.items()}


def _has_free_axes(model: ir.Model, graph: Graph) -> bool:
    """Whether no network has fixed a size for all of them."""
    shapes = [value.shape for value in model.graph.inputs]
    axes = zip(shapes, graph.free_axes(), strict=True)
    return not any(shape is None or isinstance(shape[axis], int) for shape, free in axes for axis in free)


@torch.no_grad()  # with gradients torch traces the graph of the backward pass too, and throws it away
def _converted(graph: Graph, opset: int) -> ir.Model:
    # torch takes a free axis whose example is 1 for a fixed one, and the model's own latent map may be one pixel.
    example = (graph if graph.multiple is None else graph.larger()).constant_inputs(0.5)
    axes: Any = graph.free_axes()
    program: Any = torch.onnx.export(
        graph.module.eval(),
        example,
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
        dynamic_shapes=(axes,) if isinstance(graph.module, Together) else axes,
        opset_version=opset,
        dynamo=True,
        custom_translation_table=_TRANSLATIONS,
        verbose=False,
    )
    return program.model


def _written(model: ir.Model) -> bytes:
    lower(model)
    RemoveUnusedNodesPass()(model)
    ClearMetadataAndDocStringPass()(model)
    proto = ir.to_proto(model)
    for value in (*proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    proto.producer_name, proto.producer_version = "vaelib", ""
    proto.ir_version = lowest_ir_version(proto)
    return bytes(proto.SerializeToString(deterministic=True))


def lowest_ir_version(proto: onnx.ModelProto) -> int:
    """The oldest version of the file format that has the model's operator sets, for the sake of older runtimes."""
    return int(onnx.helper.find_min_ir_version_for(proto.opset_import))


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """The same model with ``metadata_props``."""
    proto = onnx.load_model_from_string(content)
    onnx.helper.set_model_props(proto, dict(metadata))
    return bytes(proto.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _export_errors(graph: Graph) -> Iterator[None]:
    """Nothing printed, and one kind of error: torch wraps whatever goes wrong in exporter errors of many kinds."""
    try:
        with _quiet():
            yield
    except Exception as error:
        raise ExportError(f"torch could not export {culprit(graph)}: {reason_of(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, logs or printed graphs of the exporters: what they make is checked as a whole afterwards."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
