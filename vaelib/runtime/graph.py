"""What an ONNX graph may hold before onnxruntime is shown it: the operators, attributes and shapes that vaelib exports.

onnxruntime refuses most broken graphs by itself. The rules here are for what it does not survive or should not do: a
division by a stride of zero, a shape that asks for a terabyte, weights that lie in another file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["GraphError", "check_graph", "is_steady"]

Message = Mapping[str, Any]
Shape = Sequence[int | None]

_FLOAT32, _INT64 = 1, 7
_BYTES_OF = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2}  # onnx.TensorProto.DataType: float32, (u)int8, ints, bool, half
_MAX_ELEMENTS = 2**28
_MAX_SHAPE = 64
_ENDS = (2**31 - 1, 2**63 - 1, -(2**31), -(2**63))  # of Slice: to the end, whatever that is
_MAX_SCALE = 16.0

_STEADY_OPERATORS = frozenset(
    """
    Abs Add And AveragePool BatchNormalization Cast Clip Concat Conv ConvTranspose DepthToSpace DequantizeLinear Div
    Equal Erf Exp Expand Flatten Gather Gelu Gemm GlobalAveragePool Greater GreaterOrEqual HardSigmoid HardSwish
    Identity InstanceNormalization LayerNormalization LeakyRelu Less LessOrEqual MatMul Max Min Mul Neg Not Or PRelu
    Pad QuantizeLinear Reciprocal Relu Reshape Resize Shape Sigmoid Slice SpaceToDepth Split Sqrt Squeeze Sub Tanh
    Tile Transpose Unsqueeze Where
    """.split()  # noqa: SIM905
)
"""An image's bits do not depend on the batch around it: exact arithmetic, moves, and the kernels of onnxruntime's own
library, which compute the last values of a vector like the others. ``tests/test_runtime_bits.py`` measures it."""
_OTHER_OPERATORS = frozenset(
    """
    Celu ConstantOfShape Cos Elu GatherND GlobalMaxPool GroupNormalization Log LogSoftmax LpNormalization MaxPool Mish
    Mod Pow ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare ScatterND Selu Sign Sin
    Softmax Softplus Softsign Sum ThresholdedRelu
    """.split()  # noqa: SIM905
)
"""Others that a model may hold, among them those of Eigen, which computes the last values of a vector, or those before
an aligned address, by another formula than the rest."""
_INDEXED = ("GatherND", "ScatterND")
"""Their second input says where, not how many; onnxruntime refuses places that do not exist."""
_FLOAT, _INT, _STRING, _FLOATS, _INTS = 1, 2, 3, 6, 7  # onnx.AttributeProto.AttributeType
_VALUE_OF = {_FLOAT: "f", _INT: "i", _STRING: "s", _FLOATS: "floats", _INTS: "ints"}
_FLOAT_ATTRIBUTES = ("alpha", "beta", "cubic_coeff_a", "epsilon", "extrapolation_value", "gamma", "momentum")
_STRING_ATTRIBUTES = {
    "approximate": ("none", "tanh"),
    "auto_pad": ("NOTSET",),
    "coordinate_transformation_mode": ("asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners"),
    "keep_aspect_ratio_policy": ("stretch",),
    "mode": ("nearest", "linear", "cubic", "constant", "reflect", "edge", "DCR", "CRD"),
    "nearest_mode": ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
}
_INT_ATTRIBUTES = {
    "allowzero": (0, 1),
    "antialias": (0, 1),
    "axes": (-8, 8),
    "axis": (-8, 8),
    "batch_dims": (0, 8),
    "block_size": (0, 4096),
    "blocksize": (1, 64),
    "ceil_mode": (0, 1),
    "count_include_pad": (0, 1),
    "dilations": (1, 64),
    "end": (-8, 8),
    "exclude_outside": (0, 1),
    "group": (1, 2**16),
    "keepdims": (0, 1),
    "kernel_shape": (1, 1024),
    "noop_with_empty_axes": (0, 1),
    "num_groups": (1, 2**16),
    "num_outputs": (1, 64),
    "output_dtype": (0, 32),
    "output_padding": (0, 64),
    "pads": (0, 1024),
    "perm": (0, 8),
    "saturate": (0, 1),
    "stash_type": (0, 1),
    "start": (-8, 8),
    "storage_order": (0, 1),
    "strides": (1, 64),
    "to": (1, 16),
    "training_mode": (0, 0),
    "transA": (0, 1),
    "transB": (0, 1),
}


class GraphError(ValueError):
    """A graph breaks a rule; the message says which."""


def is_steady(model: Message) -> bool:
    """Whether an image's bits cannot depend on the batch that it is computed in."""
    return all(node["op_type"] in _STEADY_OPERATORS for node in model["graph"]["node"])


