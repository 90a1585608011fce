"""What a prior is, and the one that needs nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vaelib import functional
from vaelib._checks import check_batch, check_draws, check_one_device, check_shape, check_tensor
from vaelib.functional.draws import normal, source

__all__ = ["Prior", "PriorFromNoise", "StandardNormal"]


@runtime_checkable
class Prior(Protocol):
    """What ``VAE`` and the objectives ask of p(z)."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats, shape ``(B,)``."""

    def kl(self, mu: Tensor, logvar: Tensor, z: Tensor | None = None) -> Tensor:
        """KL(q(z|x) to p(z)) in nats: ``(B, D)`` where it splits over latents, else ``(B, 1)``."""

    def sample(
        self,
        num_samples: int,
        latent_shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draws of z, shape ``(num_samples, *latent_shape)``; ``generator`` may be of another device."""


class PriorFromNoise(nn.Module):
    """A prior that is a function of standard normal noise, which is what can become an ONNX graph."""

    extra_noise = 0
    """How many normal numbers it needs beyond one a latent."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats: ``(B, *latent_shape)`` to ``(B,)``."""
        raise NotImplementedError

    def from_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise ``(B, D + extra_noise)`` to draws of z, ``(B, *latent_shape)``."""
        raise NotImplementedError

    def kl(self, mu: Tensor, logvar: Tensor, z: Tensor | None = None) -> Tensor:
        """Log q(z|x) - log p(z) of the draw ``z``, in nats, ``(B, 1)``: of the KL, an unbiased estimate.

        Raises:
            ValueError: If the draw is missing.
        """
        if z is None:
            raise ValueError(f"`z` must be given: the KL to {type(self).__name__} has no closed form.")
        check_moments(mu, logvar, z)
        return (functional.gaussian_log_prob(z, mu, 0.5 * logvar) - self.log_prob(z))[:, None]

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
        weights = next(self.parameters())
        shape = (num_samples, math.prod(latent_shape) + self.extra_noise)
        return self.from_noise(normal(shape, weights, generator)).to(device)


def check_moments(mu: Tensor, logvar: Tensor, z: Tensor | None = None) -> None:
    """Raise unless ``mu`` is ``(B, ...)`` and the others, ``z`` if it is given, have its shape and device."""
    check_batch("mu", mu)
    others = {"logvar": logvar} if z is None else {"logvar": logvar, "z": z}
    for name, values in others.items():
        check_tensor(name, values)
        check_shape(name, values.shape, mu.shape)
        check_one_device(**{"mu": mu, name: values})


class StandardNormal(nn.Module):
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

    def sample(
        self,
        num_samples: int,
        latent_shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draws of z, shape ``(num_samples, *latent_shape)``."""
        check_draws(num_samples, latent_shape, generator, device)
        place = device if generator is None else generator.device
        return torch.randn((num_samples, *latent_shape), device=place, **source(generator)).to(device)
