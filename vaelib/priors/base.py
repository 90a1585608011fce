"""What a prior is, and the one that needs nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vaelib import functional
from vaelib._checks import check_batch, check_draws, check_one_device, check_shape, check_tensor
from vaelib.functional.draws import normal

__all__ = ["UNBOUND", "Prior", "StandardNormal", "check_moments"]

UNBOUND = "`prior` has a condition: call its given(embedding), or the model's given(condition)."


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
        check_tensor(name, values)
        check_shape(name, values.shape, mu.shape)
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
