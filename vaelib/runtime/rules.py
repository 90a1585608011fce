"""What an ONNX graph may hold before onnxruntime is shown it: operators, attributes, shapes and divisors.

onnxruntime refuses most broken graphs by itself. The rules here are for what it does not survive or should not do: a
division by zero, a shape that asks for a terabyte, weights that lie in another file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaelib.runtime.contract import Contract, Spec
from vaelib.runtime.operators import BATCH_INVARIANT, OTHERS, REFUSED, SIZES, TENSOR, VALUE_OF, allowed

__all__ = ["GraphError", "check_graph", "check_rules", "is_batch_invariant"]

Message = Mapping[str, Any]

_FLOAT32, _INT32, _INT64 = 1, 6, 7
_TYPES = {"float32": _FLOAT32, "int64": _INT64}
_DTYPES = {1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "u1", 10: "<f2", 11: "<f8"} | {
    12: "<u4",
    13: "<u8",
    16: "<u2",
}
"""onnx.TensorProto.DataType to how its raw data are read; of bfloat16 only the size matters."""
_FLOATING = (1, 10, 11, 16)
_LISTS = {_FLOAT32: "float_data", _INT32: "int32_data", _INT64: "int64_data"}
_MAX_ELEMENTS = 2**28
_MAX_SHAPE = 64
_ENDS = (2**31 - 1, 2**63 - 1, -(2**31), -(2**63))  # of Slice: to the end, whatever that is
_MAX_SCALE = 16.0


class GraphError(ValueError):
    """A graph breaks a rule; the message says which."""


def is_batch_invariant(model: Message) -> bool:
    """Whether an image's bits cannot depend on the batch that it is computed in."""
    return all(node["op_type"] in BATCH_INVARIANT for node in model["graph"]["node"])


def check_graph(model: Message, contract: Contract) -> None:
    """Refuse what vaelib does not run, and whatever takes or gives other than its contract says.

    Args:
        model: The model, as :func:`vaelib.runtime.protobuf.parse` reads it.
        contract: The names that the graph must have, in order, with dtypes and shapes.

    Raises:
        GraphError: If a rule is broken.
    """
    graph, own = model["graph"], contract.names
    if not graph:
        raise GraphError("it holds no graph")
    _check_values("inputs", graph["input"], {own.get(name, name): spec for name, spec in contract.inputs.items()})
    _check_values("outputs", graph["output"], {own.get(name, name): spec for name, spec in contract.outputs.items()})
    check_rules(model)


def check_rules(model: Message) -> None:
    """The rules for whatever is between inputs and outputs."""
    for domain in {entry["domain"] for entry in (*model["opset_import"], *model["graph"]["node"])}:
        if domain not in ("", "ai.onnx"):
            raise GraphError(f"it needs operators of the domain {domain!r}")
    graph = model["graph"]
    constants = {tensor["name"]: tensor for tensor in graph["initializer"]}
    for tensor in graph["initializer"]:
        _check_tensor(tensor)
    for node in graph["node"]:
        _check_node(node)
        if node["op_type"] == "Constant":
            constants |= dict(zip(node["output"], _tensors_of(node), strict=False))
    _check_names(graph)
    _check_sizes(graph["node"], constants)
    _check_whole_numbers(graph, constants)


def _check_names(graph: Message) -> None:
    seen: set[str] = set()
    given = [value["name"] for value in (*graph["input"], *graph["initializer"])]
    for name in (*given, *(name for node in graph["node"] for name in node["output"] if name)):
        if name in seen:
            raise GraphError(f"`{name}` is defined twice")
        seen.add(name)


def _check_sizes(nodes: Sequence[Message], constants: Mapping[str, Message]) -> None:
    """Bound the constants that an output's size is made from, directly or through other operators."""
    producers = {name: node for node in nodes for name in node["output"] if node["op_type"] not in ("Shape", "Size")}
    waiting = [name for node in nodes for i in SIZES.get(node["op_type"], ()) for name in node["input"][i : i + 1]]
    scales = {name for node in nodes if node["op_type"] == "Resize" for name in node["input"][2:3]}
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in producers:
            waiting += producers[name]["input"]
        if name in constants and name in scales:
            _check_scales(constants[name])
        elif name in constants:
            _check_shape_values(name, _numbers(constants[name]))


