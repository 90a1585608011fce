"""One image file to one tensor: the decoder under folders, shards, streams and single files."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vaelib.data.derive import fit_to_size

__all__ = ["PICTURE_SUFFIXES", "UNREADABLE", "decode_picture", "with_channels"]

UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".gif")


def decode_picture(source: str | Path | IO[bytes], size: tuple[int, int] | None) -> Tensor:
    """One picture, upright, on white, as uint8 ``(1 or 3, H, W)``, cropped and resized if a size is given."""
    with Image.open(source) as opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.mode == "F":
            raise ValueError("floating-point pictures have no agreed range")
        if picture.mode.startswith("I"):  # 16-bit grey, which PIL would clip
            pixels = (np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8)
        else:
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            pixels = np.asarray(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))
    image = torch.tensor(pixels).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)
    return image.contiguous() if size is None else fit_to_size(image, size)


def with_channels(picture: Tensor, channels: int) -> Tensor:
    """A uint8 picture of 1 or 3 channels as one of ``channels``."""
    if channels == 1 and picture.shape[0] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]  # ITU-R 601, as PIL converts
        picture = (picture * weights).sum(0, keepdim=True).round().to(torch.uint8)
    return picture.expand(channels, -1, -1)