def check_graph(model: Message, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape]) -> None:
    """Refuse what vaelib does not export.

    Args:
        model: As :func:`vaelib.runtime.protobuf.parse` reads it.
        inputs: The names that the graph must have, in order, each with the shape of one item; None is any extent.
        outputs: The same.

    Raises:
        GraphError: If a rule is broken.
    """
    for domain in {entry["domain"] for entry in (*model["opset_import"], *model["graph"]["node"])}:
        if domain not in ("", "ai.onnx"):
            raise GraphError(f"it needs operators of the domain {domain!r}")
    graph = model["graph"]
    _check_values("inputs", graph["input"], inputs)
    _check_values("outputs", graph["output"], outputs)
    scales: set[str] = set()
    indices: set[str] = set()
    others: set[str] = set()
    for node in graph["node"]:
        _check_node(node)
        if node["op_type"] == "Resize":
            scales.update(node["input"][1:3])
        places = node["input"][1:2] if node["op_type"] in _INDEXED else []
        indices.update(places)
        others.update(set(node["input"]) - set(places))
    for tensor in graph["initializer"]:
        _check_tensor(tensor, is_index=tensor["name"] in indices - others)
        if tensor["name"] in scales:
            _check_scales(tensor)


def _check_values(kind: str, values: Sequence[Message], expected: Mapping[str, Shape]) -> None:
    names = [value["name"] for value in values]
    if names != list(expected):
        raise GraphError(f"its {kind} must be {list(expected)}, got {names}")
    for value in values:
        tensor = value["type"].get("tensor_type")
        if not tensor or tensor["elem_type"] != _FLOAT32:
            raise GraphError(f"`{value['name']}` must be a tensor of float32")
        shape = [None if axis["dim_param"] else axis["dim_value"] for axis in tensor["shape"].get("dim", [])]
        wanted = [None, *expected[value["name"]]]
        if [got if want is not None else None for got, want in zip(shape, wanted, strict=False)] != wanted or (
            len(shape) != len(wanted) or shape[0] is not None
        ):
            raise GraphError(f"`{value['name']}` must have shape {wanted}, where None is free, got {shape}")


def _check_tensor(tensor: Message, *, is_index: bool) -> None:
    name, kind = tensor["name"], tensor["data_type"]
    if tensor["external_data"] or tensor["data_location"]:
        raise GraphError(f"the values of `{name}` are external data, in another file")
    if kind not in _BYTES_OF:
        raise GraphError(f"`{name}` has the data type {kind}")
    if any(not 0 <= extent <= _MAX_ELEMENTS for extent in tensor["dims"]):
        raise GraphError(f"`{name}` has dimensions {tensor['dims']}")
    listed = sum(len(tensor[field]) for field in ("float_data", "int32_data", "int64_data"))
    given = listed + len(tensor["raw_data"]) / _BYTES_OF[kind]
    if given != math.prod(tensor["dims"]) or (listed and len(tensor["raw_data"])):
        raise GraphError(f"`{name}` has dimensions {tensor['dims']}, but {given:g} values")
    if kind == _INT64 and not is_index:
        _check_shape_values(name, _numbers(tensor, "<i8", "int64_data"))


def _check_shape_values(name: str, values: NDArray[Any]) -> None:
    extents = [abs(value) for value in values.ravel().tolist() if value and value not in _ENDS]
    if values.size > _MAX_SHAPE or math.prod(extents) > _MAX_ELEMENTS:
        raise GraphError(f"`{name}` holds {extents[:_MAX_SHAPE]}, which is more than a shape of ours")


def _check_scales(tensor: Message) -> None:
    scales = _numbers(tensor, "<f4", "float_data") if tensor["data_type"] == _FLOAT32 else np.zeros(0)
    if not ((scales > 0) & (scales <= _MAX_SCALE)).all():
        raise GraphError(f"`{tensor['name']}` scales by {scales.tolist()}, must be in (0, {_MAX_SCALE:g}]")


def _numbers(tensor: Message, dtype: str, listed: str) -> NDArray[Any]:
    return np.frombuffer(tensor["raw_data"], dtype) if len(tensor["raw_data"]) else np.array(tensor[listed], dtype)


def _check_node(node: Message) -> None:
    operator = node["op_type"]
    if operator not in _STEADY_OPERATORS and operator not in _OTHER_OPERATORS:
        raise GraphError(f"its operator {operator!r} is none that vaelib exports")
    for attribute in node["attribute"]:
        name, kind = attribute["name"], attribute["type"]
        if kind not in _VALUE_OF:
            raise GraphError(f"`{name}` of {operator} has the attribute type {kind}")
        value = attribute[_VALUE_OF[kind]]
        if kind in (_INT, _INTS) and name in _INT_ATTRIBUTES:
            low, high = _INT_ATTRIBUTES[name]
            allowed = all(low <= number <= high for number in ([value] if kind == _INT else value))
        elif kind == _STRING:
            allowed = value in _STRING_ATTRIBUTES.get(name, ())
        else:
            allowed = kind == _FLOAT and name in _FLOAT_ATTRIBUTES and math.isfinite(value)
        if not allowed:
            raise GraphError(f"`{name}` of {operator} must not be {value!r:.80}")
