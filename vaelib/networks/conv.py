"""Images to what a latent reads, by strided convolutions, and latents to ``recon_params``, by upsampling ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vaelib._checks import (
    check_choice,
    check_images,
    check_int,
    check_int_tuple,
    check_latent,
    check_tensor,
)
from vaelib._geometry import plan
from vaelib.functional import soft_bound
from vaelib.networks.blocks import UPSAMPLES, Blocks, check_network_size

__all__ = ["ConvDecoder", "ConvEncoder"]

LOGVAR_LIMIT = 20.0


class ConvEncoder(nn.Module):
    """Images of any size to the mean and log variance of a diagonal Gaussian posterior, or to one tensor.

    One stage per entry of ``hidden_channels``: a strided convolution, normalisation, activation, dropout,
    residual blocks. A linear head (1x1 convolution for a map) then gives ``mu`` and ``logvar``; ``logvar`` is
    exact within 10 nats of zero and bounded softly at 20 beyond, so ``exp`` cannot overflow. With one head it gives
    what points and codes are made of.

    Weights start as torch's defaults: uniform with variance 1 / (3 fan_in), normalisation at identity.

    Args:
        image_shape: ``(C, H, W)`` of one image, any size of at least one pixel.
        latent_dim: D of a latent vector.
        latent_shape: ``(C, h, w)`` of a latent map instead; ``(h, w)`` is the size of the smallest map.
        hidden_channels: Channels per stage, from the image inwards; any number of stages.
        kernel_size: Kernel size of the strided convolutions.
        stride: Their stride.
        norm: ``"batch"``, ``"group"`` (up to 8 groups of 4 or more channels), ``"layer"`` (all channels and
            pixels) or ``"none"``.
        activation: ``"silu"``, ``"relu"``, ``"leaky_relu"``, ``"elu"``, ``"gelu"`` or ``"tanh"``.
        dropout: Probability in [0, 1].
        residual_blocks: Per stage.
        num_heads: The latent's: 2 for ``(mu, logvar)``, 1 for the one tensor of points and quantisers.

    Raises:
        ValueError: If an argument is out of its range, or ``latent_shape`` does not fit the stages.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> import torch
        >>> encoder = ConvEncoder((3, 45, 31), latent_dim=8)
        >>> mu, logvar = encoder(torch.rand(2, 3, 45, 31))
        >>> mu.shape, logvar.shape
        (torch.Size([2, 8]), torch.Size([2, 8]))
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int | None = None,
        *,
        latent_shape: Sequence[int] | None = None,
        hidden_channels: Sequence[int] = (16, 32, 48, 64),
        kernel_size: int = 3,
        stride: int = 2,
        norm: str = "batch",
        activation: str = "silu",
        dropout: float = 0.0,
        residual_blocks: int = 0,
        num_heads: int = 2,
    ) -> None:
        super().__init__()
        self.image_shape = check_int_tuple("image_shape", image_shape, length=3)
        self.latent_dim, self.latent_shape = check_latent(latent_dim, latent_shape)
        self.hidden_channels = check_int_tuple("hidden_channels", hidden_channels)
        check_choice("num_heads", num_heads, (1, 2))
        self.num_heads = num_heads
        style = Blocks.checked(kernel_size, stride, norm, activation, dropout, residual_blocks)
        self.kernel_size, self.stride, self.norm, self.activation, self.dropout, self.residual_blocks = style
        stages = plan(self.image_shape[1:], len(self.hidden_channels), self.kernel_size, self.stride)
        smallest = stages[-1].small if stages else self.image_shape[1:]
        widths = (self.image_shape[0], *self.hidden_channels)
        # Of a map the head is a 1x1 convolution, whose weights are those of a linear layer on one pixel.
        pixels = math.prod(smallest) if len(self.latent_shape) == 1 else 1
        outputs = num_heads * self.latent_shape[0]
        check_network_size(widths, style, outputs * widths[-1] * pixels)
        layers: list[nn.Module] = []
        channels = self.image_shape[0]
        for width, stage in zip(self.hidden_channels, stages, strict=True):
            layers += [style.downsample(channels, width, stage), *style.finish(width)]
            layers += style.residuals(width)
            channels = width
        self.stages = nn.Sequential(*layers)
        self.head = _head(channels, outputs, self.latent_shape, smallest)

    def forward(self, x: Tensor) -> Any:
        """``(B, C, H, W)`` in [0, 1] to ``(mu, logvar)``, or one tensor; each ``(B, *latent_shape)``."""
        check_tensor("x", x, floating=False)
        check_images("x", x, self.image_shape, floating=x.is_floating_point())
        heads = self.head(self.stages(x))
        if self.num_heads == 1:
            return heads
        mu, logvar = heads.chunk(2, dim=1)
        return mu, soft_bound(logvar, LOGVAR_LIMIT)


