"""The residual autoencoder of latent diffusion: images in [0, 1] to a latent map and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vaelib._checks import check_bool, check_choice, check_images, check_int, check_int_tuple, check_shape, check_tensor
from vaelib.networks.blocks import LARGEST_NETWORK
from vaelib.networks.residual_blocks import ACTIVATIONS, NORMS, Layers, Level, Middle, Section, initialize, normalized

__all__ = ["ResidualDecoder", "ResidualEncoder"]

_LOGVAR_BOUNDS = (-30.0, 20.0)


class _Residual(nn.Module):
    """What encoder and decoder share: the arguments and their checks."""

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_channels: int,
        hidden_channels: Sequence[int],
        residual_blocks: int,
        norm: str,
        groups: int,
        activation: str,
        inner_channels: int | None,
    ) -> None:
        super().__init__()
        self.image_shape = check_int_tuple("image_shape", image_shape, length=3)
        self.latent_channels = check_int("latent_channels", latent_channels)
        self.hidden_channels = check_int_tuple("hidden_channels", hidden_channels)
        if not self.hidden_channels:
            raise ValueError("`hidden_channels` must have an entry for each level, got ().")
        self.residual_blocks = check_int("residual_blocks", residual_blocks)
        check_choice("activation", activation, ACTIVATIONS)
        self.norm, self.groups, self.activation = norm, check_int("groups", groups), activation
        self.inner_channels = None if inner_channels is None else check_int("inner_channels", inner_channels)
        self._check_groups()
        self._check_size()
        self.layers = Layers(norm, self.groups, activation, self.latent_channels)
        factor = 2 ** (len(self.hidden_channels) - 1)
        _, height, width = self.image_shape
        if height % factor or width % factor:
            raise ValueError(
                f"`image_shape` must have a height and width that are multiples of {factor}, 2 to the number of levels"
                f" less 1, got {self.image_shape}."
            )
        self.latent_shape = (self.latent_channels, height // factor, width // factor)

    def _check_groups(self) -> None:
        groups = {"group": self.groups, "spatial": 32}.get(self.norm, 1)
        for width in self.hidden_channels:
            if width % groups:
                raise ValueError(
                    f"`hidden_channels` must be multiples of the {groups} groups of norm={self.norm!r}, got {width}."
                )

    def _check_size(self) -> None:
        """Weights of the 3x3 convolutions, by the widest pair of channels at each level."""
        weights = sum(18 * (self.residual_blocks + 1) * width**2 for width in self.hidden_channels)
        if weights > LARGEST_NETWORK:
            raise ValueError(
                f"A network may have {LARGEST_NETWORK:.1e} weights, this would have {weights:.1e}: make"
                " `hidden_channels` or `residual_blocks` smaller."
            )

    def sections(self) -> tuple[nn.Module, ...]:
        """Two networks which make up this one, cut at the lowest resolution; none if the map there is too large.

        Each looks less far than both together, so that large images take less time in tiles. The map between them is
        held whole: of an image of 16 tiles it is no larger than a map of one tile at the image's resolution.
        """
        least, most = sorted((self.hidden_channels[0], self.hidden_channels[-1]))
        if self.norm == "spatial" or 16 * most > least * 4 ** (len(self.hidden_channels) - 1):
            return ()
        return Section(self, "_before"), Section(self, "_after")

    def _levels_of(self, attention_levels: Sequence[int]) -> tuple[int, ...]:
        return check_int_tuple("attention_levels", attention_levels, minimum=0, maximum=len(self.hidden_channels) - 1)


class ResidualEncoder(_Residual):
    """Images to the mean and log variance of a Gaussian posterior over a latent map, or to one tensor.

    The encoder of latent diffusion: per entry of ``hidden_channels`` residual blocks and, but for the last, a halving
    by a 3x3 convolution with stride 2; two blocks with attention between them at the lowest resolution. Inside, images
    are in [-1, 1]: the first operation is ``2 * x - 1``. Log variances are cut at -30 and 20, as there.

    Args:
        image_shape: ``(C, H, W)``; H and W are multiples of ``2 ** (len(hidden_channels) - 1)``.
        latent_channels: Channels of z.
        hidden_channels: Channels per level, from the image inwards.
        residual_blocks: Residual blocks per level.
        norm: ``"group"``, or ``"pixel"``, each pixel by its root mean square.
        groups: Groups of ``norm="group"``; each width is a multiple.
        attention: Whether there is attention at the lowest resolution.
        attention_levels: Levels with attention after each block, 0 for that of the image.
        activation: ``"silu"``, ``"mish"``, ``"gelu"`` or ``"relu"``; the last is always ``"silu"``.
        inner_channels: Channels per head before a last 1x1 convolution to ``latent_channels``; None for no such layer.
        num_heads: The latent's: 2 for ``(mu, logvar)``, 1 for the one tensor of points and quantisers.

    Raises:
        ValueError: If an argument is out of its range, or H and W are no multiples.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> import torch
        >>> encoder = ResidualEncoder((3, 32, 32), 4, hidden_channels=(8, 16), groups=4)
        >>> mu, logvar = encoder(torch.rand(2, 3, 32, 32))
        >>> mu.shape
        torch.Size([2, 4, 16, 16])

    References:
        Rombach et al. (2022), High-Resolution Image Synthesis with Latent Diffusion Models, section 3.1.
        https://arxiv.org/abs/2112.10752
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_channels: int,
        *,
        hidden_channels: Sequence[int] = (128, 256, 512, 512),
        residual_blocks: int = 2,
        norm: str = "group",
        groups: int = 32,
        attention: bool = True,
        attention_levels: Sequence[int] = (),
        activation: str = "silu",
        inner_channels: int | None = None,
        num_heads: int = 2,
    ) -> None:
        check_choice("norm", norm, NORMS[:2])
        super().__init__(
            image_shape, latent_channels, hidden_channels, residual_blocks, norm, groups, activation, inner_channels
        )
        check_bool("attention", attention)
        check_choice("num_heads", num_heads, (1, 2))
        self.attention, self.num_heads = attention, num_heads
        self.attention_levels = self._levels_of(attention_levels)
        widths, last = self.hidden_channels, len(self.hidden_channels) - 1
        self.conv_in = nn.Conv2d(self.image_shape[0], widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            Level(
                widths[max(i - 1, 0)],
                width,
                self.residual_blocks,
                self.layers,
                attention=i in self.attention_levels,
                resample=None if i == last else _halving(width),
            )
            for i, width in enumerate(widths)
        )
        self.middle = Middle(widths[-1], self.layers, attention=attention)
        self.norm_out = self.layers.normalize(widths[-1])
        outputs = num_heads * (self.latent_channels if self.inner_channels is None else self.inner_channels)
        self.conv_out = nn.Conv2d(widths[-1], outputs, 3, padding=1)
        self.quant_conv = (
            nn.Identity() if self.inner_channels is None else nn.Conv2d(outputs, num_heads * self.latent_channels, 1)
        )
        initialize(self)

    def forward(self, x: Tensor) -> Any:
        """``(B, C, H, W)`` in [0, 1] to ``(mu, logvar)``, or one tensor; each ``(B, *latent_shape)``."""
        check_tensor("x", x, floating=False)
        check_images("x", x, self.image_shape, floating=x.is_floating_point())
        return self._after(self._before(x))

    def _before(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.conv_in(2 * x - 1)
        for level in self.levels[:-1]:
            hidden = level(hidden)
        return hidden

    def _after(self, hidden: Tensor) -> Any:
        hidden = self.norm_out(self.middle(self.levels[-1](hidden)))
        heads = self.quant_conv(self.conv_out(nn.functional.silu(hidden)))
        if self.num_heads == 1:
            return heads
        mu, logvar = heads.chunk(2, dim=1)
        return mu, logvar.clamp(*_LOGVAR_BOUNDS)


class ResidualDecoder(_Residual):
    """Latent maps to images, the mirror of :class:`ResidualEncoder`.

    Two residual blocks with attention between them, then per entry of ``hidden_channels`` residual blocks and, but for
    the last, a doubling by nearest neighbours and a 3x3 convolution. Inside, images are in [-1, 1]: the last operation
    is ``y / 2 + 0.5``.

    Args:
        image_shape: ``(C, H, W)``; H and W are multiples of ``2 ** (len(hidden_channels) - 1)``.
        latent_channels: Channels of z.
        hidden_channels: Channels per level, from the latent outwards.
        residual_blocks: Residual blocks per level; latent diffusion has one more than in the encoder.
        norm: ``"group"``, ``"pixel"``, or ``"spatial"``: group norm with gain and shift from z, as in MoVQ.
        groups: Groups of ``norm="group"``; each width is a multiple. Those of ``"spatial"`` are 32.
        attention: Whether there is attention at the lowest resolution.
        attention_levels: Levels with attention after each block, 0 for that of the latent.
        activation: ``"silu"``, ``"mish"``, ``"gelu"`` or ``"relu"``; the last is always ``"silu"``.
        inner_channels: Channels after a first 1x1 convolution of z; None for no such layer.
        param_channels: Channels of ``recon_params``; the likelihood's ``param_channels(C)``. C if None.

    Raises:
        ValueError: If an argument is out of its range, or H and W are no multiples.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> import torch
        >>> decoder = ResidualDecoder((3, 32, 32), 4, hidden_channels=(16, 8), norm="pixel", attention=False)
        >>> decoder(torch.randn(2, 4, 16, 16)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_channels: int,
        *,
        hidden_channels: Sequence[int] = (512, 512, 256, 128),
        residual_blocks: int = 3,
        norm: str = "group",
        groups: int = 32,
        attention: bool = True,
        attention_levels: Sequence[int] = (),
        activation: str = "silu",
        inner_channels: int | None = None,
        param_channels: int | None = None,
    ) -> None:
        check_choice("norm", norm, NORMS)
        super().__init__(
            image_shape, latent_channels, hidden_channels, residual_blocks, norm, groups, activation, inner_channels
        )
        check_bool("attention", attention)
        self.attention, self.attention_levels = attention, self._levels_of(attention_levels)
        self.param_channels = (
            self.image_shape[0] if param_channels is None else check_int("param_channels", param_channels)
        )
        widths, last = self.hidden_channels, len(self.hidden_channels) - 1
        inner = self.latent_channels if self.inner_channels is None else self.inner_channels
        self.quant_conv = nn.Identity() if self.inner_channels is None else nn.Conv2d(self.latent_channels, inner, 1)
        self.conv_in = nn.Conv2d(inner, widths[0], 3, padding=1)
        self.middle = Middle(widths[0], self.layers, attention=attention)
        self.levels = nn.ModuleList(
            Level(
                widths[max(i - 1, 0)],
                width,
                self.residual_blocks,
                self.layers,
                attention=i in self.attention_levels,
                resample=None if i == last else _doubling(width),
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = self.layers.normalize(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], self.param_channels, 3, padding=1)
        initialize(self)

    def forward(self, z: Tensor) -> Tensor:
        """``(B, *latent_shape)`` to ``(B, param_channels, H, W)``, images where these are C."""
        check_tensor("z", z)
        check_shape("z", z.shape, ("B", *self.latent_shape))
        return self._after(self._before(z), z)

    def _before(self, z: Tensor) -> Tensor:
        first: Any = self.levels[0]
        hidden: Tensor = first.features(self.middle(self.conv_in(self.quant_conv(z)), z), z)
        return hidden

    def _after(self, hidden: Tensor, z: Tensor | None = None) -> Tensor:
        first: Any = self.levels[0]
        if first.resample is not None:
            hidden = first.resample(hidden)
        for level in self.levels[1:]:
            hidden = level(hidden, z)
        hidden = nn.functional.silu(normalized(self.norm_out, hidden, z))
        return self.conv_out(hidden) / 2 + 0.5


def _halving(channels: int) -> nn.Module:
    """Padded on the right and below only: an image of even size has its middle between two pixels."""
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))


def _doubling(channels: int) -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels, channels, 3, padding=1))
