"""One point per image: the latent of an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vaelib._checks import check_int_tuple
from vaelib._parts import check_code
from vaelib.latents.base import Draw

__all__ = ["PointLatent"]


class PointLatent(nn.Module):
    """z is what the encoder returns, the first of a tuple: no posterior, no prior, no nats.

    ``vl.AutoEncoder(...)`` is a :class:`VAE` with this latent.

    Args:
        latent_shape: ``(D,)`` or ``(C, h, w)``.

    Examples:
        >>> import torch
        >>> PointLatent((2,)).draw(torch.ones(3, 2), torch.empty(3, 0)).kl.shape
        torch.Size([3, 0])
    """

    has_prior = False
    num_heads = 1
    noise_size = 0
    prior_noise_size = 0

    def __init__(self, latent_shape: Sequence[int]) -> None:
        super().__init__()
        self.latent_shape = check_int_tuple("latent_shape", latent_shape)

    def draw(self, features: Any, noise: Tensor) -> Draw:
        """The point, without nats."""
        z = self.point(features)
        nothing = z.new_zeros(z.shape[0])
        return Draw(z, z, z.new_zeros(z.shape[0], 0), nothing, nothing)

    def point(self, features: Any) -> Tensor:
        """``features``, of a tuple the first."""
        return check_code(features, self.latent_shape)

    def encoded(self, features: Any) -> Tensor:
        """The same."""
        return self.point(features)

    def from_noise(self, noise: Tensor) -> Tensor:
        """Raise: there is no p(z).

        Raises:
            ValueError: Always.
        """
        raise ValueError("An autoencoder has no prior to sample: fit one to its codes, see `vl.fit_prior`.")

    def log_prob(self, z: Tensor) -> Tensor:
        """Raise: there is no p(z).

        Raises:
            ValueError: Always.
        """
        raise ValueError("An autoencoder has no prior: fit one to its codes, see `vl.fit_prior`.")

    def hidden(self, z: Tensor) -> Tensor:
        """``z`` itself."""
        return z
