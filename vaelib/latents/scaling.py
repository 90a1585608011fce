"""Shift and scale of latents by channel, as generators of latents want them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from torch import Tensor, nn

from vaelib._checks import check_batch, check_bool, check_float, shown

__all__ = ["LatentScaling", "scaling_if"]

_LARGEST = 1e30
"""Of a shift, a scale and 1 / scale: squares of them leave float32."""


class LatentScaling(nn.Module):
    """Shift and scale of z, by channel: ``scaled = (z - shift) * scale``.

    A diffusion model that is trained on the latents of an autoencoder wants them with mean 0 and deviation 1.
    :func:`vaelib.evaluation.latent_statistics` measures shift and scale over a data set. ``model.scaling`` holds them,
    is saved and exported with the model, and acts where ``scaled=True`` is asked for: nothing else changes.

    Args:
        shift: Subtracted from z: one number for all channels, or one for each.
        scale: Factor of the difference, between 1e-30 and 1e30: the same choice.

    Raises:
        ValueError: If a number is not finite or out of its range, or the two have different lengths.
        TypeError: If one is neither a number nor a sequence of numbers.

    Examples:
        >>> import torch
        >>> scaling = LatentScaling((1.0, 0.0), (0.5, 2.0))
        >>> z = torch.tensor([[3.0, 3.0]])
        >>> scaling(z), scaling.inverse(scaling(z))
        (tensor([[1., 6.]]), tensor([[3., 3.]]))

    References:
        Rombach et al. (2022), High-resolution image synthesis with latent diffusion models, appendix G: one scale, the
        reciprocal of the deviation. https://arxiv.org/abs/2112.10752
    """

    def __init__(self, shift: float | Sequence[float], scale: float | Sequence[float]) -> None:
        super().__init__()
        self.shift = _numbers("shift", shift, -_LARGEST)
        self.scale = _numbers("scale", scale, 1 / _LARGEST)
        counts = {len(values) for values in (self.shift, self.scale) if isinstance(values, tuple)}
        if len(counts) > 1:
            raise ValueError(f"`shift` and `scale` must have as many entries, got {shown(shift)} and {shown(scale)}.")
        self.num_channels = max(counts, default=None)
        """How many channels it is for; None for any number."""

    def forward(self, z: Tensor) -> Tensor:
        """``(z - shift) * scale`` of latents ``(B, C, ...)``."""
        self._check(z)
        return (z - _along(self.shift, z)) * _along(self.scale, z)

    def inverse(self, z: Tensor) -> Tensor:
        """``z / scale + shift``: latents as the decoder takes them, of scaled ones."""
        self._check(z)
        return z / _along(self.scale, z) + _along(self.shift, z)

    def encoded(self, found: Any) -> Any:
        """What ``VAE.encode`` gives, ``(mu, logvar)`` or z, of the scaled z.

        Raises:
            ValueError: If it is codes.
        """
        if isinstance(found, tuple):
            mu, logvar = found
            logs = tuple(map(_twice_log, self.scale)) if isinstance(self.scale, tuple) else _twice_log(self.scale)
            return self(mu), logvar + _along(logs, logvar)
        if not found.is_floating_point():
            raise ValueError("`scaled` must be False for codes, which have no scale: `embed` gives their z.")
        return self(found)

    def by_channel(self, num_channels: int) -> dict[str, list[float]]:
        """``{"shift": [...], "scale": [...]}`` with a number for each channel."""
        return {
            name: list(value) if isinstance(value, tuple) else [value] * num_channels
            for name, value in (("shift", self.shift), ("scale", self.scale))
        }

    def extra_repr(self) -> str:
        """The arguments, in ``repr``."""
        return f"shift={shown(self.shift)}, scale={shown(self.scale)}"

    def _check(self, z: Tensor) -> None:
        check_batch("z", z)
        if self.num_channels not in (None, z.shape[1]):
            raise ValueError(f"`z` must have {self.num_channels} channels, got the shape {tuple(z.shape)}.")


def scaling_if(scaled: bool, model: Any) -> LatentScaling | None:
    """The model's scaling where it is asked for.

    Raises:
        ValueError: If there is none.
        TypeError: If ``scaled`` is not True or False.
    """
    check_bool("scaled", scaled)
    if not scaled:
        return None
    if model.scaling is None:
        raise ValueError(
            "`scaled` must be False for a model without a scaling: measure one,"
            " model.scaling = vl.evaluation.latent_statistics(model, data).scaling."
        )
    scaling: LatentScaling = model.scaling
    return scaling


def _numbers(name: str, value: Any, least: float) -> float | tuple[float, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray | memoryview):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"`{name}` must be a number, or a list of one for each channel, got {shown(value)}.")
        return check_float(name, value, least, _LARGEST)
    if not value:
        raise ValueError(f"`{name}` must be a number, or one for each channel, got {shown(value)}.")
    return tuple(check_float(f"{name}[{i}]", entry, least, _LARGEST) for i, entry in enumerate(value))


def _twice_log(scale: float) -> float:
    return 2 * math.log(scale)


def _along(value: float | tuple[float, ...], z: Tensor) -> float | Tensor:
    """One number, or a tensor of one for each channel of ``z``, ``(C, 1, ...)``."""
    return z.new_tensor(value).view(-1, *[1] * (z.ndim - 2)) if isinstance(value, tuple) else value
