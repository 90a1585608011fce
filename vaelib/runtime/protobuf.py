"""Just enough of ONNX's wire format to look into a file before onnxruntime does.

A message is read by a table of the fields that it may have, and a field that the table lacks is refused: what is
not understood is not let through. So is a second value of a field that has one, which other readers would merge. The
tables hold no message within itself, so the depth of reading is theirs, and ``MAX_FIELDS`` bounds its length.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["MAX_FIELDS", "MODEL", "NODE", "TENSOR", "VALUE", "ProtobufError", "fields_of", "parse", "written"]

MAX_FIELDS = 200_000
"""Of fields and of packed whole numbers in one file; a graph of 1,000 nodes has about 20,000."""

_VARINT, _BYTES, _FOUR_BYTES = 0, 2, 5  # protobuf's wire types


class ProtobufError(ValueError):
    """The bytes are no message of the expected fields."""


class Field(NamedTuple):
    """One row of a message's table: how to read a value, and whether there may be many."""

    name: str
    kind: Any
    """``int``, ``float``, ``str``, ``bytes``, or the table of a message."""
    many: bool = False


_ENTRY = {1: Field("key", str), 2: Field("value", str)}
_DIMENSION = {1: Field("dim_value", int), 2: Field("dim_param", str), 3: Field("denotation", str)}
_SHAPE = {1: Field("dim", _DIMENSION, many=True)}
_TYPE = {1: Field("tensor_type", {1: Field("elem_type", int), 2: Field("shape", _SHAPE)}), 6: Field("denotation", str)}
VALUE = {
    1: Field("name", str),
    2: Field("type", _TYPE),
    3: Field("doc_string", str),
    4: Field("metadata_props", _ENTRY, many=True),
}
TENSOR = {
    1: Field("dims", int, many=True),
    2: Field("data_type", int),
    4: Field("float_data", float, many=True),
    5: Field("int32_data", int, many=True),
    7: Field("int64_data", int, many=True),
    8: Field("name", str),
    9: Field("raw_data", bytes),
    12: Field("doc_string", str),
    13: Field("external_data", _ENTRY, many=True),
    14: Field("data_location", int),
    16: Field("metadata_props", _ENTRY, many=True),
}
_ATTRIBUTE = {
    1: Field("name", str),
    2: Field("f", float),
    3: Field("i", int),
    4: Field("s", str),
    5: Field("t", TENSOR),
    7: Field("floats", float, many=True),
    8: Field("ints", int, many=True),
    9: Field("strings", str, many=True),
    13: Field("doc_string", str),
    20: Field("type", int),
}
NODE = {
    1: Field("input", str, many=True),
    2: Field("output", str, many=True),
    3: Field("name", str),
    4: Field("op_type", str),
    5: Field("attribute", _ATTRIBUTE, many=True),
    6: Field("doc_string", str),
    7: Field("domain", str),
    9: Field("metadata_props", _ENTRY, many=True),
}
_GRAPH = {
    1: Field("node", NODE, many=True),
    2: Field("name", str),
    5: Field("initializer", TENSOR, many=True),
    10: Field("doc_string", str),
    11: Field("input", VALUE, many=True),
    12: Field("output", VALUE, many=True),
    13: Field("value_info", VALUE, many=True),
    16: Field("metadata_props", _ENTRY, many=True),
}
MODEL = {
    1: Field("ir_version", int),
    2: Field("producer_name", str),
    3: Field("producer_version", str),
    4: Field("domain", str),
    5: Field("model_version", int),
    6: Field("doc_string", str),
    7: Field("graph", _GRAPH),
    8: Field("opset_import", {1: Field("domain", str), 2: Field("version", int)}, many=True),
    14: Field("metadata_props", _ENTRY, many=True),
}
_NOTHING = {int: 0, float: 0.0, str: "", bytes: b""}


