"""Sections of a graph: of a deep one the halves, before and after a map of low resolution, as graphs of their own."""

from __future__ import annotations

from collections.abc import Collection

from vaelib.runtime.protobuf import NODE, TENSOR, ProtobufError, fields_of, parse, written

__all__ = ["cut_out"]

_GRAPH = 7
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 1, 5, 11, 12, 13
_FLOAT32 = b"\x08\x01"


def cut_out(content: bytes, given: str, wanted: Collection[str]) -> bytes:
    """The ONNX file that computes the float32 values ``wanted`` of the graph in ``content`` from its value ``given``.

    Args:
        content: An ONNX file, as :func:`vaelib.runtime.protobuf.parse` reads it.
        given: Name of an input or of a value within.
        wanted: Names of outputs or of values within.

    Raises:
        ProtobufError: If these depend on another input or do not exist.
    """
    model = list(fields_of(memoryview(content)))
    graph = [
        (number, whole, body)
        for number, _, body in model
        if number == _GRAPH
        for number, whole, body in fields_of(body)
    ]
    nodes, needed = [], set(wanted)
    for whole, node in reversed([(whole, parse(body, NODE)) for number, whole, body in graph if number == _NODE]):
        if not needed.isdisjoint({*node["output"]} - {given}):
            nodes.append((whole, node))
            needed.update(node["input"])
    weights = [(whole, parse(body, TENSOR)["name"]) for number, whole, body in graph if number == _INITIALIZER]
    known = {given, ""}.union(*(node["output"] for _, node in nodes), (name for _, name in weights))
    if not needed <= known:
        raise ProtobufError(f"{', '.join(wanted)} depends on more than {given!r}: {', '.join(sorted(needed - known))}")
    parts = [
        *(whole for whole, _ in reversed(nodes)),
        *(whole for whole, name in weights if name in needed),
        *(whole for number, whole, _ in graph if number not in (_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO)),
        written(_INPUT, _value(given)),
        *(written(_OUTPUT, _value(name)) for name in wanted),
    ]
    others = [whole for number, whole, _ in model if number != _GRAPH]
    return b"".join([*others, written(_GRAPH, b"".join(parts))])


def _value(name: str) -> bytes:
    """A float32 tensor of any shape, as an input or output."""
    return written(1, name.encode()) + written(2, written(1, _FLOAT32))
