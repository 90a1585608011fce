"""Exact rewrites of a finished graph into the form that onnxruntime computes fastest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from onnx_ir.passes.common import NameFixPass
from torch import Tensor

__all__ = ["lower"]

_MOST_WEIGHTS = 2**18  # of a product with more than its convolution has: 1 MB, which stays in cache
_MOST_INPUTS = 4096  # of a product, which is found by applying the convolution to every unit vector
_LAYERS = ("Gemm", "Conv")
_DEFAULTS = {"pads": [0, 0, 0, 0], "strides": [1, 1], "dilations": [1, 1], "output_padding": [0, 0]}
_MOVES = ("Reshape", "DepthToSpace", "Slice")
_POINTWISE = ("Relu", "LeakyRelu", "Elu", "Sigmoid", "Tanh", "Softplus")


def lower(model: ir.Model) -> None:
    """Rewrite ``model`` in place; the function it computes stays the same up to rounding."""
    NameFixPass()(model)  # torch names the result of a mean "mean", as the decoder's output is named
    _fold_batch_norms(model.graph)
    _multiply_small_maps(model.graph)
    _drop_reshapes(model.graph)
    _merge_products(model.graph)
    _batch_invariant_powers_and_sums(model.graph)


def _fold_batch_norms(graph: ir.Graph) -> None:
    """Into the layer before them, also where values only move in between, which torch's exporter leaves."""
    norm: Any
    for norm in list(graph):
        layer = _layer_before(norm.inputs[0]) if norm.op_type == "BatchNormalization" else None
        if layer is None or any(value.const_value is None for value in norm.inputs[1:5]):
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
        _replace(graph, norm, norm.inputs[0])


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
    if layer.op_type == "Conv":
        return all(value.const_value is not None for value in layer.inputs[1:])
    return _is_product(layer) and layer.attributes.get_int("transB", 0) == 1


def _keeps_channels_together(move: Any) -> bool:
    before, after = move.inputs[0].shape, move.outputs[0].shape
    if move.op_type == "DepthToSpace":
        return move.attributes.get_string("mode", "DCR") == "CRD"
    if move.op_type == "Slice":
        axes = move.inputs[3].const_value if len(move.inputs) > 3 else None
        return axes is not None and bool((axes.numpy() > 1).all())
    return before is not None and after is not None and len(before) == 2 and before[0] == after[0]


def _multiply_small_maps(graph: ir.Graph) -> None:
    """A convolution of maps of a few pixels is one matrix product over the whole batch."""
    node: Any
    for node in list(graph):
        product = _product_of(node) if node.op_type in ("Conv", "ConvTranspose") else None
        if product is None:
            continue
        weight, bias = product
        shape = [-1, *node.outputs[0].shape[1:]]
        flat = ir.node("Reshape", [node.inputs[0], _initializer(graph, node, "flat", np.array([0, -1]))])
        constants = [_initializer(graph, node, name, values) for name, values in (("weight", weight), ("bias", bias))]
        gemm = ir.node("Gemm", [flat.outputs[0], *constants])
        image = ir.node("Reshape", [gemm.outputs[0], _initializer(graph, node, "shape", np.array(shape))])
        for new, size in ((flat, len(weight)), (gemm, len(bias))):
            new.outputs[0].shape = ir.Shape([node.outputs[0].shape[0], size])
            new.outputs[0].type = node.outputs[0].type
        _replace_by(graph, node, [flat, gemm, image])


def _drop_reshapes(graph: ir.Graph) -> None:
    """What is made a map, activated and flattened again, was as good before; the activation then fuses."""
    back: Any
    for back in list(graph):
        chain = [back]
        while (node := chain[-1].inputs[0].producer()) is not None and _only_leads_on(node):
            chain.append(node)
            if node.op_type == "Reshape":
                break
        flat, shape = chain[-1].inputs[0], back.outputs[0].shape
        if back.op_type != "Reshape" or len(chain) < 2 or node is None or node.op_type != "Reshape":
            continue
        if flat.shape is None or shape is None or len(flat.shape) != 2 or list(flat.shape[1:]) != list(shape[1:]):
            continue
        for node in chain[1:-1]:
            node.outputs[0].shape = flat.shape
        chain[-1].outputs[0].replace_all_uses_with(flat)
        _replace(graph, back, back.inputs[0])


def _only_leads_on(node: Any) -> bool:
    output = node.outputs[0]
    return node.op_type in ("Reshape", *_POINTWISE) and len(output.uses()) == 1 and not output.is_graph_output()