def parse(data: bytes | memoryview, table: dict[int, Field]) -> dict[str, Any]:
    """The message as a dictionary: a list for each field that may have many values, else its value or nothing.

    Raises:
        ProtobufError: If a field is unknown, doubled, of another wire type, or reaches beyond its message, a text is
            not UTF-8, or there are more than ``MAX_FIELDS``.
    """
    return _Reader().message(memoryview(data), table)


def fields_of(data: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """The number of each field of a message that :func:`parse` has read, all its bytes, and those of its value."""
    reader, at = _Reader(), 0
    while at < len(data):
        start = at
        tag, at = reader.varint(data, at)
        number, wire = divmod(tag, 8)
        size, after = (4, at) if wire == _FOUR_BYTES else reader.varint(data, at)
        at = after if wire == _VARINT else after + size
        yield number, data[start:at], data[after:at]


def written(number: int, value: bytes | memoryview) -> bytes:
    """A field of a message: a text, bytes, or a message."""
    return b"".join([_as_varint(8 * number + _BYTES), _as_varint(len(value)), value])


def _as_varint(value: int) -> bytes:
    digits = []
    while value > 0x7F:
        digits.append(0x80 | value & 0x7F)
        value >>= 7
    return bytes([*digits, value])


class _Reader:
    def __init__(self) -> None:
        self.left = MAX_FIELDS

    def message(self, data: memoryview, table: dict[int, Field]) -> dict[str, Any]:
        found: dict[str, Any] = {
            name: [] if many else {} if isinstance(kind, dict) else _NOTHING[kind]
            for name, kind, many in table.values()
        }
        seen = set()
        at = 0
        while at < len(data):
            tag, at = self.varint(data, at)
            number, wire = divmod(tag, 8)
            if number not in table:
                raise ProtobufError(f"field {number} is not allowed here")
            field = table[number]
            values, at = self._values(data, at, wire, field)
            if field.many:
                found[field.name] += values
            elif field.name in seen:
                raise ProtobufError(f"`{field.name}` is given twice")
            else:
                found[field.name] = values[0]
                seen.add(field.name)
        return found

    def _values(self, data: memoryview, at: int, wire: int, field: Field) -> tuple[list[Any], int]:
        """The value at ``at``, or the many that are packed there, and where it ends."""
        if wire == _VARINT and field.kind is int:
            value, at = self.varint(data, at)
            return [_signed(value)], at
        if wire == _FOUR_BYTES and field.kind is float and at + 4 <= len(data):
            return list(struct.unpack_from("<f", data, at)), at + 4
        if wire == _BYTES and (field.many or field.kind not in (int, float)):
            size, at = self.varint(data, at)
            if at + size <= len(data):
                return self._content(data[at : at + size], field), at + size
        raise ProtobufError(f"`{field.name}` has wire type {wire} or reaches beyond its message")

    def _content(self, content: memoryview, field: Field) -> list[Any]:
        if field.kind is bytes:
            return [content]
        if field.kind is str:
            try:
                return [str(content, "utf-8")]
            except UnicodeDecodeError as error:
                raise ProtobufError(f"`{field.name}` is not UTF-8") from error
        if field.kind is float:
            self._spend(len(content) // 4)
            if len(content) % 4:
                raise ProtobufError(f"`{field.name}` ends within a number")
            return list(struct.unpack(f"<{len(content) // 4}f", content))
        if field.kind is int:
            numbers, at = [], 0
            while at < len(content):
                value, at = self.varint(content, at)
                numbers.append(_signed(value))
            return numbers
        return [self.message(content, field.kind)]

    def varint(self, data: memoryview, at: int) -> tuple[int, int]:
        self._spend(1)
        value = 0
        for shift, byte in zip(range(0, 70, 7), data[at : at + 10], strict=False):
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, at + shift // 7 + 1
        raise ProtobufError("a number does not end")

    def _spend(self, fields: int) -> None:
        self.left -= fields
        if self.left < 0:
            raise ProtobufError(f"it has more than {MAX_FIELDS} fields")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
