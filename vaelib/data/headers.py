"""What the first and the last bytes of an image tell: channels, size, and that it is not cut off."""

from __future__ import annotations

import io
import os
from typing import IO, Any, NamedTuple

from PIL import ExifTags

from vaelib.data.decode import bits_of, check_opened, frames_of, opened_by_pil
from vaelib.data.ranges import ValueRange

_TURNED = (5, 6, 7, 8)  # orientations that swap height and width
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}


class Header(NamedTuple):
    """An image as it is decoded, without its pixels."""

    channels: int
    height: int
    width: int
    bits: int
    """8 or 16 per channel, where their range is agreed."""


class Part(io.RawIOBase):
    """Part of an unbuffered file as a file of its own: an entry of a shard; a ``size`` of -1 is all from ``offset``."""

    def __init__(self, file: io.FileIO, offset: int, size: int) -> None:
        self._file, self._offset, self._position = file, offset, 0
        self.size = os.fstat(file.fileno()).st_size - offset if size < 0 else size

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to ``offset`` and return the position."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` as far as the part goes."""
        self._file.seek(self._offset + self._position)
        length = min(len(buffer), max(0, self.size - self._position))
        count = self._file.readinto(memoryview(buffer)[:length])
        self._position += count
        return count


def read_headers(
    name: str, file: IO[bytes], *, value_range: ValueRange | None = None, frames: str | None = None
) -> list[Header]:
    """One header for each image that :func:`vaelib.data.decode.decode` makes of a file, and its errors.

    Pixels are decoded only of files whose end does not show that they are whole.
    """
    with opened_by_pil(file) as image:
        headers = [_header(name, frame, value_range) for frame in frames_of(name, image, frames)]
        whole = _strips_end(image, file) if image.format == "TIFF" else _ends(file, image.format or "")
    if not whole:
        file.seek(0)
        with opened_by_pil(file) as image:
            image.load()
    return headers


def _header(name: str, image: Any, value_range: ValueRange | None) -> Header:
    check_opened(name, image, value_range)
    is_deep = image.mode == "F" or image.mode.startswith("I")
    is_grey = image.mode in ("1", "L") and not image.has_transparency_data
    # PIL has turned the size of a TIFF already, or not, by its version.
    width, height = (image.tag_v2[tag] for tag in (256, 257)) if image.format == "TIFF" else image.size
    if _orientation(image) in _TURNED:
        width, height = height, width
    return Header(1 if is_deep or is_grey else 3, height, width, bits_of(image) or 8)


def _orientation(image: Any) -> int:
    if not {"exif", "xmp", "XML:com.adobe.xmp"}.intersection(image.info) and image.format != "TIFF":
        return 1  # PIL would decode a PNG to look for it after the pixels
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _ends(file: IO[bytes], kind: str) -> bool:
    """Whether the last bytes show that an image is whole."""
    length = file.seek(0, os.SEEK_END)
    if kind == "WEBP":
        file.seek(4)
        return int.from_bytes(file.read(4), "little") + 8 <= length
    if kind == "AVIF":
        return _boxes_end(file, length)
    file.seek(-min(length, 16), os.SEEK_END)
    return kind in _ENDS and file.read().rstrip(b"\0").endswith(_ENDS[kind])


def _strips_end(image: Any, file: IO[bytes]) -> bool:
    """Whether all strips or tiles of a TIFF lie within it."""
    starts, sizes = (image.tag_v2.get(strips, image.tag_v2.get(tiles)) for strips, tiles in ((273, 324), (279, 325)))
    if not starts or not sizes:
        return False
    return max(a + b for a, b in zip(starts, sizes, strict=False)) <= file.seek(0, os.SEEK_END)


def _boxes_end(file: IO[bytes], length: int) -> bool:
    """Whether the boxes of an ISO media file end where it ends."""
    offset = 0
    while offset < length:
        file.seek(offset)
        size = int.from_bytes(file.read(4), "big")
        if size < 8:
            return False
        offset += size
    return offset == length
