"""Latents without correlation, by their moments: DIP-VAE."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaelib._checks import check_batch, check_choice, check_float, check_has_prior
from vaelib.objectives.bound import bound_loss, gaussian_of, one_draw
from vaelib.priors.base import check_moments

__all__ = ["DipLoss", "DipTerms", "dip_penalty"]


class DipTerms(NamedTuple):
    """The terms of :class:`DipLoss`."""

    loss: Tensor
    """What is minimised, a scalar: the batch mean of ``reconstruction + kl + penalty``."""
    reconstruction: Tensor
    """-log p(x|z) per image in nats, shape ``(B,)``."""
    kl: Tensor
    """KL(q(z|x) to p(z)) per image in nats, shape ``(B,)``."""
    penalty: Tensor
    """:func:`dip_penalty`, one number of the batch, repeated to shape ``(B,)``."""


def dip_penalty(mu: Tensor, logvar: Tensor | None = None, *, lambda_od: float, lambda_d: float) -> Tensor:
    r"""How far the covariance of the latents is from the identity; no nats, but weighed against them.

    .. math:: \lambda_{od} \sum_{i \ne j} \mathrm{Cov}_{ij}^2 + \lambda_d \sum_i (\mathrm{Cov}_{ii} - 1)^2

    Args:
        mu: Posterior means, shape ``(B, *latent_shape)``. Their covariance over the batch (divided by B) counts.
        logvar: Posterior log variances, the same shape, for the covariance of z instead, which has their mean more.
        lambda_od: Weight of what is off the diagonal.
        lambda_d: Weight of the diagonal.

    Returns:
        A scalar.

    Raises:
        ValueError: If shapes disagree.

    Examples:
        >>> mu = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])  # variances and covariance 1
        >>> dip_penalty(mu, lambda_od=10.0, lambda_d=100.0)
        tensor(20.)

    References:
        Kumar et al. (2018), equations 6 and 7. https://arxiv.org/abs/1711.00848
    """
    check_batch("mu", mu)
    lambda_od = check_float("lambda_od", lambda_od, 0.0)
    lambda_d = check_float("lambda_d", lambda_d, 0.0)
    centred = (mu - mu.mean(0)).flatten(1)
    covariance = centred.T @ centred / len(mu)
    if logvar is not None:
        check_moments(mu, logvar)
        covariance = covariance + logvar.exp().flatten(1).mean(0).diag()
    diagonal = covariance.diagonal()
    off_diagonal = covariance - diagonal.diag()
    return lambda_od * off_diagonal.square().sum() + lambda_d * (diagonal - 1).square().sum()


class DipLoss:
    """The ELBO of a :class:`VAE` and a price for latents that are correlated or not of variance 1.

    Args:
        lambda_od: Weight of covariances, >= 0.
        lambda_d: Weight of variances, >= 0. Published: 10 times ``lambda_od`` for I, the same for II.
        kind: ``"i"`` looks at the posterior means, ``"ii"`` at z.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> import vaelib as vl
        >>> objective = DipLoss(lambda_od=10.0, lambda_d=10.0, kind="ii")
        >>> objective(vl.conv_vae((1, 8, 8), 2), torch.rand(4, 1, 8, 8)).penalty.shape
        torch.Size([4])

    References:
        Kumar et al. (2018), Variational inference of disentangled latent concepts from unlabeled observations.
        https://arxiv.org/abs/1711.00848
    """

    def __init__(self, lambda_od: float = 10.0, lambda_d: float = 100.0, *, kind: str = "i") -> None:
        self.lambda_od = check_float("lambda_od", lambda_od, 0.0)
        self.lambda_d = check_float("lambda_d", lambda_d, 0.0)
        check_choice("kind", kind, ("i", "ii"))
        self.kind = kind

    def __call__(self, model: Any, x: Tensor, *, step: int = 0, generator: torch.Generator | None = None) -> DipTerms:
        """Terms of one batch."""
        check_has_prior("DipLoss", model)
        recon_params, draw = one_draw(model, x, generator)
        mu, logvar = gaussian_of("DipLoss", draw)
        elbo = bound_loss(-model.likelihood.log_prob(x, recon_params), draw.kl)
        penalty = dip_penalty(
            mu, logvar if self.kind == "ii" else None, lambda_od=self.lambda_od, lambda_d=self.lambda_d
        )
        own = 0.0 if draw.penalty is None else draw.penalty.mean()
        return DipTerms(elbo.loss + penalty + own, elbo.reconstruction, elbo.kl, penalty.expand(len(x)))
