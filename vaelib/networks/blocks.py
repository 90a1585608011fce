"""The building blocks that encoder and decoder share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from vaelib._checks import check_choice, check_float, check_int
from vaelib._geometry import Resampling

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}
NORMS: dict[str, Callable[[int], nn.Module] | None] = {
    "batch": nn.BatchNorm2d,
    # Groups of at least 4 channels: on a map of one pixel, a group of one would be normalised to nothing.
    "group": lambda channels: nn.GroupNorm(math.gcd(channels, max(1, min(8, channels // 4))), channels),
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "none": None,
}
UPSAMPLES = ("transpose", "nearest", "pixel_shuffle")


LARGEST_NETWORK = 2**30
"""Weights of one network, 4 GiB in float32: what needs more is refused before memory is asked for."""


def check_network_size(widths: Sequence[int], style: Blocks, linear: int, *, copies: int = 1) -> None:
    """Raise ``ValueError`` if the convolutions between these widths, and ``linear`` weights besides, are too many.

    A layer that shuffles channels into pixels has ``copies`` of each channel.
    """
    area = style.kernel_size**2 * copies
    convolutions = sum(area * before * after for before, after in itertools.pairwise(widths))
    residuals = sum(18 * style.residual_blocks * width**2 for width in widths)
    weights = convolutions + residuals + linear
    if weights > LARGEST_NETWORK:
        raise ValueError(
            f"A network may have {LARGEST_NETWORK:.1e} weights, this would have {weights:.1e}: make `image_shape`,"
            " `latent_dim`, `latent_shape`, `hidden_channels`, `kernel_size`, `stride` or `residual_blocks` smaller."
        )


class Blocks(NamedTuple):
    """Makes every block of one network in the same style."""

    kernel_size: int
    stride: int
    norm: str
    activation: str
    dropout: float
    residual_blocks: int

    @classmethod
    def checked(
        cls, kernel_size: int, stride: int, norm: str, activation: str, dropout: float, residual_blocks: int
    ) -> Blocks:
        """The same, or a ``ValueError`` or ``TypeError`` that names the argument."""
        check_choice("norm", norm, NORMS)
        check_choice("activation", activation, ACTIVATIONS)
        return cls(
            check_int("kernel_size", kernel_size),
            check_int("stride", stride),
            norm,
            activation,
            check_float("dropout", dropout, 0.0, 1.0),
            check_int("residual_blocks", residual_blocks, minimum=0),
        )

    @property
    def conv_bias(self) -> bool:
        """A bias in front of a normalisation would be subtracted again."""
        return self.norm == "none"

    def normalize(self, channels: int) -> list[nn.Module]:
        """The normalisation, if any."""
        make = NORMS[self.norm]
        return [] if make is None else [make(channels)]

    def finish(self, channels: int) -> list[nn.Module]:
        """Normalisation and activation, dropout if any."""
        layers = [*self.normalize(channels), ACTIVATIONS[self.activation]()]
        return [*layers, nn.Dropout(self.dropout)] if self.dropout else layers

    def residuals(self, channels: int) -> list[nn.Module]:
        """The residual blocks at one resolution."""
        return [ResidualBlock(channels, self) for _ in range(self.residual_blocks)]

    def downsample(self, in_channels: int, out_channels: int, stage: Resampling) -> nn.Module:
        """A strided convolution, ``stage.large`` to ``stage.small``."""
        return nn.Conv2d(in_channels, out_channels, self.kernel_size, self.stride, stage.padding, bias=self.conv_bias)

    def upsample(
        self, how: str, in_channels: int, out_channels: int, stage: Resampling, *, bias: bool
    ) -> list[nn.Module]:
        """Layers from ``stage.small`` to exactly ``stage.large``."""
        if how == "transpose":
            return [
                nn.ConvTranspose2d(
                    in_channels,
                    out_channels,
                    self.kernel_size,
                    self.stride,
                    stage.padding,
                    stage.output_padding,
                    bias=bias,
                )
            ]
        enlarged = (stage.small[0] * self.stride, stage.small[1] * self.stride)
        crop = [Crop(*stage.large)] if enlarged != stage.large else []
        odd = self.kernel_size + 1 - self.kernel_size % 2  # an even kernel has no centre
        if how == "nearest":
            conv = nn.Conv2d(in_channels, out_channels, odd, padding=odd // 2, bias=bias)
            return [nn.Upsample(scale_factor=self.stride), *crop, conv]
        conv = nn.Conv2d(in_channels, out_channels * self.stride**2, odd, padding=odd // 2, bias=bias)
        return [conv, nn.PixelShuffle(self.stride), *crop]


class Crop(nn.Module):
    """Keep the top left ``height x width`` of a map."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, height, width)``."""
        return x[:, :, : self.height, : self.width]

    def extra_repr(self) -> str:
        """The size."""
        return f"{self.height}, {self.width}"


class ResidualBlock(nn.Module):
    """x + f(x) with two 3x3 convolutions in f, then the activation.

    References:
        He et al. (2016), Deep Residual Learning. https://arxiv.org/abs/1512.03385
    """

    def __init__(self, channels: int, style: Blocks) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=style.conv_bias),
            *style.finish(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=style.conv_bias),
            *style.normalize(channels),
        )
        self.activation = ACTIVATIONS[style.activation]()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        return self.activation(x + self.body(x))
