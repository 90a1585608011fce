"""Gaussian latents: draws, divergences, densities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaelib._checks import (
    check_batch,
    check_bool,
    check_float,
    check_generator,
    check_like,
    check_one_device,
    check_shape,
    check_tensor,
)
from vaelib.functional.draws import normal

__all__ = ["gaussian_log_prob", "kl_standard_normal", "reparameterize", "soft_bound", "sum_per_image"]


def sum_per_image(values: Tensor) -> Tensor:
    """Sum over every axis but the first: ``(B, ...)`` to ``(B,)``.

    Examples:
        >>> sum_per_image(torch.ones(2, 3, 4))
        tensor([12., 12.])
    """
    check_batch("values", values)
    return values.flatten(1).sum(1)


def soft_bound(raw: Tensor, limit: float) -> Tensor:
    """Squeeze any real number into (-limit, limit), leaving the inner half exactly as it is.

    The identity for ``|raw| <= limit / 2``; beyond, a smooth curve towards the limit whose slope
    falls only quadratically, so that gradients come back from far outside. The encoders bound ``logvar``
    at 20, where ``exp`` is 5e8, so that their posteriors cannot overflow.

    Args:
        raw: Any shape, finite.
        limit: > 0.

    Returns:
        The shape of ``raw``.

    Examples:
        >>> soft_bound(torch.tensor([-5.0, 0.3, 30.0, 1e9]), limit=20.0)
        tensor([-5.0000,  0.3000, 16.6667, 20.0000])
    """
    check_tensor("raw", raw)
    limit = check_float("limit", limit, 0.0, above=True)
    inner = raw.clamp(-limit / 2, limit / 2)
    excess = (raw - inner) / (limit / 2)
    return inner + limit / 2 * excess / (1 + excess.abs())


def reparameterize(mu: Tensor, logvar: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw z = mu + exp(logvar / 2) * eps with eps from N(0, I).

    Args:
        mu: Posterior mean, shape ``(B, *latent_shape)``.
        logvar: Posterior log variance, the same shape.
        generator: Source of eps, of any device; torch's global one if None.

    Returns:
        z, the same shape, differentiable in ``mu`` and ``logvar``.

    Examples:
        >>> reparameterize(torch.full((2, 3), 5.0), torch.full((2, 3), -40.0)).round()
        tensor([[5., 5., 5.],
                [5., 5., 5.]])

    References:
        Kingma & Welling (2014), Auto-Encoding Variational Bayes, section 2.4.
        https://arxiv.org/abs/1312.6114
    """
    check_tensor("mu", mu)
    check_tensor("logvar", logvar)
    check_shape("logvar", logvar.shape, mu.shape)
    check_one_device(mu=mu, logvar=logvar)
    check_generator(generator)
    return mu + (0.5 * logvar).exp() * normal(mu.shape, mu, generator)


def kl_standard_normal(mu: Tensor, logvar: Tensor, *, per_latent: bool = False) -> Tensor:
    """KL(N(mu, exp(logvar)) to N(0, I)) in nats, in closed form.

    Args:
        mu: Posterior mean, shape ``(B, *latent_shape)``.
        logvar: Posterior log variance, the same shape.
        per_latent: Keep the latents apart.

    Returns:
        Shape ``(B,)``, or ``(B, D)`` with ``per_latent``, where a latent map is flattened.

    Examples:
        >>> kl_standard_normal(torch.ones(1, 4), torch.zeros(1, 4))  # 1/2 a latent
        tensor([2.])

    References:
        Kingma & Welling (2014), Appendix B. https://arxiv.org/abs/1312.6114
    """
    check_like("mu", mu, logvar=logvar)
    check_bool("per_latent", per_latent)
    kl = 0.5 * (mu.square() + torch.expm1(logvar) - logvar).flatten(1)
    return kl if per_latent else kl.sum(1)


def gaussian_log_prob(x: Tensor, mean: Tensor, log_sigma: Tensor) -> Tensor:
    """Log density of independent Gaussians, in nats.

    Args:
        x: Shape ``(B, ...)``, any real values.
        mean: Shape of ``x``.
        log_sigma: Log standard deviation, broadcastable to ``x``.

    Returns:
        Shape ``(B,)``.

    Examples:
        >>> gaussian_log_prob(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2))  # -ln(2 pi)
        tensor([-1.8379])
    """
    check_like("x", x, mean=mean, log_sigma=log_sigma)
    scaled = (x - mean) * torch.exp(-log_sigma)
    return sum_per_image(-0.5 * scaled.square() - log_sigma - 0.5 * math.log(2 * math.pi))
