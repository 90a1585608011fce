"""Total correlation: by the densities of a batch (beta-TC-VAE), and by a discriminator (FactorVAE)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaelib._checks import (
    check_batch,
    check_choice,
    check_float,
    check_generator,
    check_has_prior,
    check_int,
    check_int_tuple,
    check_module,
    check_one_device,
    check_shape,
    check_tensor,
)
from vaelib.functional.draws import uniform
from vaelib.objectives.bound import bound_loss, frozen, gaussian_of, may_have_penalty, one_draw, penalised
from vaelib.priors import Prior, StandardNormal
from vaelib.schedules import Schedule, as_schedule

__all__ = ["BetaTcLoss", "BetaTcTerms", "FactorLoss", "FactorTerms", "KlSplit", "kl_split", "permute_latents"]

_ESTIMATORS = ("stratified", "weighted")


class KlSplit(NamedTuple):
    """The parts of log q(z|x) - log p(z), in nats per image, ``(B,)``; only means over images mean something."""

    mutual_information: Tensor
    """log q(z|x) - log q(z): what the latents tell about which image it was."""
    total_correlation: Tensor
    """log q(z) - sum_j log q(z_j): what the latents tell about each other."""
    dimension_wise_kl: Tensor
    """sum_j log q(z_j) - log p(z): how far each latent by itself is from the prior."""


@may_have_penalty
class BetaTcTerms(NamedTuple):
    """The terms of :class:`BetaTcLoss`, in nats."""

    loss: Tensor
    """What is minimised, a scalar."""
    reconstruction: Tensor
    """-log p(x|z) per image, shape ``(B,)``."""
    kl: Tensor
    """log q(z|x) - log p(z) per image, the sum of the three parts, unweighted, shape ``(B,)``."""
    mutual_information: Tensor
    """As in :class:`KlSplit`, shape ``(B,)``."""
    total_correlation: Tensor
    """The same."""
    dimension_wise_kl: Tensor
    """The same."""


def kl_split(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    *,
    num_images: int,
    prior: Prior | None = None,
    estimator: str = "stratified",
) -> KlSplit:
    r"""Index-code mutual information, total correlation and dimension-wise KL, from one batch.

    The density of the aggregate posterior :math:`q(z) = \frac{1}{N} \sum_n q(z \mid x_n)` is estimated from the batch:

    - ``"stratified"``: the image that ``z`` is of weighs 1 / N, and the others share the rest, which estimates q(z)
      without bias. Published with one of the others, chosen by chance, weighing more: this is the mean over choices.
    - ``"weighted"``: every image weighs 1 / (N B), which makes q(z) too small.

    Both are used under a logarithm, and only a batch of all images gives (with ``"stratified"``) the exact parts. Their
    sum is log q(z|x) - log p(z) whatever the estimate. Needs B^2 D numbers.

    Args:
        z: A draw of each posterior, shape ``(B, *latent_shape)``.
        mu: Posterior means, the same shape.
        logvar: Posterior log variances, the same shape.
        num_images: N, of the data set; a batch that is larger counts as the data set.
        prior: p(z); :class:`StandardNormal` if None. Of one that couples latents, such as a mixture or a flow, all of
            log p(z) is in the third part, whose mean is then no longer a sum of KLs, nor at least zero.
        estimator: ``"stratified"`` or ``"weighted"``.

    Returns:
        A :class:`KlSplit`.

    Raises:
        ValueError: If shapes disagree or an argument is out of its range.

    Examples:
        >>> z = torch.zeros(4, 3)  # all posteriors are the prior
        >>> split = kl_split(z, torch.zeros(4, 3), torch.zeros(4, 3), num_images=4)
        >>> [round(part.abs().max().item(), 4) for part in split]
        [0.0, 0.0, 0.0]

    References:
        Chen et al. (2018), Isolating sources of disentanglement in VAEs, equation 2 and appendix C.
        https://arxiv.org/abs/1802.04942
    """
    check_int("num_images", num_images)
    check_choice("estimator", estimator, _ESTIMATORS)
    if isinstance(prior, type) or not callable(getattr(prior, "log_prob", None)):  # one with a condition bound has it
        check_module("prior", prior, "log_prob", optional=True)
    check_batch("z", z)
    for name, values in (("mu", mu), ("logvar", logvar)):
        check_tensor(name, values, z.shape)
        check_one_device(**{"z": z, name: values})
    log_p = (prior or StandardNormal()).log_prob(z)
    z, mu, logvar = (values.flatten(1) for values in (z, mu, logvar))
    distance = (z[:, None] - mu).square() * torch.exp(-logvar)
    log_q_each = -0.5 * (distance + logvar + math.log(2 * math.pi))  # of latent j of draw i under posterior k
    log_weights = _log_weights(len(z), num_images, estimator, z)
    log_q_given_x = log_q_each.diagonal().sum(0)
    log_q = (log_q_each.sum(2) + log_weights).logsumexp(1)
    log_q_product = (log_q_each + log_weights[:, :, None]).logsumexp(1).sum(1)
    return KlSplit(log_q_given_x - log_q, log_q - log_q_product, log_q_product - log_p)


def _log_weights(batch: int, num_images: int, estimator: str, like: Tensor) -> Tensor:
    """Of each posterior of a batch in the density of each draw, ``(B, B)``."""
    total = max(num_images, batch)
    if estimator == "weighted" or batch == 1:
        return like.new_full((batch, batch), -math.log(total * batch))
    weights = like.new_full((batch, batch), (total - 1) / (total * (batch - 1)))
    return weights.fill_diagonal_(1 / total).log()


class BetaTcLoss:
    """The ELBO of a :class:`VAE` with a weight for each part of its KL; see :func:`kl_split`.

    With all weights 1 it is the ELBO, with a KL estimated from one draw. Both B and N enter the estimates, so compare
    runs of the same batch size only.

    Args:
        num_images: N, of the training set.
        beta: Weight of the total correlation: a number >= 0 or a schedule ``step -> float``.
        alpha: Weight of the mutual information, >= 0.
        gamma: Weight of the dimension-wise KL, >= 0.
        estimator: ``"stratified"`` or ``"weighted"``.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> import vaelib as vl
        >>> terms = BetaTcLoss(60_000, beta=6.0)(vl.conv_vae((1, 8, 8), 2), torch.rand(4, 1, 8, 8))
        >>> terms.total_correlation.shape
        torch.Size([4])

    References:
        Chen et al. (2018), equation 4. https://arxiv.org/abs/1802.04942
    """

    def __init__(
        self,
        num_images: int,
        *,
        beta: float | Schedule = 6.0,
        alpha: float = 1.0,
        gamma: float = 1.0,
        estimator: str = "stratified",
    ) -> None:
        self.num_images = check_int("num_images", num_images)
        self.beta = as_schedule("beta", beta)
        self.alpha = check_float("alpha", alpha, 0.0)
        self.gamma = check_float("gamma", gamma, 0.0)
        check_choice("estimator", estimator, _ESTIMATORS)
        self.estimator = estimator

    def __call__(self, model: Any, x: Tensor, *, step: int = 0, generator: torch.Generator | None = None) -> Any:
        """:class:`BetaTcTerms` of one batch; ``step`` drives the schedule of ``beta``."""
        check_has_prior("BetaTcLoss", model)
        recon_params, draw = one_draw(model, x, generator)
        mu, logvar = gaussian_of("BetaTcLoss", draw)
        reconstruction = -model.likelihood.log_prob(x, recon_params)
        split = kl_split(draw.z, mu, logvar, num_images=self.num_images, prior=model.prior, estimator=self.estimator)
        information, correlation, by_latent = split
        beta = check_float("beta", self.beta(step), 0.0)
        cost = self.alpha * information + beta * correlation + self.gamma * by_latent
        kl = information + correlation + by_latent
        terms = BetaTcTerms((reconstruction + cost).mean(), reconstruction, kl, *split)
        return penalised(terms, draw.penalty)


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
