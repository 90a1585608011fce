"""The discriminator of real and reconstructed images, by patches."""

from __future__ import annotations

from torch import Tensor, nn

from vaelib._checks import check_choice, check_int, check_shape, check_tensor
from vaelib.networks.blocks import NORMS

__all__ = ["PatchDiscriminator"]

_WIDEST = 8  # times the first layer's width


class PatchDiscriminator(nn.Module):
    """A discriminator: images to logits, one for each of many overlapping patches, high where a patch looks real.

    ``num_layers`` convolutions of stride 2, each twice as wide as the one before up to 8 times ``width``, then two of
    stride 1; all of kernel size 4, with leaky ReLU between. With 3 layers a logit sees 70 x 70 pixels.

    No statistics are shared between images, as batch normalisation would: the logits of an image are the same in any
    batch and on any number of processes. Weights start as torch's defaults.

    Args:
        channels: C of the images.
        width: Channels of the first layer.
        num_layers: Convolutions of stride 2.
        norm: ``"group"``, ``"layer"`` or ``"none"``, of all layers but the first and the last.

    Raises:
        ValueError: If an argument is out of its range, or images have fewer than ``3 * 2**num_layers`` pixels a side.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> import torch
        >>> PatchDiscriminator(3, width=8)(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 1, 6, 6])

    References:
        Isola et al. (2017), Image-to-image translation with conditional adversarial networks, section 3.2.2.
        https://arxiv.org/abs/1611.07004
    """

    def __init__(self, channels: int = 3, *, width: int = 64, num_layers: int = 3, norm: str = "group") -> None:
        super().__init__()
        self.channels, self.width = check_int("channels", channels), check_int("width", width, maximum=2**12)
        self.num_layers = check_int("num_layers", num_layers, maximum=8)
        check_choice("norm", norm, ("group", "layer", "none"))
        self.norm = norm
        widths = [self.width * min(2**number, _WIDEST) for number in range(self.num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(self.channels, widths[0], 4, 2, padding=1), nn.LeakyReLU(0.2)]
        for number in range(1, self.num_layers + 1):
            stride = 2 if number < self.num_layers else 1
            conv = nn.Conv2d(widths[number - 1], widths[number], 4, stride, padding=1, bias=norm == "none")
            make = NORMS[norm]
            layers += [conv, *([] if make is None else [make(widths[number])]), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)``, real ones in [0, 1], to logits ``(B, 1, h, w)``."""
        check_tensor("images", images)
        check_shape("images", images.shape, ("B", self.channels, "H", "W"))
        smallest = 3 * 2**self.num_layers
        if min(images.shape[2:]) < smallest:
            raise ValueError(
                f"`images` must have at least {smallest} x {smallest} pixels for {self.num_layers} layers, got"
                f" {images.shape[2]} x {images.shape[3]}: give PatchDiscriminator fewer `num_layers`."
            )
        return self.layers(2 * images - 1)
