r"""Pure tensor maths of variational autoencoders: per image, in nats.

Shapes: ``B`` batch, ``C`` channels, ``H`` ``W`` image, ``D`` latent. Every log-probability is summed
over all axes but the first and has shape ``(B,)``; nothing here averages over pixels, knows a model,
or draws noise without being given the chance to use the caller's generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vaelib._checks import (
    check_batch,
    check_bool,
    check_float,
    check_int,
    check_int_tuple,
    check_like,
    check_shape,
    check_tensor,
)
from vaelib.functional.draws import reparameterize

__all__ = [
    "at_levels",
    "bernoulli_log_prob",
    "bits_per_dim",
    "check_levels",
    "continuous_bernoulli_log_prob",
    "discretized_logistic_log_prob",
    "gaussian_log_prob",
    "kl_standard_normal",
    "laplace_log_prob",
    "reparameterize",
    "soft_bound",
    "sum_per_image",
]


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


def laplace_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log density of independent Laplace distributions, in nats.

    Args:
        x: Shape ``(B, ...)``, any real values.
        mean: Shape of ``x``.
        log_scale: Log of the mean absolute deviation, broadcastable to ``x``.

    Returns:
        Shape ``(B,)``.

    Examples:
        >>> laplace_log_prob(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1))  # -ln 2
        tensor([-0.6931])
    """
    check_like("x", x, mean=mean, log_scale=log_scale)
    return sum_per_image(-(x - mean).abs() * torch.exp(-log_scale) - log_scale - math.log(2.0))


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """Bernoulli log probability in nats: minus the binary cross-entropy, summed.

    A probability for x in {0, 1}. For grey values in between it is the usual relaxation, whose best
    value is the entropy of the data instead of zero; :func:`continuous_bernoulli_log_prob` is the
    density that belongs to such data.

    Args:
        x: Shape ``(B, ...)``, values in [0, 1].
        logits: Shape of ``x``.

    Returns:
        Shape ``(B,)``.

    Examples:
        >>> bernoulli_log_prob(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))  # -4 ln 2
        tensor([-2.7726])
    """
    check_like("x", x, logits=logits)
    check_shape("logits", logits.shape, x.shape)
    return sum_per_image(-F.binary_cross_entropy_with_logits(logits, x, reduction="none"))


def continuous_bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    r"""Continuous Bernoulli log density on [0, 1], in nats.

    The Bernoulli formula times its normaliser, which in the logit l is l / tanh(l / 2).

    Args:
        x: Shape ``(B, ...)``, values in [0, 1].
        logits: Shape of ``x``.

    Returns:
        Shape ``(B,)``.

    Examples:
        >>> continuous_bernoulli_log_prob(torch.rand(1, 9), torch.zeros(1, 9))  # uniform
        tensor([0.])

    References:
        Loaiza-Ganem & Cunningham (2019), The continuous Bernoulli. https://arxiv.org/abs/1907.06845
    """
    bernoulli = bernoulli_log_prob(x, logits)
    near_zero = logits.abs() < 1e-2
    safe = torch.where(near_zero, torch.ones_like(logits), logits)
    exact = torch.log(safe / torch.tanh(safe / 2))
    taylor = math.log(2.0) + logits.square() / 12
    log_normaliser = torch.where(near_zero, taylor, exact)
    return bernoulli + sum_per_image(log_normaliser)


