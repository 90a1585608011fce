"""Sections of a graph: of a deep one the halves, before and after a map of low resolution, as graphs of their own."""

from __future__ import annotations

from collections.abc import Collection

from vaelib.runtime.protobuf import NODE, TENSOR, VALUE, ProtobufError, fields_of, parse, written

__all__ = ["cut_out"]

_GRAPH = 7
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 1, 5, 11, 12, 13
_OF_VALUES = (_INPUT, _OUTPUT, _VALUE_INFO)


def cut_out(content: bytes, given: str, wanted: Collection[str]) -> bytes:
    """The ONNX file that computes the values ``wanted`` of the graph in ``content`` from its value ``given``.

    Args:
        content: An ONNX file that :func:`vaelib.runtime.protobuf.parse` has read. Without its shapes of values within,
            which are kept, onnxruntime fuses other operators than in the whole graph, and rounds otherwise.
        given: Name of an input or of a value within.
        wanted: Names of outputs or of values within.

    Raises:
        ProtobufError: If these depend on another input, or the file lacks the shape of one.
    """
    model = list(fields_of(memoryview(content)))
    graph = [field for number, _, body in model if number == _GRAPH for field in fields_of(body)]
    nodes, needed = [], set(wanted)
    for whole, node in [(whole, parse(body, NODE)) for number, whole, body in reversed(graph) if number == _NODE]:
        if not needed.isdisjoint({*node["output"]} - {given}):
            nodes.append((whole, node))
            needed.update(node["input"])
    weights = [(parse(body, TENSOR)["name"], whole) for number, whole, body in graph if number == _INITIALIZER]
    values = [(parse(body, VALUE)["name"], body) for number, _, body in graph if number in _OF_VALUES]
    shapes = dict(values)
    known = {given, ""}.union((name for name, _ in weights), *(node["output"] for _, node in nodes))
    missing = needed - known | {given, *wanted} - shapes.keys()
    if missing:
        raise ProtobufError(
            f"{', '.join(wanted)} cannot be had from {given!r}: {', '.join(sorted(missing))} is missing"
        )
    ends = {given, *wanted}
    parts = [
        *(whole for whole, _ in reversed(nodes)),
        *(whole for name, whole in weights if name in needed),
        *(written(_VALUE_INFO, body) for name, body in shapes.items() if name in known - ends),
        *(whole for number, whole, _ in graph if number not in (_NODE, _INITIALIZER, *_OF_VALUES)),
        written(_INPUT, shapes[given]),
        *(written(_OUTPUT, shapes[name]) for name in wanted),
    ]
    others = [whole for number, whole, _ in model if number != _GRAPH]
    return b"".join([*others, written(_GRAPH, b"".join(parts))])
