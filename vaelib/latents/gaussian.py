"""A diagonal Gaussian posterior, bent by a flow if there is one, and any prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vaelib._checks import check_int_tuple, check_shape, check_tensor
from vaelib._parts import agreed_shape, check_modules, check_posterior
from vaelib.functional import gaussian_log_prob
from vaelib.latents.base import BoundLatent, Draw
from vaelib.priors import Prior, StandardNormal

__all__ = ["GaussianLatent"]


class GaussianLatent(nn.Module):
    """q(z|x) = N(mu, exp(logvar)), of which the encoder gives ``(mu, logvar)``, and p(z).

    ``vl.VAE(encoder, decoder, prior=...)`` is the short form of ``latent=GaussianLatent(latent_shape, prior=...)``.

    Args:
        latent_shape: ``(D,)`` or ``(C, h, w)``.
        prior: p(z); :class:`StandardNormal` if None.
        posterior: What bends the Gaussian, such as :class:`FlowPosterior`; nothing if None.

    Raises:
        ValueError: If the parts disagree about the shape of the latent.
        TypeError: If a part is no module, or lacks a method.

    Examples:
        >>> import torch
        >>> latent = GaussianLatent((3,))
        >>> draw = latent.draw((torch.zeros(2, 3), torch.zeros(2, 3)), torch.ones(2, 3))
        >>> draw.z[0], draw.kl.sum(1)
        (tensor([1., 1., 1.]), tensor([0., 0.]))

    References:
        Kingma & Welling (2014), Auto-Encoding Variational Bayes, section 2.4. https://arxiv.org/abs/1312.6114
    """

    has_prior = True
    num_heads = 2

    def __init__(
        self, latent_shape: Sequence[int], prior: Prior | None = None, posterior: nn.Module | None = None
    ) -> None:
        super().__init__()
        check_modules(prior=prior, posterior=posterior)
        shape = check_int_tuple("latent_shape", latent_shape)
        self.latent_shape = agreed_shape("latent_shape", shape, prior=prior, posterior=posterior)
        self.prior: Any = StandardNormal() if prior is None else prior
        self.posterior = posterior

    @property
    def noise_size(self) -> int:
        """Standard normal numbers per image that :meth:`draw` needs: one a latent."""
        return math.prod(self.latent_shape)

    @property
    def prior_noise_size(self) -> int:
        """Standard normal numbers per image that :meth:`from_noise` needs."""
        return self.noise_size + int(getattr(self.prior, "extra_noise", 0))

    def draw(self, features: Any, noise: Tensor, *, prior: Any = None) -> Draw:
        """``z = mu + exp(logvar / 2) * noise``, through the flow if there is one, with its nats.

        ``mu`` and ``logvar`` of the :class:`Draw` are None with a flow, whose posterior they do not describe. ``prior``
        takes the place of the latent's own.
        """
        prior = self.prior if prior is None else prior
        mu, logvar = check_posterior(features, self.latent_shape)
        z = mu + (0.5 * logvar).exp() * noise.reshape(mu.shape)
        log_q = gaussian_log_prob(z, mu, 0.5 * logvar)
        if self.posterior is not None:
            z, log_det = self.posterior(z, mu, logvar)
            log_q = log_q - log_det
        log_p = prior.log_prob(z)
        if self.posterior is not None:
            return Draw(z, z, (log_q - log_p)[:, None], log_q, log_p)
        kl = prior.kl(mu, logvar, z) if hasattr(prior, "kl") else (log_q - log_p)[:, None]
        return Draw(z, z, kl, log_q, log_p, mu=mu, logvar=logvar)

    def point(self, features: Any) -> Tensor:
        """``mu``, through the flow if there is one."""
        mu, logvar = check_posterior(features, self.latent_shape)
        if self.posterior is None:
            return mu
        z: Tensor = self.posterior(mu, mu, logvar)[0]
        return z

    def encoded(self, features: Any) -> Any:
        """``(mu, logvar)``; with a flow, :meth:`point`."""
        return check_posterior(features, self.latent_shape) if self.posterior is None else self.point(features)

    def from_noise(self, noise: Tensor, *, prior: Any = None) -> Tensor:
        """A draw of the prior, ``(B, *latent_shape)``, from ``noise``, ``(B, prior_noise_size)``."""
        check_tensor("noise", noise)
        check_shape("noise", noise.shape, ("B", self.prior_noise_size))
        z: Tensor = (self.prior if prior is None else prior).from_noise(noise)
        return z.reshape(-1, *self.latent_shape)

    def log_prob(self, z: Tensor, *, prior: Any = None) -> Tensor:
        """Log p(z) in nats, ``(B,)``."""
        log_p: Tensor = (self.prior if prior is None else prior).log_prob(z)
        return log_p

    def hidden(self, z: Tensor) -> Tensor:
        """``z`` itself."""
        return z

    def given(self, embedding: Tensor) -> Any:
        """The latent with a condition bound to its prior; itself if the prior takes none."""
        return BoundLatent.of(self, embedding)
