"""The small, distilled autoencoder of latents that are known already: AutoencoderTiny in diffusers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vaelib._checks import check_choice, check_images, check_int, check_int_tuple, check_shape, check_tensor
from vaelib.networks.residual_blocks import ACTIVATIONS

__all__ = ["TinyDecoder", "TinyEncoder"]


class _Block(nn.Module):
    """``relu(x + f(x))``, f three 3x3 convolutions."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            ACTIVATIONS[activation](),
            nn.Conv2d(width, width, 3, padding=1),
            ACTIVATIONS[activation](),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        return (self.conv(x) + x).relu()


class _Tiny(nn.Module):
    """What encoder and decoder share: the arguments and their checks."""

    def __init__(
        self, image_shape: Sequence[int], latent_channels: int, width: int, blocks: Sequence[int], activation: str
    ) -> None:
        super().__init__()
        self.image_shape = check_int_tuple("image_shape", image_shape, length=3)
        self.latent_channels, self.width = check_int("latent_channels", latent_channels), check_int("width", width)
        self.blocks = check_int_tuple("blocks", blocks, minimum=0)
        check_choice("activation", activation, ACTIVATIONS)
        self.activation = activation
        factor = 2 ** (len(self.blocks) - 1)
        if not self.blocks or any(side % factor for side in self.image_shape[1:]):
            raise ValueError(
                f"`blocks` must have an entry for each level, of which `image_shape` {self.image_shape} is halved after"
                f" all but one, got {self.blocks}."
            )
        self.latent_shape = (self.latent_channels, *(side // factor for side in self.image_shape[1:]))

    def _stage(self, count: int) -> list[nn.Module]:
        return [_Block(self.width, self.activation) for _ in range(count)]


class TinyEncoder(_Tiny):
    """Images to latents, by blocks of three convolutions at each level.

    Args:
        image_shape: ``(C, H, W)``; H and W are multiples of ``2 ** (len(blocks) - 1)``.
        latent_channels: Channels of z.
        width: Channels inside.
        blocks: Blocks per level, from the image inwards.
        activation: ``"silu"``, ``"mish"``, ``"gelu"`` or ``"relu"``.

    Raises:
        ValueError: If an argument is out of its range, or H and W are no multiples.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> TinyEncoder((3, 16, 16), 4, width=8, blocks=(1, 1))(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 4, 8, 8])
    """

    num_heads = 1

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_channels: int,
        *,
        width: int = 64,
        blocks: Sequence[int] = (1, 3, 3, 3),
        activation: str = "relu",
    ) -> None:
        super().__init__(image_shape, latent_channels, width, blocks, activation)
        layers: list[nn.Module] = [nn.Conv2d(self.image_shape[0], self.width, 3, padding=1)]
        for level, count in enumerate(self.blocks):
            if level:
                layers.append(nn.Conv2d(self.width, self.width, 3, padding=1, stride=2, bias=False))
            layers += self._stage(count)
        self.layers = nn.Sequential(*layers, nn.Conv2d(self.width, self.latent_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` in [0, 1] to ``(B, *latent_shape)``."""
        check_tensor("x", x, floating=False)
        check_images("x", x, self.image_shape, floating=x.is_floating_point())
        return self.layers((2 * x - 1 + 1) / 2)  # rounded as in diffusers, where images are in [-1, 1] in between


class TinyDecoder(_Tiny):
    """Latents, bounded softly at 3, to images, the mirror of :class:`TinyEncoder`.

    Args:
        image_shape: ``(C, H, W)``; H and W are multiples of ``2 ** (len(blocks) - 1)``.
        latent_channels: Channels of z.
        width: Channels inside.
        blocks: Blocks per level, from the latent outwards.
        activation: ``"silu"``, ``"mish"``, ``"gelu"`` or ``"relu"``.
        upsample: ``"nearest"`` or ``"bilinear"``.

    Raises:
        ValueError: If an argument is out of its range, or H and W are no multiples.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> TinyDecoder((3, 16, 16), 4, width=8, blocks=(1, 1))(torch.randn(2, 4, 8, 8)).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_channels: int,
        *,
        width: int = 64,
        blocks: Sequence[int] = (3, 3, 3, 1),
        activation: str = "relu",
        upsample: str = "nearest",
    ) -> None:
        super().__init__(image_shape, latent_channels, width, blocks, activation)
        check_choice("upsample", upsample, ("nearest", "bilinear"))
        self.upsample = upsample
        layers: list[nn.Module] = [nn.Conv2d(self.latent_channels, self.width, 3, padding=1), ACTIVATIONS[activation]()]
        for level, count in enumerate(self.blocks):
            if level:
                layers += [nn.Upsample(scale_factor=2, mode=upsample)]
                layers += [nn.Conv2d(self.width, self.width, 3, padding=1, bias=False)]
            layers += self._stage(count)
        self.layers = nn.Sequential(*layers, nn.Conv2d(self.width, self.image_shape[0], 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        """``(B, *latent_shape)`` to images ``(B, C, H, W)``."""
        check_tensor("z", z)
        check_shape("z", z.shape, ("B", *self.latent_shape))
        images = self.layers(torch.tanh(z / 3) * 3)
        return (2 * images - 1) / 2 + 0.5  # rounded as in diffusers
