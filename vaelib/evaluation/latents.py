"""What the latents of a trained model carry, and how much of the KL is information."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaelib._checks import DataError
from vaelib.evaluation.bound import BatchSource, Estimate, as_batches
from vaelib.functional import gaussian_log_prob, reparameterize
from vaelib.posteriors import check_gaussian
from vaelib.vae import VAE, eval_mode

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
    """KL of each latent's posterior to N(0, 1), the mean over images, ``(D,)``."""
    kl: Estimate
    """KL(q(z|x) to p(z)), with one draw an image: mutual information plus marginal KL."""
    mutual_information: Estimate
    """I(x; z) under q; at most log N, where it says no more than that all images are told apart."""
    marginal_kl: Estimate
    """KL(q(z) to p(z)): what a better prior could save."""
    num_images: int

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
        said.append(
            f"z carries {information:.1f} nats about the image"
            + (f", near the {most:.1f} that {self.num_images} images can show" if most - information < 1 else "")
        )
        said.append(
            f"{self.marginal_kl.value:.1f} nats of the KL pay for a prior that the posteriors together do not match"
        )
        return "; ".join(said) + "."


def latents(
    model: VAE,
    data: Tensor | BatchSource | Iterable[Any],
    *,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> LatentReport:
    """Look at every latent over a data set, and split its KL as E KL(q(z|x) to p(z)) = I(x; z) + KL(q(z) to p(z)).

    q(z), the mean of all posteriors, is evaluated exactly over the N images, of which each has one draw: N^2 D
    operations.

    Args:
        model: A VAE with any prior.
        data: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches; N >= 2.
        batch_size: Of the encoder.
        generator: Of the draws, on the model's device.

    Returns:
        A :class:`LatentReport`, on the CPU.

    Raises:
        DataError: A ``ValueError``: if there are fewer than two images.
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
    if not isinstance(model, VAE):
        raise TypeError(f"`model` must be a VAE, got {type(model).__name__}.")
    check_gaussian("latents", model)
    device = next(model.parameters(), torch.empty(0)).device
    if isinstance(data, BatchSource):
        data = data.to(device)
    with eval_mode(model):
        codes = [model.encode(images.to(device)) for images in as_batches(data, batch_size, generator=generator)]
        if sum(len(mu) for mu, _ in codes) < 2:
            raise DataError("`data` must hold at least two images.")
        mu, logvar = (torch.cat(column).double() for column in zip(*codes, strict=True))
        z = reparameterize(mu, logvar, generator=generator)
        log_q = gaussian_log_prob(z, mu, 0.5 * logvar).cpu()
        marginal = torch.cat([_log_aggregate(part, mu, logvar) for part in z.split(_AT_A_TIME)]).cpu()
        parameter = next(model.parameters(), z)
        log_p = torch.cat([model.prior.log_prob(part) for part in z.to(parameter.dtype).split(_AT_A_TIME)]).cpu()
    variance = mu.flatten(1).var(0).cpu()
    per_latent = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).flatten(1).mean(0).cpu()
    return LatentReport(
        active_units=int((variance > ACTIVE).sum()),
        variance_of_mu=variance,
        kl_per_latent=per_latent,
        kl=Estimate.of(log_q - log_p),
        mutual_information=Estimate.of(log_q - marginal),
        marginal_kl=Estimate.of(marginal - log_p),
        num_images=len(mu),
    )


def _log_aggregate(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Log of the mean of N Gaussians at z, ``(B,)``, as two products; in float64, for terms that cancel are large."""
    z, mu, logvar = (values.flatten(1) for values in (z, mu, logvar))
    precision = torch.exp(-logvar)
    constant = (mu.square() * precision + logvar + math.log(2 * math.pi)).sum(1)
    squares = z.square() @ precision.T - 2 * z @ (mu * precision).T
    return torch.logsumexp(-0.5 * (squares + constant), dim=1) - math.log(len(mu))
