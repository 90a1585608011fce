"""What reconstructions lose that means of squared errors hardly see: fine detail, and text."""

from __future__ import annotations

import math
import string
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vaelib._checks import DataError, check_finite, check_int, check_shape, check_tensor
from vaelib.evaluation.bound import Estimate
from vaelib.evaluation.inputs import check_model
from vaelib.evaluation.reconstruction import reconstructed
from vaelib.vae import VAE

__all__ = ["TextReconstruction", "high_frequency_energy", "text_reconstruction"]

_ALPHABET = string.ascii_uppercase
_CELL = (11, 6)
"""Rows and columns of a letter of Pillow's built-in bitmap font, whose letters are equally wide."""
_CUTOFF = 0.25
"""Cycles per pixel, half of what a pixel grid can hold."""
_BATCH = 16


def high_frequency_energy(images: Tensor) -> Tensor:
    """The mean squared value of what varies faster than a quarter cycle per pixel, of each image, ``(B,)``.

    Edges, grain and letters are made of it, and blurred reconstructions lack it: set the mean over reconstructions
    beside that over the images. A Hann window of mean square 1 keeps the borders, which do not meet, from counting
    as edges; channels are averaged. The result is on the CPU.

    Args:
        images: ``(B, C, H, W)``, finite, with H and W of at least 4.

    Raises:
        ValueError: If the shape is wrong, there is no image, or a value is not finite.
        TypeError: If it is no floating-point tensor.

    Examples:
        >>> ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
        >>> checkerboard = (torch.arange(32) + torch.arange(32)[:, None]).remainder(2)[None, None].float()
        >>> bool(high_frequency_energy(ramp) < 1e-6), round(high_frequency_energy(checkerboard).item(), 3)
        (True, 0.25)

    References:
        The window: Harris (1978), On the use of windows for harmonic analysis with the discrete Fourier transform,
        https://doi.org/10.1109/PROC.1978.10837
    """
    check_tensor("images", images)
    check_shape("images", images.shape, ("B", "C", "H", "W"))
    height, width = images.shape[2:]
    if not len(images):
        raise ValueError("`images` must hold at least one image, got none.")
    if min(height, width) < 4:
        raise ValueError(f"`images` must have at least 4 pixels a side, got {height} x {width}.")
    check_finite("images", images)
    x = images.double()
    windows = [torch.hann_window(size, periodic=False, dtype=x.dtype, device=x.device) for size in (height, width)]
    rows, columns = (window / window.square().mean().sqrt() for window in windows)
    weights = rows[:, None] * columns
    centred = x - (x * weights).mean((2, 3), keepdim=True) / weights.mean()  # a constant has no detail
    spectrum = torch.fft.fft2(centred * weights).abs().square()
    frequencies = [torch.fft.fftfreq(size, dtype=x.dtype, device=x.device).square() for size in (height, width)]
    is_high = frequencies[0][:, None] + frequencies[1] > _CUTOFF**2
    return ((spectrum * is_high).sum((2, 3)).mean(1) / (height * width) ** 2).to("cpu", images.dtype)


class TextReconstruction(NamedTuple):
    """Letters that can still be read after a model's reconstruction."""

    accuracy: Estimate
    """Share of the letters that the reconstruction is nearest to, the mean over images; of the originals it is 1, of
    images without any text 1/26."""
    num_letters: int
    """In all images."""
    num_images: int


