"""p(x|z): what the decoder's raw output means.

A likelihood is any ``nn.Module`` with the four methods of :class:`Likelihood`. It owns its
normaliser, so the nats of two likelihoods may be compared wherever both are probabilities, or both
densities, of the same data.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaelib import functional
from vaelib._checks import check_choice, check_float, check_unit_range
from vaelib._parts import check_pixels, check_raw_params
from vaelib.functional.draws import bernoulli, normal, uniform

__all__ = ["Bernoulli", "ContinuousBernoulli", "DiscretizedLogistic", "Gaussian", "Laplace", "Likelihood"]

_SMALLEST_SCALE = math.exp(-7.0)
_LOG_SCALE_LIMIT = 7.0  # scales stay within e^-7 and e^7: below 1/4 of an 8-bit level nothing is left to model


@runtime_checkable
class Likelihood(Protocol):
    """What ``VAE`` and the objectives ask of p(x|z)."""

    is_density: bool
    """Whether ``log_prob`` is a log density (then bits/dim count the discretisation) or a log mass."""

    def param_channels(self, channels: int) -> int:
        """Channels of ``recon_params`` for images of ``channels`` channels."""

    def log_prob(self, x: Tensor, recon_params: Tensor) -> Tensor:
        """Log p(x|z) in nats, shape ``(B,)``."""

    def mean(self, recon_params: Tensor) -> Tensor:
        """E[x|z], shape ``(B, C, H, W)``."""

    def sample(self, recon_params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One draw of x, shape ``(B, C, H, W)``."""


def _check_support(x: Tensor, *, eight_bit: bool = False) -> None:
    """Values are checked where that is free: on the CPU, and not while a graph is being captured."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        check_unit_range("x", x)
        if eight_bit:
            functional.check_levels("x", x)


def _uniform_like(values: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform in the open interval (0, 1), so that its logarithms are finite."""
    tiny = torch.finfo(values.dtype).eps
    return uniform(values.shape, values, generator).clamp(tiny, 1 - tiny)


