"""Noise for the encoder's input only: a denoising model sees the corrupted, and explains the clean image.

A corruption is any ``nn.Module`` called as ``corruption(x, generator=generator)`` on images in [0, 1] that
returns images of the same shape in [0, 1].

References:
    Vincent et al. (2008), Extracting and Composing Robust Features with Denoising Autoencoders.
    Im et al. (2017), Denoising Criterion for Variational Auto-Encoding Framework. https://arxiv.org/abs/1511.06406
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vaelib._checks import check_batch, check_float, check_generator
from vaelib.functional.draws import normal, uniform

__all__ = ["GaussianNoise", "Masking", "SaltAndPepper"]


class GaussianNoise(nn.Module):
    """Adds N(0, std^2) to every value and clips to [0, 1].

    Examples:
        >>> GaussianNoise(0.5)(torch.full((2, 1, 8, 8), 0.5)).std() > 0.2
        tensor(True)
    """

    def __init__(self, std: float = 0.2) -> None:
        super().__init__()
        self.std = check_float("std", std, 0.0)

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """``(B, C, H, W)`` in [0, 1] to the same."""
        _check(x, generator)
        return (x + self.std * normal(x.shape, x, generator)).clamp(0, 1)

    def extra_repr(self) -> str:
        """The argument."""
        return f"std={self.std}"


class SaltAndPepper(nn.Module):
    """Sets each pixel, all channels together, to 0 or 1 with probability ``probability / 2`` each.

    Examples:
        >>> SaltAndPepper(1.0)(torch.full((1, 3, 8, 8), 0.5)).unique()
        tensor([0., 1.])
    """

    def __init__(self, probability: float = 0.1) -> None:
        super().__init__()
        self.probability = check_float("probability", probability, 0.0, 1.0)

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """``(B, C, H, W)`` in [0, 1] to the same."""
        uniform = _uniform_per_pixel(x, generator)
        salted = torch.where(uniform < self.probability / 2, torch.ones_like(x), x)
        return torch.where(uniform >= 1 - self.probability / 2, torch.zeros_like(x), salted)

    def extra_repr(self) -> str:
        """The argument."""
        return f"probability={self.probability}"


class Masking(nn.Module):
    """Sets each pixel, all channels together, to 0 with the given probability.

    Examples:
        >>> Masking(1.0)(torch.ones(1, 3, 8, 8)).sum()
        tensor(0.)
    """

    def __init__(self, probability: float = 0.25) -> None:
        super().__init__()
        self.probability = check_float("probability", probability, 0.0, 1.0)

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """``(B, C, H, W)`` in [0, 1] to the same."""
        return x * (_uniform_per_pixel(x, generator) >= self.probability)

    def extra_repr(self) -> str:
        """The argument."""
        return f"probability={self.probability}"


def _uniform_per_pixel(x: Tensor, generator: torch.Generator | None) -> Tensor:
    _check(x, generator)
    return uniform((x.shape[0], 1, *x.shape[2:]), x, generator)


def _check(x: Tensor, generator: torch.Generator | None) -> None:
    check_batch("x", x)
    check_generator(generator)