def text_reconstruction(
    model: VAE, *, num_images: int = 64, scale: int = 2, seed: int = 0, batch_size: int = _BATCH
) -> TextReconstruction:
    """Draw random letters, reconstruct them, and read them again by comparing each with all 26.

    Small text breaks before anything else in an autoencoder, and PSNR hardly shows it. Images are filled with capitals
    of Pillow's built-in bitmap font, 6 x 11 pixels each, in a random grey or colour on another. A letter is read as
    the one whose drawing correlates most with its cell: no network reads, so originals are read without a fault, and
    so is text that is blurred but not changed.

    Args:
        model: A VAE or an autoencoder, of a condition with it bound by ``model.given``.
        num_images: How many images.
        scale: Pixels for each dot of the font: letters are ``6 * scale`` wide and ``11 * scale`` high.
        seed: Seed of letters and colours.
        batch_size: Images reconstructed at a time.

    Returns:
        A :class:`TextReconstruction`.

    Raises:
        DataError: A ``ValueError``: if no letter fits in the model's images.
        ValueError: If an argument is out of its range, or a reconstruction is not finite.
        TypeError: If ``model`` is neither a VAE nor an autoencoder.

    Examples:
        >>> import vaelib as vl
        >>> found = text_reconstruction(vl.conv_vae((1, 24, 24), 2, hidden_channels=(4,)), num_images=2)
        >>> found.num_letters, found.accuracy.value <= 1
        (4, True)

    References:
        Matching by correlation: Lewis (1995), Fast template matching, Vision Interface 95, section 2
    """
    check_model("model", model)
    check_int("num_images", num_images)
    check_int("batch_size", batch_size)
    check_int("seed", seed, 0)
    size = tuple(extent * check_int("scale", scale, 1, 1024) for extent in _CELL)
    channels, height, width = model.image_shape
    counts = height // size[0], width // size[1]
    if 0 in counts:
        raise DataError(
            f"`scale` must leave room for a letter, {size[0]} x {size[1]} pixels, got images of {height} x {width}."
        )
    generator = np.random.default_rng(seed)
    drawings = _drawings(scale)
    all_letters = torch.from_numpy(generator.integers(len(_ALPHABET), size=(num_images, *counts)))
    shares = []
    all_colours = _colours(generator, (num_images, channels, 1, 1))
    for letters, paper, ink in zip(*(part.split(batch_size) for part in (all_letters, *all_colours)), strict=True):
        written = torch.zeros(len(letters), 1, height, width)
        written[:, 0, : counts[0] * size[0], : counts[1] * size[1]] = _lines(drawings[letters])
        images = paper + (ink - paper) * written
        found = reconstructed(model, images.to(next(model.parameters(), images))).to(images)
        shares.append((_read(found, drawings, counts, ink - paper) == letters).double().mean((1, 2)))
    share = torch.cat(shares)
    return TextReconstruction(Estimate.of(share), num_images * math.prod(counts), num_images)


def _drawings(scale: int) -> Tensor:
    """Each letter as ones on zeros, ``(26, h, w)``."""
    font = ImageFont.load_default_imagefont()
    found = []
    for letter in _ALPHABET:
        cell = Image.new("L", _CELL[::-1])
        ImageDraw.Draw(cell).text((0, 0), letter, 255, font)
        found.append(torch.from_numpy(np.array(cell, np.float32) / 255))
    return torch.stack(found).repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def _colours(generator: np.random.Generator, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Of paper and ink, at least 0.3 apart in each channel; either may be the darker one."""
    dark, light = (torch.from_numpy(0.35 * generator.random(shape, np.float32)) for _ in range(2))
    is_night = torch.from_numpy(generator.random((shape[0], 1, 1, 1)) < 0.5)
    return torch.where(is_night, dark, 1 - light), torch.where(is_night, 1 - light, dark)


def _lines(cells: Tensor) -> Tensor:
    """Letters ``(B, rows, columns, h, w)`` side by side, ``(B, rows * h, columns * w)``."""
    return cells.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _read(images: Tensor, drawings: Tensor, counts: tuple[int, int], contrast: Tensor) -> Tensor:
    """The letters that the cells are most like, ``(B, rows, columns)``."""
    height, width = drawings.shape[1:]
    ink = (images * contrast).sum(1)[:, : counts[0] * height, : counts[1] * width]
    cells = ink.unflatten(1, (counts[0], height)).unflatten(3, (counts[1], width)).transpose(2, 3).flatten(3)
    templates = drawings.flatten(1) - drawings.flatten(1).mean(1, keepdim=True)
    return (cells @ (templates / templates.norm(dim=1, keepdim=True)).T).argmax(-1)
