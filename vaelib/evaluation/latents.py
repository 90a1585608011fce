"""What the latents of a trained model carry, and how much of the KL is information."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaelib._checks import DataError
from vaelib._images import Batch, ImageSet
from vaelib.evaluation.bound import Estimate
from vaelib.evaluation.inputs import batches_for, check_model_finite, check_vae
from vaelib.functional import gaussian_log_prob, kl_standard_normal, reparameterize
from vaelib.vae import VAE, bound, eval_mode

__all__ = ["LatentReport", "latents"]

ACTIVE = 0.01
"""Variance of the posterior mean over images from which on a latent counts as used (Burda et al. 2016)."""
_AT_A_TIME = 512


class LatentReport(NamedTuple):
    """The latents of a VAE over a data set; every number of images is in nats."""

    active_units: int
    """Latents whose posterior mean varies by more than 0.01 over images."""
    variance_of_mu: Tensor
    """Of each latent, ``(D,)``; a latent map is flattened."""
    kl_per_latent: Tensor
    """KL of each latent's posterior, the mean over images, ``(D,)``: to the prior where that splits over latents, else
    to N(0, 1)."""
    kl: Estimate
    """KL(q(z|x) to p(z)), with one draw an image: mutual information plus marginal KL."""
    mutual_information: Estimate
    """I(x; z) under q, with the mean of these N posteriors for q(z): at least so much of the KL is information. At most
    log N, which says no more than that z tells all N images apart."""
    marginal_kl: Estimate
    """KL(q(z) to p(z)) with that q(z), the rest of the KL: a better prior could save at most so much."""
    num_images: int
    prior_is_conditional: bool = False
    """Whether p(z|c) takes the image's condition: the marginal KL, a mean of log q(z) - log p(z|c), can then be
    negative, and says nothing about what a better prior could save."""

    def in_words(self) -> str:
        """What these numbers say about posterior collapse."""
        size = len(self.kl_per_latent)
        dead = size - self.active_units
        most = math.log(self.num_images)
        if self.active_units == 0:
            return (
                f"Collapsed: none of {size} latents depends on the image, so the decoder ignores z. Start with a small"
                " beta that warms up, or free bits of about 0.1 nats a latent, or a weaker decoder."
            )
        said = [f"{self.active_units} of {size} latents are used" + (f", {dead} are not" if dead else "")]
        information = self.mutual_information.value
        if most - information < 1:
            said.append(
                f"z tells {self.num_images} images apart, so it carries at least {information:.1f} nats about them"
            )
            rest = (
                f"how much of the other {self.marginal_kl.value:.1f} nats of the KL a better prior could save, only"
                " more images would show"
            )
        else:
            said.append(f"z carries at least {information:.1f} nats about the image")
            rest = (
                f"at most {self.marginal_kl.value:.1f} nats of the KL pay for a prior that the posteriors together do"
                " not match"
            )
        if not self.prior_is_conditional:
            said.append(rest)
        return "; ".join(said) + "."


def latents(
    model: VAE,
    data: Tensor | ImageSet | Iterable[Any],
    *,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> LatentReport:
    """Look at every latent over a data set, and split its KL as E KL(q(z|x) to p(z)) = I(x; z) + KL(q(z) to p(z)).

    q(z), the mean of all posteriors, is evaluated exactly over the N images, of which each has one draw: N^2 D
    operations.

    Of a model with a condition each posterior is that of its image and condition; q(z) is the mean over both. Under a
    prior that takes the condition, KLs are to p(z|c), and the marginal KL is the mean of log q(z) - log p(z|c).

    Args:
        model: A VAE with a Gaussian posterior and any prior; of codes, see :func:`code_usage`.
        data: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches; N >= 2.
        batch_size: Images per batch, unless ``data`` comes in batches.
        generator: Random generator for the draws, on any device.

    Returns:
        A :class:`LatentReport`, on the CPU.

    Raises:
        DataError: A ``ValueError``: if there are fewer than two images.
        ValueError: If a posterior or its KL is not finite.
        TypeError: If ``model`` is no VAE.

    Examples:
        >>> import vaelib as vl
        >>> report = latents(vl.conv_vae((1, 8, 8), 2), torch.rand(50, 1, 8, 8))
        >>> report.kl_per_latent.shape, report.num_images
        (torch.Size([2]), 50)

    References:
        Hoffman & Johnson (2016), ELBO surgery; active units: Burda et al. (2016), section 5.2,
        https://arxiv.org/abs/1509.00519
    """
    check_vae("model", model)
    dtype = next(model.parameters(), torch.empty(0)).dtype
    with eval_mode(model):
        mu, logvar, conditions = _posteriors(model, batches_for(model, data, batch_size, generator))
        z = reparameterize(mu, logvar, generator=generator)
        log_q = gaussian_log_prob(z, mu, 0.5 * logvar).cpu()
        marginal = torch.cat([_log_aggregate(part, mu, logvar) for part in z.split(_AT_A_TIME)]).cpu()
        parts = []
        for start in range(0, len(z), _AT_A_TIME):
            rows = slice(start, start + _AT_A_TIME)
            prior = bound(model, None if conditions is None else conditions[rows]).prior
            moments = [values[rows].to(dtype) for values in (mu, logvar, z)]
            kl = prior.kl(*moments) if hasattr(prior, "kl") else None
            if kl is None or kl.shape[1] != mu[0].numel():  # it does not split over latents
                kl = kl_standard_normal(*moments[:2], per_latent=True)
            parts.append((prior.log_prob(moments[2]), kl))
    log_p, per_latent = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    check_model_finite("model", "the KL", log_q, marginal, log_p, per_latent)
    variance = mu.flatten(1).var(0).cpu()
    return LatentReport(
        active_units=int((variance > ACTIVE).sum()),
        variance_of_mu=variance,
        kl_per_latent=per_latent.double().mean(0),
        kl=Estimate.of(log_q - log_p),
        mutual_information=Estimate.of(log_q - marginal),
        marginal_kl=Estimate.of(marginal - log_p),
        num_images=len(mu),
        prior_is_conditional=conditions is not None and hasattr(model.prior, "given"),
    )


def _posteriors(model: VAE, batches: Iterable[Batch]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Moments of all posteriors, float64, and the conditions of a model that has one."""
    found: list[tuple[Tensor, Tensor]] = []
    conditions: list[Any] = []
    for x, condition in batches:
        moments = bound(model, condition).encode(x)
        if not isinstance(moments, tuple):
            hint = ", but codes: see `code_usage`" if hasattr(model.latent, "num_codes") else ""
            raise ValueError(f"`latents` needs a Gaussian posterior: the model's latent has no mu and logvar{hint}.")
        found.append(moments)
        conditions.append(condition)
    mu, logvar = (torch.cat(moment).double() for moment in zip(*found, strict=True))
    check_model_finite("model", "the posterior", mu.cpu(), logvar.cpu())
    if len(mu) < 2:
        raise DataError("`data` must hold at least two images.")
    return mu, logvar, None if conditions[0] is None else torch.cat(conditions)


def _log_aggregate(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Log of the mean of N Gaussians at z, ``(B,)``, as two products; in float64, for terms that cancel are large."""
    z, mu, logvar = (values.flatten(1) for values in (z, mu, logvar))
    precision = torch.exp(-logvar)
    constant = (mu.square() * precision + logvar + math.log(2 * math.pi)).sum(1)
    squares = z.square() @ precision.T - 2 * z @ (mu * precision).T
    return torch.logsumexp(-0.5 * (squares + constant), dim=1) - math.log(len(mu))
