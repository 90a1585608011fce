"""The index of a tar file, read strictly: every member with the place of its bytes, or an error; nothing is unpacked.

``tarfile`` ends without a word at the first header that it cannot read, if it is not the very first. A file that was
cut or changed would lose its tail.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from vaelib._checks import DataError

_BLOCK = 512
_LONGEST_NAME = 1 << 20  # bytes of an extended header; a name that is longer is no name
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


class Member(NamedTuple):
    """One entry of a tar file."""

    name: str
    offset: int
    """Of its first byte in the file."""
    size: int
    kind: str
    """``"file"``, ``"folder"``, ``"link"`` or ``"device"``."""


def members(shard: Path) -> Iterator[Member]:
    """Every member of a tar file in order; a ``DataError`` names file and byte where one is damaged or cut."""
    with shard.open("rb") as file:
        start = file.read(6)
        packed = next((name for magic, name in _PACKED.items() if start.startswith(magic)), None)
        if packed is not None:
            raise DataError(f"{shard} must be a plain tar file, and is {packed} data: unpack it to a plain .tar first.")
        offset, end, extended = 0, os.fstat(file.fileno()).st_size, dict[str, str]()
        while True:
            header = _header(file, shard, offset)
            if header is None:
                return _check_end(file, shard, offset)
            start_of_data = offset + _BLOCK
            size = _size(header, extended, shard, offset, end)
            if header.type in _EXTENSIONS:
                extended |= _extension(header, file, shard, offset, size)
            elif header.type not in (tarfile.XGLTYPE, b"V"):  # comments on the archive, and its label
                name = extended.get("path", header.name)
                if header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in extended):
                    raise _torn(shard, offset, f"member {name!r} is sparse; pack it again without --sparse")
                yield Member(name, start_of_data, size, _kind(header))
                extended = {}
            offset = start_of_data + -(-size // _BLOCK) * _BLOCK


def _header(file: IO[bytes], shard: Path, offset: int) -> tarfile.TarInfo | None:
    file.seek(offset)
    block = file.read(_BLOCK)
    if not block.strip(b"\0") and len(block) == _BLOCK:
        return None
    if len(block) < _BLOCK:
        raise _torn(shard, offset, "the file ends there without an end-of-archive block: its rest may be missing")
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise _torn(shard, offset, f"no header of a member: {error}") from error


def _size(header: tarfile.TarInfo, extended: dict[str, str], shard: Path, offset: int, end: int) -> int:
    """Bytes of data after a header; links and folders have none, whatever they claim."""
    if header.islnk() or header.issym() or header.isdir() or header.isdev():
        return 0
    text = extended.get("size", str(header.size))
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise _torn(shard, offset, f"member {header.name!r} has the size {text}")
    size = int(text)
    if offset + _BLOCK + size > end:
        raise _torn(shard, offset, f"member {header.name!r} of {size} bytes goes beyond the end of the file")
    return size


def _check_end(file: IO[bytes], shard: Path, offset: int) -> None:
    file.seek(offset)
    while chunk := file.read(1 << 20):
        if chunk.strip(b"\0"):
            raise _torn(shard, offset, "the archive ends there, but the file goes on with other bytes")


def _extension(header: tarfile.TarInfo, file: IO[bytes], shard: Path, offset: int, size: int) -> dict[str, str]:
    if size > _LONGEST_NAME:
        raise _torn(shard, offset, f"an extended header of {size} bytes")
    file.seek(offset + _BLOCK)
    try:
        return _EXTENSIONS[header.type](file.read(size))
    except ValueError as error:
        raise _torn(shard, offset, str(error)) from error


def _long_name(content: bytes) -> dict[str, str]:
    return {"path": content.partition(b"\0")[0].decode("utf-8", "surrogateescape")}


def _pax_records(content: bytes) -> dict[str, str]:
    """The records of a pax header, each its length in bytes, a space, ``KEY=VALUE``, and a line feed."""
    records = {}
    while content:
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(content):
            raise ValueError("a damaged pax header")
        key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        content = content[int(length) :]
    return records


_EXTENSIONS = {
    tarfile.GNUTYPE_LONGNAME: _long_name,
    tarfile.GNUTYPE_LONGLINK: lambda content: dict[str, str](),
    tarfile.XHDTYPE: _pax_records,
    tarfile.SOLARIS_XHDTYPE: _pax_records,
}


def _kind(header: tarfile.TarInfo) -> str:
    if header.isdir():
        return "folder"
    if header.islnk() or header.issym():
        return "link"
    return "file" if header.isreg() else "device"


def _torn(shard: Path, offset: int, reason: str) -> DataError:
    return DataError(f"{shard} is not a readable tar file: at byte {offset}, {reason}.")
