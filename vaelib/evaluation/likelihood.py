"""log p(x) by importance sampling."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from operator import length_hint
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vaelib._checks import check_int
from vaelib.evaluation.bound import Estimate
from vaelib.evaluation.inputs import BatchSource, batches_for, check_vae
from vaelib.functional import bits_per_dim
from vaelib.vae import VAE, eval_mode

__all__ = ["LikelihoodEstimate", "log_likelihood"]

_FEW = 10.0
"""Effective draws below which an image's estimate is the word of a few."""


class LikelihoodEstimate(NamedTuple):
    """log p(x) of images under a VAE."""

    log_likelihood: Estimate
    """Nats per image; in expectation at most log p(x), and rising with the number of draws. ``-value`` is the NLL."""
    elbo: Estimate
    """Of the same draws, nats per image."""
    bits_per_dim: Estimate
    """-log p(x) in bits per pixel and channel, the discretisation counted for a density, of which they are
    a code length if the images are dequantised, see :func:`vaelib.functional.bits_per_dim`."""
    effective_samples: float
    """(sum w)^2 / sum w^2, between 1 and ``num_samples``: the median over images."""
    per_image: Tensor
    """log p(x) of each image, ``(N,)``."""
    num_samples: int
    num_images: int


def log_likelihood(
    model: VAE,
    data: Tensor | BatchSource | Iterable[Any],
    *,
    num_samples: int = 1000,
    batch_size: int = 512,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> LikelihoodEstimate:
    """Estimate log p(x) with ``num_samples`` draws from the posterior of each image, exactly so many.

    Args:
        model: A VAE with any prior.
        data: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches.
        num_samples: K draws an image.
        batch_size: Latents that are decoded at a time, over images and draws: the memory's budget.
        generator: Of the draws, on the model's device.
        progress: Show a bar on standard error.

    Returns:
        A :class:`LikelihoodEstimate` in nats per image. A warning says when K is too small to be trusted: when the
        median image has fewer than 10 effective draws.

    Raises:
        ValueError: If there is no image, or the images do not fit the model.
        TypeError: If ``model`` is no VAE.

    Examples:
        >>> import vaelib as vl
        >>> vae = vl.conv_vae((1, 8, 8), 2)
        >>> result = log_likelihood(vae, torch.rand(10, 1, 8, 8), num_samples=64)
        >>> result.num_samples, result.log_likelihood.value >= result.elbo.value
        (64, True)

    References:
        Burda et al. (2016), section 5, https://arxiv.org/abs/1509.00519; Rezende et al. (2014), appendix E,
        https://arxiv.org/abs/1401.4082
    """
    check_vae("model", model)
    check_int("num_samples", num_samples)
    check_int("batch_size", batch_size)
    columns: tuple[list[float], ...] = ([], [], [])  # not tensors, whose places among large ones fragment the memory
    at_a_time = max(1, batch_size // num_samples)
    with eval_mode(model):
        for images in track(
            batches_for(model, data, at_a_time, generator),
            "log p(x)",
            total=math.ceil(length_hint(data) / (at_a_time if isinstance(data, Tensor | BatchSource) else 1)) or None,
            console=Console(stderr=True),
            disable=not progress,
        ):
            for few in images.split(at_a_time):
                for column, found in zip(
                    columns, _of_images(model, few, num_samples, batch_size, generator), strict=True
                ):
                    column += found.tolist()
    values, bounds, effective = (torch.tensor(column, dtype=torch.float64) for column in columns)
    if effective.median() < _FEW:
        warnings.warn(
            f"`num_samples` {num_samples} is too small: half of the images have fewer than"
            f" {effective.median().item():.1f} effective draws, and log p(x) is underestimated.",
            stacklevel=2,
        )
    levels = 256 if model.likelihood.is_density else None
    return LikelihoodEstimate(
        log_likelihood=Estimate.of(values),
        elbo=Estimate.of(bounds),
        bits_per_dim=Estimate.of(bits_per_dim(-values, model.image_shape, levels=levels)),
        effective_samples=effective.median().item(),
        per_image=values,
        num_samples=num_samples,
        num_images=len(values),
    )


def _of_images(
    model: VAE, x: Tensor, num_samples: int, batch_size: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log p(x), the ELBO and the effective draws of each image."""
    mu, logvar = model.encode(x)
    at_a_time = max(1, batch_size // len(x))
    log_weights = torch.cat(
        [
            _log_weights(model, x, mu, logvar, min(at_a_time, num_samples - start), generator)
            for start in range(0, num_samples, at_a_time)
        ]
    ).double()
    values = log_weights.logsumexp(0) - math.log(num_samples)
    effective = torch.exp(2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0))
    return values, log_weights.mean(0), effective


def _log_weights(
    model: VAE, x: Tensor, mu: Tensor, logvar: Tensor, draws: int, generator: torch.Generator | None
) -> Tensor:
    """Log p(x|z) + log p(z) - log q(z|x), ``(draws, B)``."""
    mu, logvar, x = (values.repeat(draws, *[1] * (values.ndim - 1)) for values in (mu, logvar, x))
    z, log_q = model.draw(mu, logvar, generator=generator)
    return (model.likelihood.log_prob(x, model.decode(z)) + model.prior.log_prob(z) - log_q).view(draws, -1)
