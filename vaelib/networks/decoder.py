"""The network of p(x|z), by upsampling convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from vaelib._checks import check_choice, check_int, check_int_tuple, check_latent, check_shape, check_tensor
from vaelib._geometry import plan
from vaelib.networks.blocks import UPSAMPLES, Blocks, check_network_size
from vaelib.networks.encoder import check_map_size

__all__ = ["ConvDecoder"]


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
        kernel_size: Of the upsampling convolutions; the next odd number for nearest and pixel_shuffle.
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
        check_tensor("z", z)
        check_shape("z", z.shape, ("B", *self.latent_shape))
        return self.stages(self.stem(z))


def _stem(latent_shape: Sequence[int], channels: int, smallest: Sequence[int]) -> nn.Module:
    if len(latent_shape) == 1:
        feature_map = (channels, *smallest)
        return nn.Sequential(nn.Linear(latent_shape[0], math.prod(feature_map)), nn.Unflatten(1, feature_map))
    check_map_size(latent_shape, smallest)
    return nn.Conv2d(latent_shape[0], channels, 1)