def discretized_logistic_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability mass of 8-bit values under a logistic, in nats.

    The 256 levels k / 255 own the bins of width 1 / 255 around them; the outermost two reach to
    infinity, so the masses of the levels sum to one.

    Args:
        x: Shape ``(B, ...)``, values k / 255 for k = 0..255.
        mean: Location on the scale of ``x``, the same shape.
        log_scale: Log of the logistic's scale, broadcastable to ``x``.

    Returns:
        Shape ``(B,)``.

    Examples:
        >>> levels = torch.arange(256.0).view(256, 1) / 255
        >>> mass = discretized_logistic_log_prob(levels, torch.tensor(0.3), torch.tensor(-2.0)).exp()
        >>> round(mass.sum().item(), 5)
        1.0

    References:
        Kingma et al. (2016), Improving Variational Inference with IAF, section 5.2.
        https://arxiv.org/abs/1606.04934
    """
    check_like("x", x, mean=mean, log_scale=log_scale)
    half_bin = 0.5 / 255
    inverse_scale = torch.exp(-log_scale)
    upper = (x - mean + half_bin) * inverse_scale
    lower = (x - mean - half_bin) * inverse_scale
    # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)): no cancellation in the tails.
    inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-inverse_scale / 255))
    log_mass = torch.where(
        x < half_bin, F.logsigmoid(upper), torch.where(x > 1 - half_bin, F.logsigmoid(-lower), inside)
    )
    return sum_per_image(log_mass)


def at_levels(x: Tensor) -> bool:
    """Whether every value is an 8-bit level k / 255, up to the rounding of its dtype.

    Examples:
        >>> at_levels(torch.tensor([0.0, 7 / 255])), at_levels(torch.tensor([0.5]))
        (True, False)
    """
    tolerance = max(1e-3, 255 * torch.finfo(x.dtype).eps)  # in levels; bfloat16 cannot tell them apart
    return bool((_from_level(x) <= tolerance).all())


def check_levels(name: str, x: Tensor) -> None:
    """Raise ``ValueError`` unless every value is an 8-bit level k / 255, up to rounding; on a GPU this waits for it.

    Examples:
        >>> check_levels("x", torch.tensor([0.0, 7 / 255]))
    """
    if not at_levels(x):
        worst = x.flatten()[_from_level(x).argmax()].item()
        raise ValueError(
            f"`{name}` must have the values k / 255 of 8-bit images under a DiscretizedLogistic, got {worst:.6g}, which"
            f" is {255 * worst:.3f} / 255. Round the images, (x * 255).round() / 255, or choose a density such as"
            " Gaussian."
        )


def _from_level(x: Tensor) -> Tensor:
    """Distance to the nearest level k / 255, in levels."""
    return (x * 255 - (x * 255).round()).abs()


def bits_per_dim(nats: Tensor, image_shape: Sequence[int], *, levels: int | None = None) -> Tensor:
    """Bits per dimension from a negative log-likelihood in nats per image.

    Of a density p over dequantised images, ``x = (k + u) / levels`` with k = 0 .. levels - 1 and u uniform in [0, 1),
    the result bounds a code length: the model gives the level k the mass of its cell, whose width is 1 / levels, so by
    Jensen's inequality the mean bits are at least those that a code for the levels with these masses needs.

    Of a density at the levels themselves, ``x = k / 255`` as 8-bit images are loaded, or on any other scale, the result
    is a density in other units and no code length: it has no lower bound, and is negative where the density is narrow.

    Args:
        nats: Any shape; nats summed over an image, as everywhere in vaelib.
        image_shape: ``(C, H, W)``.
        levels: Number of levels of a *density*'s dequantised data (8-bit: 256); adds log2(levels). None for
            probabilities, whose bits are a code length as they are.

    Returns:
        Bits per dimension, the shape of ``nats``.

    Raises:
        TypeError: If ``levels`` is no int.
        ValueError: If ``levels`` is below 2.

    Examples:
        >>> bits_per_dim(torch.tensor(784 * math.log(2)), (1, 28, 28))
        tensor(1.)
        >>> bits_per_dim(torch.tensor(0.0), (1, 28, 28), levels=256)  # a uniform density: 8 bits for each of 256 levels
        tensor(8.)

    References:
        Theis et al. (2016), A note on the evaluation of generative models, section 3.1. https://arxiv.org/abs/1511.01844
    """
    check_tensor("nats", nats)
    pixels = math.prod(check_int_tuple("image_shape", image_shape))
    bits = nats / (pixels * math.log(2.0))
    return bits if levels is None else bits + math.log2(check_int("levels", levels, 2))
