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

__all__ = [
    "bernoulli_log_prob",
    "bits_per_dim",
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
    inner = raw.clamp(-limit / 2, limit / 2)
    excess = (raw - inner) / (limit / 2)
    return inner + limit / 2 * excess / (1 + excess.abs())


def reparameterize(mu: Tensor, logvar: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw z = mu + exp(logvar / 2) * eps with eps from N(0, I).

    Args:
        mu: Posterior mean, shape ``(B, *latent_shape)``.
        logvar: Posterior log variance, the same shape.
        generator: Source of eps; torch's global one if None.

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
    eps = torch.randn(mu.shape, generator=generator, device=mu.device, dtype=mu.dtype)
    return mu + (0.5 * logvar).exp() * eps


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
    near_zero = logits.abs() < 1e-2
    safe = torch.where(near_zero, torch.ones_like(logits), logits)
    exact = torch.log(safe / torch.tanh(safe / 2))
    taylor = math.log(2.0) + logits.square() / 12
    log_normaliser = torch.where(near_zero, taylor, exact)
    return bernoulli_log_prob(x, logits) + sum_per_image(log_normaliser)


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


def bits_per_dim(nats: Tensor, image_shape: Sequence[int], *, levels: int | None = None) -> Tensor:
    """Bits per dimension from a negative log-likelihood in nats per image.

    Args:
        nats: Any shape; nats summed over an image, as everywhere in vaelib.
        image_shape: ``(C, H, W)``.
        levels: For a *density* of data stored in that many levels between 0 and 1 (8-bit: 256), counts
            the discretisation: a level's probability is its density times the spacing 1 / (levels - 1). Of a
            density narrower than that spacing the product is no probability, and the bits can be negative; of
            dequantised images, ``(255 * x + u) / 256`` with u uniform in [0, 1), they bound a code length.
            None for probabilities.

    Returns:
        Bits per dimension, the shape of ``nats``.

    Examples:
        >>> bits_per_dim(torch.tensor(784 * math.log(2)), (1, 28, 28))
        tensor(1.)

    References:
        Theis et al. (2016), A note on the evaluation of generative models, section 3.1. https://arxiv.org/abs/1511.01844
    """
    bits = nats / (math.prod(image_shape) * math.log(2.0))
    return bits if levels is None else bits + math.log2(levels - 1)
