"""The layers of the residual autoencoder of latent diffusion: norms, residual blocks, attention and levels.

The operations, and so every bit of the results, are those of AutoencoderKL in diffusers 0.42.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "ACTIVATIONS",
    "NORMS",
    "Layers",
    "Level",
    "Middle",
    "PixelNorm",
    "Section",
    "SpatialNorm",
    "initialize",
    "normalized",
]

NORMS = ("group", "pixel", "spatial")
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
}
_EPSILON = 1e-6
_SPATIAL_GROUPS = 32
_BRANCH = 0.3
"""Deviation of a residual branch's last weights before training, by that which keeps the variance."""


class PixelNorm(nn.Module):
    """Each pixel's channels divided by their root mean square, times a learned gain.

    A pixel's result depends on that pixel alone, so a network with this norm can be tiled exactly.

    References:
        Zhang & Sennrich (2019), Root Mean Square Layer Normalization. https://arxiv.org/abs/1910.07467; per pixel:
        Karras et al. (2018), https://arxiv.org/abs/1710.10196
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, ...)`` to the same shape."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # the squares of float16 overflow at 256
        scale = wide.square().mean(1, keepdim=True).add(_EPSILON).rsqrt()
        return x * scale.to(x.dtype) * self.weight.view(-1, *[1] * (x.ndim - 2))


class SpatialNorm(nn.Module):
    """Group norm in 32 groups whose gain and shift are read from z at each pixel.

    References:
        Zheng et al. (2022), MoVQ: Modulating Quantized Vectors for High-Fidelity Image Generation.
        https://arxiv.org/abs/2209.09002
    """

    def __init__(self, channels: int, latent_channels: int) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(_SPATIAL_GROUPS, channels, eps=_EPSILON)
        self.conv_y = nn.Conv2d(latent_channels, channels, 1)
        self.conv_b = nn.Conv2d(latent_channels, channels, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape; ``z`` is enlarged to it."""
        z = F.interpolate(z, size=x.shape[-2:], mode="nearest")
        return self.norm_layer(x) * self.conv_y(z) + self.conv_b(z)


def normalized(norm: nn.Module, x: Tensor, z: Tensor | None) -> Tensor:
    """``norm`` of ``x``, given ``z`` if it is a :class:`SpatialNorm`."""
    return norm(x, z) if isinstance(norm, SpatialNorm) else norm(x)


class Layers(NamedTuple):
    """Makes the layers of one network in the same style."""

    norm: str
    groups: int
    activation: str
    latent_channels: int

    def normalize(self, channels: int) -> nn.Module:
        """The normalisation."""
        if self.norm == "group":
            return nn.GroupNorm(self.groups, channels, eps=_EPSILON)
        return PixelNorm(channels) if self.norm == "pixel" else SpatialNorm(channels, self.latent_channels)


class Residual(nn.Module):
    """``shortcut(x) + f(x)``, f twice norm, activation and a 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int, layers: Layers) -> None:
        super().__init__()
        self.norm1 = layers.normalize(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = layers.normalize(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.activation = ACTIVATIONS[layers.activation]()
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C', H, W)``."""
        hidden = self.conv1(self.activation(normalized(self.norm1, x, z)))
        hidden = self.conv2(self.activation(normalized(self.norm2, hidden, z)))
        return self.shortcut(x) + hidden


class Attention(nn.Module):
    """``x + f(x)``, f softmax attention with one head between all pixels."""

    def __init__(self, channels: int, layers: Layers) -> None:
        super().__init__()
        self.norm = layers.normalize(channels)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        is_spatial = isinstance(self.norm, SpatialNorm)
        rows = (self.norm(x, z).flatten(2) if is_spatial else self.norm(x.flatten(2))).transpose(1, 2)
        query, key, value = (part(rows).unsqueeze(2).transpose(1, 2) for part in (self.to_q, self.to_k, self.to_v))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.to_out(mixed).transpose(1, 2).reshape(x.shape) + x


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention if asked for, then ``resample`` if there is one."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        residual_blocks: int,
        layers: Layers,
        *,
        attention: bool,
        resample: nn.Module | None,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * residual_blocks
        self.blocks = nn.ModuleList(Residual(widths[i], widths[i + 1], layers) for i in range(residual_blocks))
        self.attentions = nn.ModuleList(Attention(out_channels, layers) for _ in self.blocks if attention)
        self.resample = resample

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C', H', W')``."""
        x = self.features(x, z)
        return x if self.resample is None else self.resample(x)

    def features(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """The same before it is resampled."""
        for i, block in enumerate(self.blocks):
            x = block(x, z)
            if self.attentions:
                x = self.attentions[i](x, z)
        return x


class Middle(nn.Module):
    """Two residual blocks at the lowest resolution, with attention between them if asked for."""

    def __init__(self, channels: int, layers: Layers, *, attention: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual(channels, channels, layers) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(channels, layers)] if attention else [])

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        x = self.blocks[0](x, z)
        for attention in self.attentions:
            x = attention(x, z)
        return self.blocks[1](x, z)


def initialize(network: nn.Module) -> None:
    """Weights to begin training with: convolutions keep the variance, residual branches begin small, no biases.

    With torch's own, each convolution between the levels leaves a third of the variance, until biases drown the image.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, Residual):
            with torch.no_grad():
                module.conv2.weight.mul_(_BRANCH)


class Section(nn.Module):
    """A method of a network, as a network of its own."""

    def __init__(self, network: nn.Module, method: str) -> None:
        super().__init__()
        self.network, self._method = network, method

    def forward(self, x: Tensor) -> Any:
        """``(B, C, H, W)`` to one or several maps."""
        return getattr(self.network, self._method)(x)
