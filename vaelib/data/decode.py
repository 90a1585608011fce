"""One image file to tensors: the decoder under folders, shards, streams and single files."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence
from torch import Tensor

from vaelib._checks import DataError
from vaelib.data.derive import fit_to_size
from vaelib.data.guard import check_pixels, regular_file
from vaelib.data.ranges import DARK, ValueRange, levels

__all__ = [
    "PICTURE_SUFFIXES",
    "UNREADABLE",
    "Decoded",
    "UnreadableImage",
    "check_levels",
    "decode",
    "decode_picture",
    "with_channels",
]

PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".avif", ".jp2"),
    *(".tif", ".tiff", ".pgm", ".ppm", ".gif"),
)
# Asked by name, whatever the suffix: EPS in a file named .png would start Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "AVIF", "JPEG2000", "TIFF", "PPM", "GIF")


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
    """The largest value in the file, below ``2 ** bits``; the largest possible one where the range is known."""


def decode(
    name: str,
    source: str | Path | IO[bytes],
    size: tuple[int, int] | None = None,
    *,
    value_range: ValueRange | None = None,
    frames: str | None = None,
) -> list[Decoded]:
    """The images of one file: one, or with ``frames="all"`` one per frame or page.

    Images are upright, transparent ones are on white, and they are cropped and resized if a size is given. Without a
    ``value_range``, 16-bit values keep their upper 8 bits; :func:`check_levels` then is to be asked about all images.

    Args:
        name: What messages call the file.
        source: Path or open file.
        size: Height and width; None keeps the file's own.
        value_range: The file's values of black and white; None for the whole range of 8 or 16 bits.
        frames: ``"first"`` or ``"all"`` of a file of several frames or pages; None refuses such a file.

    Raises:
        UnreadableImage: If the file is damaged, too large, or no image.
        DataError: If the file is readable and needs an argument, or one does not fit it.
        FileNotFoundError: If there is no such file.
    """
    try:
        if isinstance(source, str | Path):
            regular_file(Path(source))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `check_pixels` has a lower limit
            with Image.open(source, formats=_available_formats()) as opened:
                check_pixels(opened.size)
                return [_decoded(name, frame, size, value_range) for frame in _frames(name, opened, frames)]
    except (FileNotFoundError, DataError):
        raise
    except Exception as error:  # damaged files raise what the decoder of their format happens to stumble over
        raise UnreadableImage(str(error) or type(error).__name__) from error


def decode_picture(
    source: str | Path | IO[bytes],
    size: tuple[int, int] | None,
    *,
    name: str = "",
    value_range: ValueRange | None = None,
    frames: str | None = None,
) -> Tensor:
    """The first image of a file as uint8 ``(1 or 3, H, W)``; see :func:`decode`."""
    return decode(name or str(source), source, size, value_range=value_range, frames=frames)[0].image


def check_levels(name: str, images: Iterable[Decoded]) -> None:
    """Raise :class:`DataError` if a whole set of images, decoded without a ``value_range``, is likely to need one."""
    peaks = {8: 0, 16: 0}
    for image in images:
        peaks[image.bits] = max(peaks[image.bits], image.peak)
    if 0 < peaks[16] < 2**15:
        bits = max(peaks[16].bit_length(), 8)
        raise DataError(
            f"`value_range` must be given for {name}: its 16-bit images have no value above {peaks[16]} of 65535."
            f" Give value_range=(0, {2**bits - 1}) if they have {bits} bits, (0, 65535) if they are dark."
        )
    if 0 < peaks[8] <= DARK:
        raise DataError(
            f"`value_range` must be given for {name}: its images have no value above {peaks[8]} of 255."
            f" Give value_range=(0, {peaks[8]}) if that is white, as in masks, (0, 255) if they are dark."
        )


def with_channels(picture: Tensor, channels: int) -> Tensor:
    """A uint8 image of 1 or 3 channels as one of ``channels``."""
    if channels == 1 and picture.shape[0] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]  # ITU-R 601, as PIL converts
        picture = (picture * weights).sum(0, keepdim=True).round().to(torch.uint8)
    return picture.expand(channels, -1, -1)


def _available_formats() -> tuple[str, ...]:
    if not set(_FORMATS) <= set(Image.OPEN):
        Image.init()  # registers formats; it opens nothing
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _frames(name: str, opened: Image.Image, frames: str | None) -> Iterator[Image.Image]:
    # A phone's JPEG with a preview inside (MPO) is one image to those who took it.
    several = getattr(opened, "is_animated", False) and opened.format != "MPO"
    if several and frames is None:
        count = getattr(opened, "n_frames", "several")
        raise DataError(f"`frames` must be 'first' or 'all' for {name}, which holds {count} frames or pages, got None.")
    if several and frames == "all":
        yield from ImageSequence.Iterator(opened)
    else:
        yield opened


def _decoded(
    name: str, opened: Image.Image, size: tuple[int, int] | None, value_range: ValueRange | None
) -> Decoded:
    check_pixels(opened.size)  # again, since pages may differ
    bits = _bits(opened)
    picture = ImageOps.exif_transpose(opened)
    if bits is None and value_range is None:
        kind = "floating-point" if picture.mode == "F" else "32-bit or signed"
        raise DataError(f"`value_range` must be given for {name}: {kind} images have no agreed range.")
    if picture.mode == "F" or picture.mode.startswith("I"):
        values = np.asarray(picture)
        peak = int(values.max()) if bits == 16 else 255
        # PIL scales the values of a PGM to 16 bits by the largest value that its header states.
        peak = 65_535 if opened.format == "PPM" else peak
        pixels = levels(name, values, value_range) if value_range else (values.astype(np.uint16) >> 8).astype(np.uint8)
    else:
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        pixels = np.asarray(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))
        peak = int(pixels.max())
        if bits == 16:  # PIL keeps the upper 8 bits of colours
            peak = peak << 8
            if value_range not in (None, (0, 65_535)):
                raise DataError(
                    f"`value_range` must be None or (0, 65535) for {name}: only the upper 8 bits of 16-bit colours are"
                    f" read, got {value_range}. Convert the files to 8 bits."
                )
        elif value_range is not None:
            pixels = levels(name, pixels, value_range)
    channels_first = np.moveaxis(pixels.reshape(*pixels.shape[:2], -1), -1, 0)
    image = torch.tensor(channels_first)
    return Decoded(image if size is None else fit_to_size(image, size), bits or 8, peak)


def _bits(opened: Image.Image) -> int | None:
    """Bits per channel whose range is agreed, 8 or 16; None if there is no agreed range."""
    if opened.mode.startswith("I;16") or opened.format == "PPM" and opened.mode == "I":
        return 16
    if opened.mode in ("I", "F"):
        return 16 if opened.format == "PNG" else None
    tile = getattr(opened, "tile", None)
    raw_mode = str(tile[0][3]) if tile else ""
    return 16 if re.search(r";16[BLN]\b", raw_mode) else 8