def _check_whole_numbers(graph: Message, constants: Mapping[str, Message]) -> None:
    """Refuse divisions of whole numbers by 0, or by -1 (of the smallest), which end the process, and endless ranges.

    Types are those that the graph declares: onnxruntime refuses a graph whose declarations are wrong.
    """
    declared = [*graph["input"], *graph["output"], *graph["value_info"]]
    types = {value["name"]: value["type"].get("tensor_type", {}).get("elem_type") for value in declared}
    if len(types) != len(declared):
        raise GraphError("it declares a value twice")
    types |= {name: tensor["data_type"] for name, tensor in constants.items()}
    types |= {name: _FLOAT32 for n in graph["node"] if n["op_type"] == "DequantizeLinear" for name in n["output"]}
    for node in graph["node"]:
        operator, inputs = node["op_type"], node["input"]
        if operator in ("Div", "Mod") and not any(types.get(name) in _FLOATING for name in inputs):
            divisor = constants.get(inputs[1]) if len(inputs) > 1 else None
            if divisor is None or not np.isin(_numbers(divisor), (0, -1), invert=True).all():
                raise GraphError(
                    f"its operator {operator!r} divides whole numbers by something else than a constant that is neither"
                    " 0 nor -1, which would end the process"
                )
        if operator == "Range" and not all(types.get(name) in (_INT32, _INT64) for name in inputs):
            raise GraphError("its operator 'Range' counts by something else than whole numbers, perhaps for ever")


def _check_values(kind: str, values: Sequence[Message], expected: Mapping[str, Spec]) -> None:
    names = [value["name"] for value in values]
    if names != list(expected):
        raise GraphError(f"its {kind} must be {list(expected)}, got {names}")
    for value in values:
        spec, tensor = expected[value["name"]], value["type"].get("tensor_type")
        if not tensor or tensor["elem_type"] != _TYPES[spec.dtype]:
            raise GraphError(f"`{value['name']}` must be a tensor of {spec.dtype}")
        shape = [None if axis["dim_param"] else axis["dim_value"] for axis in tensor["shape"].get("dim", [])]
        wanted = [axis if isinstance(axis, int) else None for axis in spec.shape]
        known = [got if want is not None else None for got, want in zip(shape, wanted, strict=False)]
        if known != wanted or len(shape) != len(wanted) or shape[0] is not None:
            raise GraphError(f"`{value['name']}` must have shape {wanted}, where None is free, got {shape}")


def _check_tensor(tensor: Message) -> None:
    name, kind = tensor["name"], tensor["data_type"]
    if tensor["external_data"] or tensor["data_location"]:
        raise GraphError(f"the values of `{name}` are external data, in another file")
    if kind not in _DTYPES:
        raise GraphError(f"`{name}` has the data type {kind}")
    if any(not 0 <= extent <= _MAX_ELEMENTS for extent in tensor["dims"]):
        raise GraphError(f"`{name}` has dimensions {tensor['dims']}")
    listed = sum(len(tensor[field]) for field in ("float_data", "int32_data", "int64_data"))
    given = listed + len(tensor["raw_data"]) / np.dtype(_DTYPES[kind]).itemsize
    if given != math.prod(tensor["dims"]) or (listed and len(tensor["raw_data"])):
        raise GraphError(f"`{name}` has dimensions {tensor['dims']}, but {given:g} values")


def _check_shape_values(name: str, values: NDArray[Any]) -> None:
    extents = [abs(value) for value in values.ravel().tolist() if value and value not in _ENDS]
    if values.size > _MAX_SHAPE or not math.prod(extents) <= _MAX_ELEMENTS:
        raise GraphError(f"`{name}` holds {extents[:_MAX_SHAPE]}, which is more than a shape of ours")


def _check_scales(tensor: Message) -> None:
    scales = _numbers(tensor) if tensor["data_type"] == _FLOAT32 else np.zeros(0)
    if not ((scales > 0) & (scales <= _MAX_SCALE)).all():
        raise GraphError(f"`{tensor['name']}` scales by {scales.tolist()}, must be in (0, {_MAX_SCALE:g}]")


def _numbers(tensor: Message) -> NDArray[Any]:
    """The values; of small types that are listed instead of raw, those of ``int32_data``."""
    kind = tensor["data_type"]
    if len(tensor["raw_data"]):
        return np.frombuffer(tensor["raw_data"], _DTYPES[kind])
    return np.array(tensor[_LISTS.get(kind, "int32_data")], np.float64 if kind == _FLOAT32 else np.int64)


def _tensors_of(node: Message) -> list[Message]:
    return [attribute["t"] for attribute in node["attribute"] if attribute["type"] == TENSOR]


def _check_node(node: Message) -> None:
    operator = node["op_type"]
    if operator in REFUSED:
        raise GraphError(f"its operator {operator!r} is not run by vaelib: {REFUSED[operator]}")
    if operator not in BATCH_INVARIANT and operator not in OTHERS:
        raise GraphError(f"its operator {operator!r} is none of ONNX's standard domain that vaelib knows")
    for attribute in node["attribute"]:
        name, kind = attribute["name"], attribute["type"]
        if kind not in VALUE_OF:
            raise GraphError(f"`{name}` of {operator} has the attribute type {kind}")
        value = attribute[VALUE_OF[kind]]
        if not allowed(operator, name, kind, value):
            raise GraphError(f"`{name}` of {operator} must not be {value!r:.80}")
        if kind == TENSOR:
            _check_tensor(value)
