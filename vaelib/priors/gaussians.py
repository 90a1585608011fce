"""Gaussians with learned places and widths: one, one of each condition, or a mixture of many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaelib import functional
from vaelib._checks import check_finite, check_int, check_int_tuple, check_shape, check_tensor
from vaelib._parts import rows_of
from vaelib.priors.base import UNBOUND, Prior, check_moments

__all__ = ["ConditionalGaussian", "LearnedGaussian", "MixtureOfGaussians", "mixture_from_noise", "mixture_log_prob"]

_LOGVAR_LIMIT = 20.0


class LearnedGaussian(Prior):
    """N(mu, exp(logvar)), both learned, one pair per latent; starts as the standard normal.

    For a plain VAE whose last encoder and first decoder layers are linear it adds nothing but speed of training: those
    layers can do the same.

    Args:
        latent_shape: ``(D,)`` or ``(C, h, w)``.

    Examples:
        >>> prior = LearnedGaussian((3,))
        >>> prior.kl(torch.ones(2, 3), torch.zeros(2, 3))
        tensor([[0.5000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.5000]], grad_fn=<MulBackward0>)
    """

    def __init__(self, latent_shape: Sequence[int]) -> None:
        super().__init__()
        self.latent_shape = check_int_tuple("latent_shape", latent_shape)
        self.mu = nn.Parameter(torch.zeros(self.latent_shape))
        self.logvar = nn.Parameter(torch.zeros(self.latent_shape))

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats: ``(B, *latent_shape)`` to ``(B,)``."""
        check_tensor("z", z)
        check_shape("z", z.shape, ("B", *self.latent_shape))
        return functional.gaussian_log_prob(z, self.mu, 0.5 * _bounded(self.logvar))

    def kl(self, mu: Tensor, logvar: Tensor, z: Tensor | None = None) -> Tensor:
        """KL in nats per latent, ``(B, D)``, in closed form."""
        check_moments(mu, logvar, z)
        check_shape("mu", mu.shape, ("B", *self.latent_shape))
        return _kl(mu, logvar, self.mu, _bounded(self.logvar))

    def from_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise ``(B, D)`` to draws of z, ``(B, *latent_shape)``."""
        scale = torch.exp(0.5 * _bounded(self.logvar))
        return self.mu + scale * noise.unflatten(1, self.latent_shape)


class ConditionalGaussian(Prior):
    """p(z|c) = N(mu, exp(logvar)), both linear in the embedding of a condition; starts as the standard normal.

    Without it a conditional model has p(z) = N(0, I) whatever the condition, and z holds what that does not say.

    Args:
        latent_shape: ``(D,)`` or ``(C, h, w)``.
        condition_size: E, the size of the embedding that :meth:`given` binds.

    Raises:
        ValueError: If it is called without a condition.

    Examples:
        >>> prior = ConditionalGaussian((3,), condition_size=10)
        >>> view = prior.given(torch.eye(10)[[7, 7, 1]])
        >>> view.log_prob(torch.zeros(3, 3)).shape, view.from_noise(torch.randn(3, 3)).shape
        (torch.Size([3]), torch.Size([3, 3]))

    References:
        Sohn et al. (2015), Learning structured output representation using deep conditional generative models.
    """

    def __init__(self, latent_shape: Sequence[int], condition_size: int) -> None:
        super().__init__()
        self.latent_shape = check_int_tuple("latent_shape", latent_shape)
        self.condition_size = check_int("condition_size", condition_size)
        self.moments = nn.Linear(self.condition_size, 2 * math.prod(self.latent_shape))
        nn.init.zeros_(self.moments.weight)
        nn.init.zeros_(self.moments.bias)

    def given(self, embedding: Tensor) -> GivenGaussian:
        """The prior with the condition bound: ``(B, E)``, for batches of K * B rows, all of a draw together."""
        check_tensor("embedding", embedding)
        check_shape("embedding", embedding.shape, ("B", self.condition_size))
        return GivenGaussian(self, embedding)

    def log_prob(self, z: Tensor) -> Tensor:
        """Raise: of :meth:`given` alone."""
        raise ValueError(UNBOUND)

    def from_noise(self, noise: Tensor) -> Tensor:
        """Raise: of :meth:`given` alone."""
        raise ValueError(UNBOUND)


class GivenGaussian(NamedTuple):
    """The Gaussian of each condition of a batch."""

    prior: ConditionalGaussian
    embedding: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z|c) in nats: ``(B, *latent_shape)`` to ``(B,)``."""
        check_tensor("z", z)
        check_shape("z", z.shape, ("B", *self.prior.latent_shape))
        mu, logvar = self._moments(z.shape[0])
        return functional.gaussian_log_prob(z, mu, 0.5 * logvar)

    def kl(self, mu: Tensor, logvar: Tensor, z: Tensor | None = None) -> Tensor:
        """KL in nats per latent, ``(B, D)``, in closed form."""
        check_moments(mu, logvar, z)
        check_shape("mu", mu.shape, ("B", *self.prior.latent_shape))
        return _kl(mu, logvar, *self._moments(mu.shape[0]))

    def from_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise ``(B, D)`` to draws of z, ``(B, *latent_shape)``."""
        mu, logvar = self._moments(noise.shape[0])
        return mu + (0.5 * logvar).exp() * noise.unflatten(1, self.prior.latent_shape)

    def _moments(self, rows: int) -> tuple[Tensor, Tensor]:
        """Mean and log variance of each row, in full precision under autocast too."""
        linear = self.prior.moments
        with torch.autocast(self.embedding.device.type, enabled=False):
            moments = linear(rows_of(self.embedding, rows).to(linear.weight.dtype))
        mu, logvar = moments.unflatten(1, (2, *self.prior.latent_shape)).unbind(1)
        return mu, _bounded(logvar)


class MixtureOfGaussians(Prior):
    """K diagonal Gaussians with learned weights, means and variances.

    Starts with equal weights, means drawn from the standard normal and variances of 1.

    Args:
        latent_shape: ``(D,)`` or ``(C, h, w)``.
        num_components: K, >= 1.

    Examples:
        >>> prior = MixtureOfGaussians((2,), num_components=10)
        >>> prior.sample(4, (2,)).shape, prior.log_prob(torch.zeros(3, 2)).shape
        (torch.Size([4, 2]), torch.Size([3]))

    References:
        Dilokthanakul et al. (2016), https://arxiv.org/abs/1611.02648; a baseline in Tomczak & Welling (2018).
    """

    extra_noise = 1

    def __init__(self, latent_shape: Sequence[int], num_components: int = 50) -> None:
        super().__init__()
        self.latent_shape = check_int_tuple("latent_shape", latent_shape)
        self.num_components = check_int("num_components", num_components)
        self.logits = nn.Parameter(torch.zeros(self.num_components))
        self.mu = nn.Parameter(torch.randn(self.num_components, *self.latent_shape))
        self.logvar = nn.Parameter(torch.zeros(self.num_components, *self.latent_shape))

    def start_from(self, z: Tensor) -> MixtureOfGaussians:
        """Let the means be latents, ``(K, *latent_shape)``, such as codes of images, with their variance; K >= 2."""
        check_tensor("z", z)
        check_shape("z", z.shape, (check_int("num_components", self.num_components, 2), *self.latent_shape))
        check_finite("z", z)
        with torch.no_grad():
            self.mu.copy_(z)
            self.logvar.copy_(z.var(0).clamp(min=1e-6).log())
        return self

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats: ``(B, *latent_shape)`` to ``(B,)``."""
        check_tensor("z", z)
        check_shape("z", z.shape, ("B", *self.latent_shape))
        return mixture_log_prob(z, self.logits.log_softmax(0), self.mu, _bounded(self.logvar))

    def from_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise ``(B, D + 1)`` to draws of z, ``(B, *latent_shape)``; the last chooses a component."""
        return mixture_from_noise(noise, self.logits.softmax(0), self.mu, _bounded(self.logvar))


def _bounded(logvar: Tensor) -> Tensor:
    return functional.soft_bound(logvar, _LOGVAR_LIMIT)


def _kl(mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor) -> Tensor:
    """KL of a diagonal Gaussian to another, per latent: that to the standard normal in units of the other."""
    scaled = (mu - prior_mu) * (-0.5 * prior_logvar).exp()
    return functional.kl_standard_normal(scaled, logvar - prior_logvar, per_latent=True)


def mixture_log_prob(z: Tensor, log_weights: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Log density of a mixture of diagonal Gaussians, in nats.

    Args:
        z: ``(B, *latent_shape)``.
        log_weights: ``(K,)``, of which the exponentials sum to one.
        mu: ``(K, *latent_shape)``.
        logvar: The same.

    Returns:
        Shape ``(B,)``.
    """
    scaled = (z[:, None] - mu) * torch.exp(-0.5 * logvar)
    squares = (scaled.square() + logvar + math.log(2 * math.pi)).flatten(2).sum(2)
    return torch.logsumexp(log_weights - 0.5 * squares, dim=1)


def mixture_from_noise(noise: Tensor, weights: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Draws of such a mixture, ``(B, *latent_shape)``, from standard normal noise ``(B, D + 1)``.

    The last column chooses the component, by its quantile.
    """
    quantile = torch.special.ndtr(noise[:, -1:])
    chosen = (quantile > weights.cumsum(0)[:-1]).sum(1)
    eps = noise[:, :-1].unflatten(1, mu.shape[1:])
    return mu.index_select(0, chosen) + (0.5 * logvar.index_select(0, chosen)).exp() * eps
