"""A diagonal Gaussian posterior, bent by a flow if there is one, and any prior."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vaelib._checks import MissingExtraError, check_int, check_int_tuple, check_tensor
from vaelib._parts import agreed_shape, check_modules, check_posterior
from vaelib.functional import gaussian_log_prob
from vaelib.latents.base import Draw, LatentModule
from vaelib.priors import Prior, StandardNormal

__all__ = ["FlowPosterior", "GaussianLatent"]


class GaussianLatent(LatentModule):
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
        check_tensor("noise", noise, ("B", self.prior_noise_size))
        z: Tensor = (self.prior if prior is None else prior).from_noise(noise)
        return z.reshape(-1, *self.latent_shape)

    def log_prob(self, z: Tensor, *, prior: Any = None) -> Tensor:
        """Log p(z) in nats, ``(B,)``."""
        log_p: Tensor = (self.prior if prior is None else prior).log_prob(z)
        return log_p


class FlowPosterior(nn.Module):
    """Inverse autoregressive flow, by zuko: bends a draw of the encoder's Gaussian, knowing its ``mu`` and ``logvar``.

    ``vl.VAE(..., latent=vl.GaussianLatent((32,), posterior=FlowPosterior((32,))))``. Each transform shifts and scales
    every latent by what it makes of those before it; the order is reversed from one to the next. Starts as the
    identity. Of the draws that it made, and of no other z, the density comes at no cost.

    Args:
        latent_shape: ``(D,)`` or ``(C, h, w)``.
        num_transforms: Autoregressive transforms.
        hidden_features: Widths of the masked network inside each.

    Raises:
        MissingExtraError: If zuko is not installed.

    Examples:
        >>> import vaelib as vl
        >>> parts = vl.ConvEncoder((1, 8, 8), 4), vl.ConvDecoder(4, (1, 8, 8))
        >>> flow = FlowPosterior((4,), num_transforms=2, hidden_features=(16,))
        >>> vae = vl.VAE(*parts, latent=vl.GaussianLatent((4,), posterior=flow))
        >>> vl.Elbo()(vae, torch.rand(3, 1, 8, 8)).kl.shape
        torch.Size([3])

    References:
        Kingma et al. (2016), Improving variational inference with inverse autoregressive flow, algorithm 1.
        https://arxiv.org/abs/1606.04934
    """

    def __init__(
        self, latent_shape: Sequence[int], num_transforms: int = 2, hidden_features: Sequence[int] = (128,)
    ) -> None:
        super().__init__()
        self.latent_shape = check_int_tuple("latent_shape", latent_shape)
        self.num_transforms = check_int("num_transforms", num_transforms)
        self.hidden_features = check_int_tuple("hidden_features", hidden_features)
        if importlib.util.find_spec("zuko") is None:
            raise MissingExtraError("FlowPosterior", "flows")
        from zuko.flows import MaskedAutoregressiveTransform

        features = math.prod(self.latent_shape)
        order = torch.arange(features)
        self.transforms = nn.ModuleList(
            MaskedAutoregressiveTransform(
                features,
                context=2 * features,
                order=order.flip(0) if i % 2 else order,
                hidden_features=self.hidden_features,
            )
            for i in range(self.num_transforms)
        )
        for transform in self.transforms:
            hyper: Any = transform.hyper
            nn.init.zeros_(hyper[-1].weight)
            nn.init.zeros_(hyper[-1].bias)

    def forward(self, z: Tensor, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        """A draw of N(mu, exp(logvar)), ``(B, *latent_shape)``, to z of that shape and ``log |dz/d draw|``."""
        for name, values in (("z", z), ("mu", mu), ("logvar", logvar)):
            check_tensor(name, values, ("B", *self.latent_shape))
        context = torch.cat([mu.flatten(1), logvar.flatten(1)], dim=1)
        flat, log_det = z.flatten(1), z.new_zeros(z.shape[0])
        for transform in self.transforms:
            flat, part = transform(context).call_and_ladj(flat)
            log_det = log_det + part
        return flat.unflatten(1, self.latent_shape), log_det
