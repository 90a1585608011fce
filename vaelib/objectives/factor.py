"""Total correlation by a discriminator: FactorVAE."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaelib._checks import (
    check_batch,
    check_float,
    check_generator,
    check_has_prior,
    check_int,
    check_int_tuple,
    check_shape,
)
from vaelib.functional.draws import uniform
from vaelib.objectives.bound import bound_loss, may_have_penalty, one_draw, penalised
from vaelib.objectives.frozen import frozen

__all__ = ["FactorLoss", "FactorTerms", "permute_latents"]


@may_have_penalty
class FactorTerms(NamedTuple):
    """The terms of :class:`FactorLoss`, in nats."""

    loss: Tensor
    """A scalar: the batch mean of ``reconstruction + kl + gamma * total_correlation``. Its gradient also moves the
    discriminator, down the mean of ``discriminator``."""
    reconstruction: Tensor
    """-log p(x|z) per image, shape ``(B,)``."""
    kl: Tensor
    """KL(q(z|x) to p(z)) per image, shape ``(B,)``."""
    total_correlation: Tensor
    """The discriminator's log q(z) - sum_j log q(z_j) per image, shape ``(B,)``; only its mean means something."""
    discriminator: Tensor
    """The discriminator's cross-entropy per image, shape ``(B,)``: ln 2 where it can tell nothing."""


def permute_latents(z: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Each latent shuffled over the batch by itself: draws of the product of the marginals.

    Args:
        z: Shape ``(B, D)``.
        generator: Source of the order, of any device; torch's global one if None.

    Returns:
        The same shape.

    Examples:
        >>> z = torch.arange(6.0).view(3, 2)
        >>> permute_latents(z).sort(0).values.equal(z)
        True

    References:
        Kim & Mnih (2018), Disentangling by Factorising, algorithm 1. https://arxiv.org/abs/1802.05983
    """
    check_batch("z", z)
    check_shape("z", z.shape, ("B", "D"))
    check_generator(generator)
    return z.gather(0, uniform(z.shape, z, generator).argsort(0))


class FactorLoss(nn.Module):
    """The ELBO of a :class:`VAE` and ``gamma`` times the total correlation that a discriminator sees.

    A module, for it has weights: a discriminator between z and latents shuffled over the batch. Its logit is an
    estimate of log q(z) - sum_j log q(z_j). One backward pass gives each network the gradient of its own loss: the
    model that of ``loss``, in which the discriminator is held fixed; the discriminator that of its cross-entropy.

    A :class:`Trainer` moves, keeps and resumes the discriminator with the model, at the model's learning rate. A loop
    of your own gives the optimiser both: ``Adam([*model.parameters(), *objective.parameters()])``.

    Args:
        latent_dim: D; of a latent map, all its latents.
        gamma: Weight of the total correlation, >= 0.
        hidden_features: Widths of the discriminator's layers.

    Raises:
        ValueError: If an argument is out of its range, or the model has not ``latent_dim`` latents.

    Examples:
        >>> import vaelib as vl
        >>> objective = FactorLoss(2, gamma=10.0, hidden_features=(64, 64))
        >>> objective(vl.conv_vae((1, 8, 8), 2), torch.rand(4, 1, 8, 8)).total_correlation.shape
        torch.Size([4])

    References:
        Kim & Mnih (2018), equations 2 and 3, algorithm 2 (here with one batch for both networks).
        https://arxiv.org/abs/1802.05983
    """

    def __init__(self, latent_dim: int, *, gamma: float = 10.0, hidden_features: Sequence[int] = (1000,) * 6) -> None:
        super().__init__()
        self.latent_dim = check_int("latent_dim", latent_dim)
        self.gamma = check_float("gamma", gamma, 0.0)
        self.hidden_features = check_int_tuple("hidden_features", hidden_features)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((self.latent_dim, *self.hidden_features)):
            layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
        self.discriminator = nn.Sequential(*layers, nn.Linear((self.latent_dim, *self.hidden_features)[-1], 1))

    def forward(self, model: Any, x: Tensor, *, step: int = 0, generator: torch.Generator | None = None) -> Any:
        """:class:`FactorTerms` of one batch."""
        check_has_prior("FactorLoss", model)
        recon_params, draw = one_draw(model, x, generator)
        elbo = bound_loss(-model.likelihood.log_prob(x, recon_params), draw.kl)
        z = draw.z.flatten(1)
        if z.shape[1] != self.latent_dim:
            raise ValueError(f"`latent_dim` must be {z.shape[1]}, all latents of the model, got {self.latent_dim}.")
        with frozen(self.discriminator):
            total_correlation = self._log_ratio(z)
        z = z.detach()
        shuffled = permute_latents(z, generator=generator)
        discriminator = 0.5 * (F.softplus(-self._log_ratio(z)) + F.softplus(self._log_ratio(shuffled)))
        only_its_gradient = (discriminator - discriminator.detach()).mean()
        loss = elbo.loss + self.gamma * total_correlation.mean() + only_its_gradient
        terms = FactorTerms(loss, elbo.reconstruction, elbo.kl, total_correlation, discriminator)
        return penalised(terms, draw.penalty)

    def _log_ratio(self, z: Tensor) -> Tensor:
        return self.discriminator(z).to(z.dtype)[:, 0]