class ConvDecoder(nn.Module):
    """Latents to ``recon_params``, the raw parameters of p(x|z), of exactly the image's size.

    The mirror of :class:`ConvEncoder`: a linear layer (1x1 convolution for a map) to the smallest feature map,
    then per entry of ``hidden_channels`` residual blocks and an upsampling layer. The sizes are those of the
    encoder read backwards. Weights start as torch's defaults, as in the encoder.

    Args:
        latent_dim: D of a latent vector.
        image_shape: ``(C, H, W)`` of one image, any size of at least one pixel.
        latent_shape: ``(C, h, w)`` of a latent map instead of ``latent_dim``.
        hidden_channels: Channels per stage, from the latent outwards; any number of stages.
        kernel_size: Kernel size of the upsampling convolutions; the next odd number for nearest and pixel_shuffle.
        stride: Growth per stage.
        norm: ``"batch"``, ``"group"`` (up to 8 groups of 4 or more channels), ``"layer"`` (all channels and
            pixels) or ``"none"``.
        activation: ``"silu"``, ``"relu"``, ``"leaky_relu"``, ``"elu"``, ``"gelu"`` or ``"tanh"``.
        dropout: Probability in [0, 1].
        residual_blocks: Per stage.
        upsample: ``"transpose"`` (transposed convolution), ``"nearest"`` (nearest neighbour, then
            convolution) or ``"pixel_shuffle"`` (convolution, then depth to space).
        param_channels: Channels of ``recon_params``; the likelihood's ``param_channels(C)``. C if None.

    Raises:
        ValueError: If an argument is out of its range, or ``latent_shape`` does not fit the stages.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> import torch
        >>> decoder = ConvDecoder(8, (3, 45, 31))
        >>> decoder(torch.randn(2, 8)).shape
        torch.Size([2, 3, 45, 31])
    """

    def __init__(
        self,
        latent_dim: int | None = None,
        image_shape: Sequence[int] = (),
        *,
        latent_shape: Sequence[int] | None = None,
        hidden_channels: Sequence[int] = (64, 48, 32, 16),
        kernel_size: int = 3,
        stride: int = 2,
        norm: str = "batch",
        activation: str = "silu",
        dropout: float = 0.0,
        residual_blocks: int = 0,
        upsample: str = "transpose",
        param_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.image_shape = check_int_tuple("image_shape", image_shape, length=3)
        self.latent_dim, self.latent_shape = check_latent(latent_dim, latent_shape)
        self.hidden_channels = check_int_tuple("hidden_channels", hidden_channels)
        style = Blocks.checked(kernel_size, stride, norm, activation, dropout, residual_blocks)
        self.kernel_size, self.stride, self.norm, self.activation, self.dropout, self.residual_blocks = style
        self.upsample = upsample
        self.param_channels = (
            self.image_shape[0] if param_channels is None else check_int("param_channels", param_channels)
        )
        check_choice("upsample", upsample, UPSAMPLES)

        stages = plan(self.image_shape[1:], len(self.hidden_channels), self.kernel_size, self.stride)[::-1]
        smallest = stages[0].small if stages else self.image_shape[1:]
        widths = (*self.hidden_channels, self.param_channels)
        pixels = math.prod(smallest) if len(self.latent_shape) == 1 else 1
        copies = self.stride**2 if upsample == "pixel_shuffle" else 1
        check_network_size(widths, style, self.latent_shape[0] * widths[0] * pixels, copies=copies)
        self.stem = _stem(self.latent_shape, widths[0], smallest)
        layers: list[nn.Module] = [*style.finish(widths[0])] if stages else []
        for i, stage in enumerate(stages):
            last = i == len(stages) - 1
            layers += style.residuals(widths[i])
            layers += style.upsample(upsample, widths[i], widths[i + 1], stage, bias=last or style.conv_bias)
            if not last:
                layers += style.finish(widths[i + 1])
        self.stages = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """``(B, *latent_shape)`` to raw parameters ``(B, param_channels, H, W)``."""
        check_tensor("z", z, ("B", *self.latent_shape))
        return self.stages(self.stem(z))


def _head(channels: int, outputs: int, latent_shape: Sequence[int], smallest: Sequence[int]) -> nn.Module:
    if len(latent_shape) == 1:
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * smallest[0] * smallest[1], outputs))
    check_map_size(latent_shape, smallest)
    return nn.Conv2d(channels, outputs, 1)


def check_map_size(latent_shape: Sequence[int], smallest: Sequence[int]) -> None:
    """Raise ``ValueError`` unless a latent map has the size of the smallest feature map."""
    if tuple(latent_shape[1:]) != tuple(smallest):
        raise ValueError(
            f"`latent_shape` must be (C, {smallest[0]}, {smallest[1]}), the size of the smallest map"
            f" for this image size, number of stages and stride; got {tuple(latent_shape)}."
        )


def _stem(latent_shape: Sequence[int], channels: int, smallest: Sequence[int]) -> nn.Module:
    if len(latent_shape) == 1:
        feature_map = (channels, *smallest)
        return nn.Sequential(nn.Linear(latent_shape[0], math.prod(feature_map)), nn.Unflatten(1, feature_map))
    check_map_size(latent_shape, smallest)
    return nn.Conv2d(latent_shape[0], channels, 1)