class Bernoulli(nn.Module):
    """Binary pixels, of grey ones a relaxation, not log p(x|z); ``recon_params`` are logits.

    Examples:
        >>> x = torch.ones(2, 1, 4, 4)
        >>> Bernoulli().log_prob(x, torch.zeros_like(x))  # -16 ln 2
        tensor([-11.0904, -11.0904])
    """

    is_density = False

    def param_channels(self, channels: int) -> int:
        """One logit per value: ``channels``."""
        return channels

    def log_prob(self, x: Tensor, recon_params: Tensor) -> Tensor:
        """Log p(x|z) in nats, ``(B,)``; ``ValueError`` for values of ``x`` outside [0, 1]."""
        check_pixels(self, x, recon_params)
        _check_support(x)
        return functional.bernoulli_log_prob(x, recon_params)

    def mean(self, recon_params: Tensor) -> Tensor:
        """Probabilities in [0, 1], shape ``(B, C, H, W)``."""
        check_raw_params(recon_params)
        return torch.sigmoid(recon_params)

    def sample(self, recon_params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Zeros and ones, shape ``(B, C, H, W)``."""
        check_raw_params(recon_params, generator, draws=True)
        return bernoulli(torch.sigmoid(recon_params), generator)


class ContinuousBernoulli(nn.Module):
    """A density on [0, 1] with the Bernoulli's logits: the honest likelihood for grey pixels.

    Examples:
        >>> ContinuousBernoulli().mean(torch.zeros(1, 1, 1, 2))
        tensor([[[[0.5000, 0.5000]]]])

    References:
        Loaiza-Ganem & Cunningham (2019), The continuous Bernoulli. https://arxiv.org/abs/1907.06845
    """

    is_density = True

    def param_channels(self, channels: int) -> int:
        """One logit per value: ``channels``."""
        return channels

    def log_prob(self, x: Tensor, recon_params: Tensor) -> Tensor:
        """Log p(x|z) in nats, ``(B,)``; ``ValueError`` for values of ``x`` outside [0, 1]."""
        check_pixels(self, x, recon_params)
        _check_support(x)
        return functional.continuous_bernoulli_log_prob(x, recon_params)

    def mean(self, recon_params: Tensor) -> Tensor:
        """E[x|z] in (0, 1): 1 / (1 - exp(-l)) - 1 / l in the logit l, shape ``(B, C, H, W)``."""
        check_raw_params(recon_params)
        near_zero = recon_params.abs() < 0.5  # where the two terms of the exact form would cancel
        safe = torch.where(near_zero, torch.ones_like(recon_params), recon_params)
        exact = torch.sigmoid(safe) / torch.tanh(safe / 2) - 1 / safe
        square = recon_params.square()
        series = 0.5 + recon_params * (1 / 12 - square * (1 / 720 - square / 30240))
        return torch.where(near_zero, series, exact)

    def sample(self, recon_params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A draw in [0, 1] by the inverse distribution function, shape ``(B, C, H, W)``."""
        check_raw_params(recon_params, generator, draws=True)
        uniform = _uniform_like(recon_params, generator)
        near_zero = recon_params.abs() < 1e-3
        logits = torch.where(near_zero, torch.ones_like(recon_params), recon_params)
        # log(1 + u (e^l - 1)) / l = (logaddexp(log(1 - u), log(u) + l)) / l, finite for any l.
        quantile = torch.logaddexp(torch.log1p(-uniform), uniform.log() + logits) / logits
        return torch.where(near_zero, uniform, quantile).clamp(0, 1)


class _LocationScale(nn.Module):
    """Abstract: a location per pixel and a scale that is fixed, learned, per pixel or optimal."""

    log_scale: Tensor

    def __init__(self, name: str, scale: float | str, choices: tuple[str, ...]) -> None:
        super().__init__()
        if isinstance(scale, str):
            check_choice(name, scale, choices)
            self.source = scale
            start = torch.tensor(-1.0)  # e^-1, about the deviation of images in [0, 1]
        else:
            start = torch.tensor(math.log(check_float(name, scale, 0, above=True)))
            self.source = "fixed"
        if self.source == "learned":
            self.log_scale = nn.Parameter(start)
        elif self.source != "per_pixel":
            self.register_buffer("log_scale", start, persistent=self.source == "optimal")

    def param_channels(self, channels: int) -> int:
        """``channels`` locations, and as many raw log scales if they are per pixel."""
        return 2 * channels if self.source == "per_pixel" else channels

    def _location_and_log_scale(self, recon_params: Tensor, generator: object = None) -> tuple[Tensor, Tensor]:
        check_raw_params(recon_params, generator, a_channel=self.param_channels(1))
        if self.source == "per_pixel":
            location, raw = recon_params.chunk(2, dim=1)
            return location, functional.soft_bound(raw, _LOG_SCALE_LIMIT)
        if self.source == "learned":
            return recon_params, functional.soft_bound(self.log_scale, _LOG_SCALE_LIMIT)
        return recon_params, self.log_scale

    def _track_optimum(self, log_scale: Tensor) -> Tensor:
        """The batch's own log scale, remembered as a running average for eval mode."""
        self.log_scale.lerp_(log_scale.detach(), 0.1)
        return log_scale

    def extra_repr(self) -> str:
        """Where the scale comes from, or its value."""
        return self.source if self.source != "fixed" else f"{self.log_scale.exp().item():.4g}"


class Gaussian(_LocationScale):
    """Independent Gaussians; ``recon_params`` are means, then raw log sigmas if per pixel.

    Args:
        sigma: The standard deviation: a number > 0; ``"learned"``, one value for all pixels;
            ``"per_pixel"``, from the decoder; or ``"optimal"``, in training the root mean square error of
            the batch, in eval mode its running average, so that no test image sees another.

    Examples:
        >>> x = torch.zeros(2, 3, 4, 4)
        >>> Gaussian(sigma=1.0).log_prob(x, x)  # -24 ln(2 pi)
        tensor([-44.1090, -44.1090])

    References:
        Rybkin et al. (2021), Simple and Effective VAE Training with Calibrated Decoders.
        https://arxiv.org/abs/2006.13202
    """

    is_density = True

    def __init__(self, sigma: float | str = "learned") -> None:
        super().__init__("sigma", sigma, ("learned", "per_pixel", "optimal"))
        self.sigma = sigma if isinstance(sigma, str) else float(sigma)

    def log_prob(self, x: Tensor, recon_params: Tensor) -> Tensor:
        """Log density in nats, ``(B,)``."""
        check_pixels(self, x, recon_params)
        mean, log_sigma = self._location_and_log_scale(recon_params)
        if self.source == "optimal" and self.training:
            log_sigma = self._track_optimum((x - mean).square().mean().clamp(min=_SMALLEST_SCALE**2).log() / 2)
        return functional.gaussian_log_prob(x, mean, log_sigma)

    def mean(self, recon_params: Tensor) -> Tensor:
        """The means, any real values, ``(B, C, H, W)``; ``VAE.reconstruct`` and ``sample`` clamp them to [0, 1]."""
        return self._location_and_log_scale(recon_params)[0]

    def sample(self, recon_params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A draw, any real values, shape ``(B, C, H, W)``."""
        mean, log_sigma = self._location_and_log_scale(recon_params, generator)
        return mean + log_sigma.exp() * normal(mean.shape, mean, generator)


class Laplace(_LocationScale):
    """Independent Laplace distributions; ``recon_params`` are means, then raw log scales if per pixel.

    Args:
        scale: The mean absolute deviation: a number > 0, ``"learned"``, ``"per_pixel"`` or ``"optimal"``,
            as in :class:`Gaussian`.

    Examples:
        >>> x = torch.zeros(2, 3, 4, 4)
        >>> Laplace(scale=0.5).log_prob(x, x)  # density 1 everywhere
        tensor([0., 0.])
    """

    is_density = True

    def __init__(self, scale: float | str = "learned") -> None:
        super().__init__("scale", scale, ("learned", "per_pixel", "optimal"))
        self.scale = scale if isinstance(scale, str) else float(scale)

    def log_prob(self, x: Tensor, recon_params: Tensor) -> Tensor:
        """Log density in nats, ``(B,)``."""
        check_pixels(self, x, recon_params)
        mean, log_scale = self._location_and_log_scale(recon_params)
        if self.source == "optimal" and self.training:
            log_scale = self._track_optimum((x - mean).abs().mean().clamp(min=_SMALLEST_SCALE).log())
        return functional.laplace_log_prob(x, mean, log_scale)

    def mean(self, recon_params: Tensor) -> Tensor:
        """The means, any real values, ``(B, C, H, W)``; ``VAE.reconstruct`` and ``sample`` clamp them to [0, 1]."""
        return self._location_and_log_scale(recon_params)[0]

    def sample(self, recon_params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A draw, any real values, shape ``(B, C, H, W)``."""
        mean, log_scale = self._location_and_log_scale(recon_params, generator)
        centred = _uniform_like(mean, generator) - 0.5
        return mean - log_scale.exp() * centred.sign() * torch.log1p(-2 * centred.abs())


class DiscretizedLogistic(_LocationScale):
    """Probabilities of 8-bit values k / 255, and of no others, under a logistic: for bits per dimension.

    Args:
        scale: The logistic's scale: ``"per_pixel"``, ``"learned"`` or a number > 0.

    Examples:
        >>> likelihood = DiscretizedLogistic(scale=0.1)
        >>> likelihood.log_prob(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.5 / 255)).exp()
        tensor([0.5000])

    References:
        Kingma et al. (2016), Improving Variational Inference with IAF. https://arxiv.org/abs/1606.04934
    """

    is_density = False

    def __init__(self, scale: float | str = "per_pixel") -> None:
        super().__init__("scale", scale, ("per_pixel", "learned"))
        self.scale = scale if isinstance(scale, str) else float(scale)

    def log_prob(self, x: Tensor, recon_params: Tensor) -> Tensor:
        """Log probability in nats, ``(B,)``; ``ValueError`` for values of ``x`` that are no k / 255, on the CPU."""
        check_pixels(self, x, recon_params)
        _check_support(x, eight_bit=True)
        location, log_scale = self._location_and_log_scale(recon_params)
        return functional.discretized_logistic_log_prob(x, location, log_scale)

    def mean(self, recon_params: Tensor) -> Tensor:
        """Mean in [0, 1] of the logistic with its tails gathered at 0 and 1, shape ``(B, C, H, W)``."""
        location, log_scale = self._location_and_log_scale(recon_params)
        scale = log_scale.exp()
        return scale * (F.softplus(location / scale) - F.softplus((location - 1) / scale))

    def sample(self, recon_params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A draw k / 255, shape ``(B, C, H, W)``."""
        location, log_scale = self._location_and_log_scale(recon_params, generator)
        draw = location + log_scale.exp() * torch.logit(_uniform_like(location, generator))
        return (draw * 255).round().clamp(0, 255) / 255