def _merge_products(graph: ir.Graph) -> None:
    """A product of a product, nothing between them, is one if that costs less."""
    first: Any
    for first in list(graph):
        users = [use.node for use in first.outputs[0].uses()]
        if first.outputs[0].is_graph_output() or not users or not all(map(_is_product, [first, *users])):
            continue
        weight, bias = _matrix(first)
        factors = [_matrix(user) for user in users]
        if len(weight) * sum(len(b) for _, b in factors) > weight.size + sum(w.size for w, _ in factors):
            continue
        for user, (w, b) in zip(users, factors, strict=True):
            dtype = user.inputs[1].const_value.numpy().dtype
            user.replace_input_with(0, first.inputs[0])
            user.attributes["transB"] = ir.AttrInt64("transB", 1)
            _set_inputs(graph, user, (weight @ w).T.astype(dtype), (bias @ w + b).astype(dtype))


def _is_product(node: Any) -> bool:
    if node.op_type != "Gemm" or [value.const_value is not None for value in node.inputs] != [False, True, True]:
        return False
    weight, bias = (value.const_value.numpy() for value in node.inputs[1:])
    return (
        bias.shape == (weight.shape[0 if node.attributes.get_int("transB", 0) else 1],)
        and node.attributes.get_int("transA", 0) == 0
        and {node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")} == {1.0}
    )


def _matrix(product: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Weight ``(in, out)`` and bias ``(out,)`` in double precision."""
    weight, bias = (value.const_value.numpy().astype(np.float64) for value in product.inputs[1:])
    return weight.T if product.attributes.get_int("transB", 0) else weight, bias


def _batch_invariant_powers_and_sums(graph: ir.Graph) -> None:
    """In operators that give an image the same bits in any batch, which ``Pow`` and the sums do not."""
    node: Any
    for node in list(graph):
        is_known = node.op_type in ("Pow", "ReduceMean", "ReduceSum", "ReduceL2") and len(node.inputs) > 1
        constant = node.inputs[1].const_value if is_known else None
        value = None if constant is None else constant.numpy().tolist()
        if node.op_type == "Pow" and value == 2.0:
            _replace_by(graph, node, [ir.node("Mul", [node.inputs[0]] * 2)])
        elif node.op_type == "ReduceMean" and value == [1] and node.attributes.get_int("keepdims", 1):
            _mean_of_channels(graph, node)
        elif node.op_type == "ReduceSum" and value == [1] and not node.attributes.get_int("keepdims", 1):
            _sum_by_products(graph, node)
        elif value in ([-1], [2]) and (node.op_type == "ReduceL2" or node.inputs[0].dtype == ir.DataType.INT64):
            _sum_of_channels(graph, node)


def _mean_of_channels(graph: ir.Graph, node: Any) -> None:
    """``(B, C, ...)`` over C, as pixels are normalised, by a convolution of one output."""
    value = node.inputs[0]
    if value.shape is None or len(value.shape) not in (3, 4) or not isinstance(value.shape[1], int):
        return
    channels, ones = value.shape[1], [1] * (len(value.shape) - 2)
    weight = np.full((1, channels, *ones), 1 / channels, value.dtype.numpy())
    _replace_by(graph, node, [ir.node("Conv", [value, _initializer(graph, node, "weight", weight)])])


def _sum_of_channels(graph: ir.Graph, node: Any) -> None:
    """``(B, N, C)`` over C, as codes are made: a number from its digits, or the length of a vector."""
    value, dtype = node.inputs[0], node.inputs[0].dtype.numpy()
    if value.shape is None or len(value.shape) != 3 or not isinstance(value.shape[2], int):
        return
    new = [ir.node("Mul", [value, value])] if node.op_type == "ReduceL2" else []
    summed = new[-1].outputs[0] if new else value
    new.append(ir.node("MatMul", [summed, _initializer(graph, node, "ones", np.ones((value.shape[2], 1), dtype))]))
    if node.op_type == "ReduceL2":
        new.append(ir.node("Sqrt", [new[-1].outputs[0]]))
    if not node.attributes.get_int("keepdims", 1):
        new.append(ir.node("Squeeze", [new[-1].outputs[0], _initializer(graph, node, "axis", np.array([-1]))]))
    _replace_by(graph, node, new)


def _sum_by_products(graph: ir.Graph, node: Any) -> None:
    """``(B, n)`` to ``(B,)``, first in rows, then their sums: as many roundings as the edge of an image has pixels."""
    shape = node.inputs[0].shape
    if shape is None or len(shape) != 2 or not isinstance(shape[1], int) or shape[1] == 0:
        return
    rows = next(rows for rows in range(math.isqrt(shape[1]), 0, -1) if shape[1] % rows == 0)
    value, dtype, new = node.inputs[0], node.inputs[0].dtype.numpy(), []
    for name, cut in (("pixels", [-1, rows, shape[1] // rows]), ("rows", [-1, rows])):
        new.append(ir.node("Reshape", [value, _initializer(graph, node, f"{name}_shape", np.array(cut))]))
        ones = _initializer(graph, node, f"{name}_ones", np.ones((cut[-1], 1), dtype))
        new.append(ir.node("MatMul", [new[-1].outputs[0], ones]))
        value = new[-1].outputs[0]
    new.append(ir.node("Reshape", [value, _initializer(graph, node, "shape", np.array([-1]))]))
    _replace_by(graph, node, new)


def _replace_by(graph: ir.Graph, node: Any, new: list[ir.Node]) -> None:
    """Let the last of ``new`` give what ``node`` gave, of the same shape and type."""
    new[-1].outputs[0].shape, new[-1].outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    graph.insert_before(node, new)
    _replace(graph, node, new[-1].outputs[0])


def _replace(graph: ir.Graph, node: Any, value: Any) -> None:
    """Let ``value`` be what ``node`` gave, under its name, which may be an output's."""
    output, name = node.outputs[0], node.outputs[0].name
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    value.name = name


def _product_of(node: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """Weight ``(in, out)`` and bias ``(out,)`` if they cost less than the convolution."""
    before, after = node.inputs[0].shape, node.outputs[0].shape
    if any(value.const_value is None for value in node.inputs[1:]) or node.attributes.get_int("group", 1) > 1:
        return None
    sizes = [axis for shape in (before, after) for axis in (shape or [None])[1:]]
    if len(sizes) != 6 or not all(isinstance(axis, int) for axis in sizes):
        return None
    transposed = node.op_type == "ConvTranspose"
    weight = torch.tensor(node.inputs[1].const_value.numpy())
    pixels = math.prod(after[2:] if transposed else before[2:])
    growth = pixels / math.prod(weight.shape[2:])  # of the arithmetic
    weights = math.prod(before[1:]) * math.prod(after[1:])
    pays = growth <= (2 if transposed else 1) and weights <= max(weight.numel(), _MOST_WEIGHTS)
    if not pays or math.prod(before[1:]) > _MOST_INPUTS:
        return None
    columns = _apply(node, torch.eye(math.prod(before[1:])).unflatten(1, before[1:]), weight.float())
    bias = node.inputs[2].const_value.numpy() if len(node.inputs) > 2 else np.zeros(after[1], np.float32)
    dtype = node.inputs[1].const_value.numpy().dtype
    return columns.flatten(1).numpy().astype(dtype), np.repeat(bias, math.prod(after[2:])).astype(dtype)


def _apply(node: Any, images: Tensor, weight: Tensor) -> Tensor:
    """The node's convolution without its bias."""
    ints = {name: node.attributes.get_ints(name, default) for name, default in _DEFAULTS.items()}
    top, left, bottom, right = ints["pads"]
    common = {"stride": ints["strides"], "dilation": ints["dilations"]}
    if node.op_type == "Conv":
        return F.conv2d(F.pad(images, (left, right, top, bottom)), weight, **common)
    extra = ints["output_padding"]
    return F.conv_transpose2d(images, weight, padding=(top, left), output_padding=extra, **common)


def _constant(value: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    return value.const_value.numpy().astype(np.float32)


def _set_inputs(graph: ir.Graph, layer: ir.Node, weight: Any, bias: Any) -> None:
    """New constants for a layer: others may read the old ones."""
    layer.resize_inputs(3)
    layer.replace_input_with(1, _initializer(graph, layer, "weight", weight))
    layer.replace_input_with(2, _initializer(graph, layer, "bias", bias))


def _initializer(graph: ir.Graph, node: Any, name: str, values: np.ndarray[Any, Any]) -> ir.Value:
    name = f"{node.outputs[0].name}_lowered_{name}"
    while name in graph.initializers:  # of a rewrite of the same node before
        name += "_"
    value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(values), name=name))
    graph.register_initializer(value)
    return value
