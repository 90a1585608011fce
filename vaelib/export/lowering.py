"""Exact rewrites of a finished graph into the form that onnxruntime computes fastest."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["lower"]

_LAYERS = ("Gemm", "Conv")
_MOVES = ("Reshape", "DepthToSpace", "Slice")


def lower(model: ir.Model) -> None:
    """Rewrite ``model`` in place; the function it computes stays the same up to rounding."""
    _fold_batch_norms(model.graph)


def _fold_batch_norms(graph: ir.Graph) -> None:
    """Into the layer before them, also where values only move in between, which torch's exporter leaves."""
    norm: Any
    for norm in list(graph):
        layer = _layer_before(norm.inputs[0]) if norm.op_type == "BatchNormalization" else None
        if layer is None:
            continue
        scale, shift, mean, variance = (_constant(value) for value in norm.inputs[1:5])
        weight = _constant(layer.inputs[1])
        bias = _constant(layer.inputs[2]) if len(layer.inputs) > 2 else np.zeros(len(weight), np.float32)
        factor = scale / np.sqrt(variance + norm.attributes["epsilon"].as_float())
        spread = len(weight) // len(factor)  # of one channel's values, which stay neighbours when they move
        factor, shift, mean = (np.repeat(values, spread) for values in (factor, shift, mean))
        weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        dtype = layer.inputs[1].const_value.numpy().dtype
        _set_inputs(graph, layer, weight.astype(dtype), ((bias - mean) * factor + shift).astype(dtype))
        norm.outputs[0].replace_all_uses_with(norm.inputs[0], replace_graph_outputs=True)
        graph.remove(norm, safe=True)


def _layer_before(value: Any) -> Any:
    """The layer whose output channels are those of ``value``, in their order, and that nothing else reads."""
    while (node := value.producer()) is not None and len(value.uses()) == 1 and not value.is_graph_output():
        if node.op_type in _LAYERS:
            return node if _is_plain(node) else None
        if node.op_type not in _MOVES or not _keeps_channels_together(node):
            return None
        value = node.inputs[0]
    return None


def _is_plain(layer: Any) -> bool:
    """Output channels first in the weight, as torch's Linear and Conv2d are written."""
    return all(value.const_value is not None for value in layer.inputs[1:]) and (
        layer.op_type == "Conv" or (layer.attributes.get_int("transB", 0) == 1 and len(layer.inputs) == 3)
    )


def _keeps_channels_together(move: Any) -> bool:
    before, after = move.inputs[0].shape, move.outputs[0].shape
    if move.op_type == "DepthToSpace":
        return move.attributes.get_string("mode", "DCR") == "CRD"
    if move.op_type == "Slice":
        return before is not None and after is not None and before[1] == after[1]
    return before is not None and after is not None and len(before) == 2 and before[0] == after[0]


def _constant(value: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    return value.const_value.numpy().astype(np.float32)


def _set_inputs(graph: ir.Graph, layer: ir.Node, *arrays: np.ndarray[Any, Any]) -> None:
    """New constants for a layer: others may read the old ones."""
    for kind, array in zip(("weight", "bias"), arrays, strict=True):
        name = f"{layer.outputs[0].name}_folded_{kind}"
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        graph.register_initializer(value)
        index = 1 if kind == "weight" else 2
        layer.resize_inputs(max(len(layer.inputs), index + 1))
        layer.replace_input_with(index, value)
