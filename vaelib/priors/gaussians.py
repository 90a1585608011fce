"""What a prior is, and Gaussians: the standard normal, a learned one, and one of each condition."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vaelib import functional
from vaelib._checks import (
    check_batch,
    check_draws,
    check_int,
    check_int_tuple,
    check_one_device,
    check_shape,
    check_tensor,
)
from vaelib._parts import rows_of
from vaelib.functional.draws import normal

__all__ = ["UNBOUND", "ConditionalGaussian", "LearnedGaussian", "Prior", "StandardNormal", "bounded", "check_moments"]

UNBOUND = "`prior` has a condition: call its given(embedding), or the model's given(condition)."
_LOGVAR_LIMIT = 20.0


class Prior(nn.Module):
    """p(z), as a function of standard normal noise: what can be sampled, trained and written as an ONNX graph.

    A prior of your own has ``log_prob`` and ``from_noise``, and, where the KL of a diagonal Gaussian to it has a closed
    form, ``kl(mu, logvar, z=None)``; elsewhere the KL is estimated as ``log q(z|x) - log p(z)``.

    Examples:
        >>> class Wide(Prior):  # N(0, 4 I)
        ...     def log_prob(self, z):
        ...         return functional.gaussian_log_prob(z, torch.zeros_like(z), torch.full_like(z, math.log(2.0)))
        ...
        ...     def from_noise(self, noise):
        ...         return 2 * noise
        >>> Wide().sample(3, (2,)).shape
        torch.Size([3, 2])

    References:
        Kingma & Welling (2014), Auto-Encoding Variational Bayes. https://arxiv.org/abs/1312.6114
    """

    extra_noise = 0
    """How many normal numbers it needs beyond one a latent."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats: ``(B, *latent_shape)`` to ``(B,)``."""
        raise NotImplementedError

    def from_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise ``(B, D + extra_noise)`` to draws of z, ``(B, *latent_shape)``."""
        raise NotImplementedError

    def sample(
        self,
        num_samples: int,
        latent_shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draws of z, shape ``(num_samples, *latent_shape)``."""
        shape = check_draws(num_samples, latent_shape, generator, device)
        if getattr(self, "latent_shape", shape) != shape:
            raise ValueError(f"`latent_shape` must be {self.latent_shape}, got {shape}.")
        like = next(self.parameters(), torch.empty(0, device=device))
        size = (num_samples, math.prod(shape) + self.extra_noise)
        return self.from_noise(normal(size, like, generator)).reshape(num_samples, *shape).to(device)


def check_moments(mu: Tensor, logvar: Tensor, z: Tensor | None = None) -> None:
    """Raise unless ``mu`` is ``(B, ...)`` and the others, ``z`` if it is given, have its shape and device."""
    check_batch("mu", mu)
    others = {"logvar": logvar} if z is None else {"logvar": logvar, "z": z}
    for name, values in others.items():
        check_tensor(name, values, mu.shape)
        check_one_device(**{"mu": mu, name: values})


class StandardNormal(Prior):
    """N(0, I) over a latent vector or map of any shape.

    Examples:
        >>> prior = StandardNormal()
        >>> prior.log_prob(torch.zeros(1, 2))  # -ln(2 pi)
        tensor([-1.8379])
        >>> prior.sample(4, (8, 2, 2)).shape
        torch.Size([4, 8, 2, 2])
    """

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats: ``(B, *latent_shape)`` to ``(B,)``."""
        check_batch("z", z)
        return functional.sum_per_image(-0.5 * (z.square() + math.log(2 * math.pi)))

    def kl(self, mu: Tensor, logvar: Tensor, z: Tensor | None = None) -> Tensor:
        """KL in nats per latent, ``(B, D)``, in closed form; ``z`` is not needed."""
        check_moments(mu, logvar, z)
        return functional.kl_standard_normal(mu, logvar, per_latent=True)

    def from_noise(self, noise: Tensor) -> Tensor:
        """The noise itself, which is a draw."""
        return noise


class _Diagonal:
    """Abstract: a Gaussian of independent latents, one for all images or one for each condition."""

    latent_shape: tuple[int, ...]

    def _moments(self, rows: int) -> tuple[Tensor, Tensor]:
        """Mean and log variance, of each row or of all."""
        raise NotImplementedError

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats: ``(B, *latent_shape)`` to ``(B,)``."""
        check_tensor("z", z, ("B", *self.latent_shape))
        mu, logvar = self._moments(z.shape[0])
        return functional.gaussian_log_prob(z, mu, 0.5 * logvar)

    def kl(self, mu: Tensor, logvar: Tensor, z: Tensor | None = None) -> Tensor:
        """KL in nats per latent, ``(B, D)``, in closed form."""
        check_moments(mu, logvar, z)
        check_shape("mu", mu.shape, ("B", *self.latent_shape))
        # That to the standard normal, in units of the other.
        prior_mu, prior_logvar = self._moments(mu.shape[0])
        scaled = (mu - prior_mu) * (-0.5 * prior_logvar).exp()
        return functional.kl_standard_normal(scaled, logvar - prior_logvar, per_latent=True)

    def from_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise ``(B, D)`` to draws of z, ``(B, *latent_shape)``."""
        mu, logvar = self._moments(noise.shape[0])
        return mu + (0.5 * logvar).exp() * noise.unflatten(1, self.latent_shape)


class LearnedGaussian(_Diagonal, Prior):
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

    def _moments(self, rows: int) -> tuple[Tensor, Tensor]:
        return self.mu, bounded(self.logvar)


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
        check_tensor("embedding", embedding, ("B", self.condition_size))
        return GivenGaussian(self, embedding)

    def log_prob(self, z: Tensor) -> Tensor:
        """Raise: of :meth:`given` alone."""
        raise ValueError(UNBOUND)

    def from_noise(self, noise: Tensor) -> Tensor:
        """Raise: of :meth:`given` alone."""
        raise ValueError(UNBOUND)


class GivenGaussian(_Diagonal):
    """The Gaussian of each condition of a batch."""

    def __init__(self, prior: ConditionalGaussian, embedding: Tensor) -> None:
        self.prior, self.embedding, self.latent_shape = prior, embedding, prior.latent_shape

    def _moments(self, rows: int) -> tuple[Tensor, Tensor]:
        """In full precision under autocast too."""
        linear = self.prior.moments
        with torch.autocast(self.embedding.device.type, enabled=False):
            moments = linear(rows_of(self.embedding, rows).to(linear.weight.dtype))
        mu, logvar = moments.unflatten(1, (2, *self.latent_shape)).unbind(1)
        return mu, bounded(logvar)


def bounded(logvar: Tensor) -> Tensor:
    """Log variances of a prior, of which ``exp`` neither overflows nor vanishes."""
    return functional.soft_bound(logvar, _LOGVAR_LIMIT)
