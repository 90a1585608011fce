"""One image file to tensors: the decoder under folders, shards, streams and single files."""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, ImageSequence, UnidentifiedImageError
from torch import Tensor

from vaelib._checks import DataError
from vaelib.data.dataset import fit_to_size
from vaelib.data.guard import check_memory, check_pixels, regular_file
from vaelib.data.ranges import DARK, ValueRange, levels

# Asked by name, whatever the suffix: EPS in a file named .png would start Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "AVIF", "JPEG2000", "TIFF", "PPM", "GIF")
_DARK = {8: DARK, 16: 2**15 - 1}
_PIECE = 2**20  # pixels


class UnreadableImage(DataError):
    """A file is damaged, too large, or no image: such files are skipped and reported where a folder is read."""


UNREADABLE = (UnreadableImage, OSError)
"""What is skipped; another :class:`DataError` needs an argument and ends the reading."""


class Decoded(NamedTuple):
    """One image, and what its file says about its range."""

    image: Tensor
    """uint8 ``(1 or 3, H, W)``."""
    bits: int
    """8 or 16 per channel, as the file has them."""
    peak: int
    """The largest value in the file; where its range is beyond doubt, ``2 ** bits - 1``."""


def decode(
    name: str,
    source: str | Path | IO[bytes],
    size: tuple[int, int] | None = None,
    *,
    value_range: ValueRange | None = None,
    frames: str | None = None,
    only: int | None = None,
) -> list[Decoded]:
    """The images of one file: one, or with ``frames="all"`` one per frame or page.

    Images are upright, transparent ones are on white, and they are cropped and resized if a size is given. Without a
    ``value_range``, 16-bit values keep their upper 8 bits; :func:`check_levels` then is to be asked about all images.
    Messages call the file ``name``; ``only`` is the number of one of all frames, to decode this one alone.

    Raises:
        UnreadableImage: If the file is damaged, too large, or no image.
        DataError: If the file is readable and needs an argument, or one does not fit it.
        FileNotFoundError: If there is no such file.
    """
    if isinstance(source, str | Path):
        regular_file(Path(source))
    with opened_by_pil(source) as opened:
        check_pixels(opened.size)
        if frames == "all" and size is None and only is None:
            values = getattr(opened, "n_frames", 1) * opened.width * opened.height * len(opened.getbands())
            check_memory(f"All frames of {name}", values, "use the first alone, or a smaller `image_size`")
        return [_decoded(name, frame, size, value_range) for frame in frames_of(name, opened, frames, only)]


@contextlib.contextmanager
def opened_by_pil(source: str | Path | IO[bytes]) -> Iterator[Image.Image]:
    """An image file; whatever PIL raises about one that is damaged becomes an :class:`UnreadableImage`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `check_pixels` has a lower limit
            with Image.open(source, formats=_available_formats()) as opened:
                yield opened
    except (FileNotFoundError, DataError):
        raise
    except UnidentifiedImageError as error:  # its words have the objects of Python in them
        reason = "not an image of a known format and kind of pixels, or its first bytes are damaged"
        raise UnreadableImage(reason) from error
    except Exception as error:  # damaged files raise what the decoder of their format happens to stumble over
        raise UnreadableImage(str(error) or type(error).__name__) from error


def are_dark(images: Iterable[Decoded]) -> bool:
    """Whether no image uses its range, or all are black."""
    return all(image.peak <= _DARK[image.bits] for image in images)


def check_levels(name: str, images: Iterable[Decoded]) -> None:
    """Raise :class:`DataError` if a whole set of images, decoded without a ``value_range``, is likely to need one."""
    peaks = {8: 0, 16: 0}
    for image in images:
        peaks[image.bits] = max(peaks[image.bits], image.peak)
    if 0 < peaks[16] <= _DARK[16]:
        bits = max(peaks[16].bit_length(), 8)
        raise DataError(
            f"`value_range` must be given for {name}: its 16-bit images have no value above {peaks[16]} of 65535."
            f" Give value_range=(0, {2**bits - 1}) if they have {bits} bits, (0, 65535) if they are dark."
        )
    if 0 < peaks[8] <= _DARK[8]:
        raise DataError(
            f"`value_range` must be given for {name}: its images have no value above {peaks[8]} of 255."
            f" Give value_range=(0, {peaks[8]}) if that is white, as in masks, (0, 255) if they are dark."
        )


def with_channels(image: Tensor, channels: int) -> Tensor:
    """A uint8 image of 1 or 3 channels as one of ``channels``."""
    if channels == 1 and image.shape[0] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]  # ITU-R 601, as PIL converts
        image = (image * weights).sum(0, keepdim=True).round().to(torch.uint8)
    return image.expand(channels, -1, -1)


@functools.cache
def _available_formats() -> tuple[str, ...]:
    """Formats that are read, by PIL's names."""
    if not set(_FORMATS) <= set(Image.OPEN):
        Image.init()  # registers formats; it opens nothing
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def frames_of(name: str, opened: Image.Image, frames: str | None, only: int | None = None) -> Iterator[Image.Image]:
    """The frames or pages of an open image that ``frames`` asks for, or ``only`` one of them."""
    # A phone's JPEG with a preview inside (MPO) is one image to those who took it.
    several = getattr(opened, "is_animated", False) and opened.format != "MPO"
    if several and frames is None:
        count = getattr(opened, "n_frames", "several")
        raise DataError(f"`frames` must be 'first' or 'all' for {name}, which holds {count} frames or pages, got None.")
    if several and frames == "all" and only is None:
        yield from ImageSequence.Iterator(opened)
    else:
        if several and only:
            opened.seek(only)
        yield opened


def _decoded(name: str, opened: Image.Image, size: tuple[int, int] | None, value_range: ValueRange | None) -> Decoded:
    check_opened(name, opened, value_range)
    bits, stated = bits_of(opened), _stated_white(opened)
    turned = opened.getexif().get(ExifTags.Base.Orientation, 1) != 1
    upright = ImageOps.exif_transpose(opened) if turned else opened  # else it would copy
    is_deep = upright.mode == "F" or upright.mode.startswith("I")
    values = np.asarray(upright) if is_deep else _eight_bits(upright)
    white = 2 ** (bits or 8) - 1
    if value_range is not None:
        if bits == 16 and not is_deep and value_range != (0, white):
            raise DataError(
                f"`value_range` must be None or (0, {white}) for {name}: only the upper 8 bits of its 16-bit colours"
                f" are read, got {value_range}. Convert the files to 8 bits."
            )
        if bits == 8 or is_deep:
            values = levels(name, values if stated is None else np.rint(values * (stated / white)), value_range)
        return Decoded(_channels_first(values, size), bits or 8, white)
    peak = int(values.max()) << (8 if bits == 16 and not is_deep else 0) if stated is None else white
    if is_deep:
        values = (values.astype(np.uint16) >> 8).astype(np.uint8)
    return Decoded(_channels_first(values, size), bits or 8, peak)


def check_opened(name: str, opened: Image.Image, value_range: ValueRange | None) -> None:
    """Raise ``ValueError`` for a frame or page that is too large, or whose black and white are not agreed.

    Of a TIFF also if PIL would drop bands, lose the sign of its values, or swap black and white.
    """
    check_pixels(opened.size)
    tags = getattr(opened, "tag_v2", {})
    samples, known = tags.get(277, 1), len(opened.getbands())
    if samples > known:
        raise ValueError(f"it has {samples} bands, of which {known} would be read; save an array (N, C, H, W) instead")
    if opened.mode == "L" and 2 in tags.get(339, ()):
        raise ValueError("its 8-bit values are signed; save an array (N, H, W) instead")
    if opened.mode.startswith("I") and tags.get(262) == 0:
        raise ValueError("its white is 0 in more than 8 bits; save it with black as 0")
    if value_range is None and bits_of(opened) is None:
        kind = "floating-point" if opened.mode == "F" else "32-bit or signed"
        raise DataError(f"`value_range` must be given for {name}: {kind} images have no agreed range.")


def _channels_first(pixels: np.ndarray, size: tuple[int, int] | None) -> Tensor:
    image = torch.tensor(np.moveaxis(pixels.reshape(*pixels.shape[:2], -1), -1, 0))
    return image if size is None else fit_to_size(image, size)


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Grey ``(H, W)`` or colours ``(H, W, 3)``, on white; by rows, since PIL's copies of a large image add up."""
    image.load()
    is_clear = image.has_transparency_data
    mode = "L" if image.mode in ("1", "L") and not is_clear else "RGB"
    width, height = image.size
    pixels = np.empty((height, width) if mode == "L" else (height, width, 3), np.uint8)
    rows = -(-_PIECE // width)
    for top in range(0, height, rows):
        piece = image if rows >= height else image.crop((0, top, width, min(top + rows, height)))
        if is_clear:
            piece = piece.convert("RGBA")
            piece = Image.alpha_composite(Image.new("RGBA", piece.size, "white"), piece)
        pixels[top : top + rows] = np.asarray(piece if piece.mode == mode else piece.convert(mode))
    return pixels


def _stated_white(opened: Image.Image) -> int | None:
    """The value of white that the header of a PGM or PPM states: PIL has scaled it to 255 or 65535."""
    if opened.format != "PPM" or opened.mode == "F":
        return None
    arguments = opened.tile[0][3]  # type: ignore[attr-defined]
    stated = arguments[1] if isinstance(arguments, tuple) and len(arguments) == 2 else None
    return stated or (65_535 if opened.mode == "I" else 255)


def bits_of(opened: Image.Image) -> int | None:
    """Bits per channel whose range is agreed, 8 or 16; None if there is no agreed range."""
    if opened.mode.startswith("I;16"):
        return 16
    if opened.mode in ("I", "F"):
        return 16 if opened.mode == "I" and opened.format in ("PNG", "PPM") else None
    tile = getattr(opened, "tile", None)
    raw_mode = str(tile[0][3]) if tile else ""
    return 16 if re.search(r";16[BLN]\b", raw_mode) else 8
