"""Mixtures of Gaussians: learned ones, or the encoder's posteriors of learned images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vaelib._checks import check_finite, check_images, check_int, check_int_tuple, check_tensor, check_unit_range
from vaelib.priors.gaussians import Prior, bounded

__all__ = ["MixtureOfGaussians", "VampPrior"]


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
        check_tensor("z", z, (check_int("num_components", self.num_components, 2), *self.latent_shape))
        check_finite("z", z)
        with torch.no_grad():
            self.mu.copy_(z)
            self.logvar.copy_(z.var(0).clamp(min=1e-6).log())
        return self

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats: ``(B, *latent_shape)`` to ``(B,)``."""
        check_tensor("z", z, ("B", *self.latent_shape))
        return _log_prob(z, self.logits.log_softmax(0), self.mu, bounded(self.logvar))

    def from_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise ``(B, D + 1)`` to draws of z, ``(B, *latent_shape)``; the last chooses a component."""
        return _from_noise(noise, self.logits.softmax(0), self.mu, bounded(self.logvar))


class VampPrior(Prior):
    """The mixture of the encoder's posteriors of K learned pseudo-inputs, all with the same weight.

    It belongs to one encoder: that of the :class:`VAE` it is given to. Pseudo-inputs are kept as logits, so they stay
    in (0, 1); they start as noise around 0.5, or as images by :meth:`start_from`. In training, batch
    normalisation sees them as a batch of their own; group normalisation does not care.

    Args:
        image_shape: ``(C, H, W)``, what the encoder takes; with a condition of E numbers ``(C + E, H, W)``, so that
            pseudo-inputs have planes of a condition too.
        num_components: K, >= 1.

    Examples:
        >>> import vaelib as vl
        >>> prior = VampPrior((1, 8, 8), num_components=5)
        >>> vae = vl.VAE(vl.ConvEncoder((1, 8, 8), 2), vl.ConvDecoder(2, (1, 8, 8)), prior=prior)
        >>> prior.log_prob(torch.zeros(3, 2)).shape, vae.sample(4).shape
        (torch.Size([3]), torch.Size([4, 1, 8, 8]))

    References:
        Tomczak & Welling (2018), VAE with a VampPrior, equation 9. https://arxiv.org/abs/1705.07120
    """

    extra_noise = 1
    _mu: Tensor | None
    _logvar: Tensor | None

    def __init__(self, image_shape: Sequence[int], num_components: int = 500) -> None:
        super().__init__()
        self.image_shape = check_int_tuple("image_shape", image_shape, length=3)
        self.num_components = check_int("num_components", num_components)
        self.pseudo_logits = nn.Parameter(0.05 * torch.randn(self.num_components, *self.image_shape))
        self._model: tuple[Any, ...] = ()
        for name in ("_mu", "_logvar"):  # of the components that `fix` has computed
            self.register_buffer(name, None, persistent=False)

    def start_from(self, images: Tensor) -> VampPrior:
        """Let pseudo-inputs be ``images``, ``(K, C, H, W)`` in [0, 1], such as images of the training set."""
        check_tensor("images", images, floating=False)
        check_images("images", images, self.image_shape, floating=images.is_floating_point())
        check_unit_range("images", images)
        if len(images) != self.num_components:
            raise ValueError(f"`images` must be {self.num_components}, one a component, got {len(images)}.")
        with torch.no_grad():
            self.pseudo_logits.copy_(torch.logit(images, eps=0.01))
        return self

    def attach(self, model: Any) -> None:
        """Take the posteriors from the ``encoder`` of ``model``, which does not become a part of the prior.

        :class:`VAE` does this.

        Raises:
            ValueError: If the prior belongs to a model with another encoder, or the encoder takes more than images.
        """
        if getattr(model.encoder, "takes_condition", False):
            raise ValueError("`prior` must not be a VampPrior where the encoder takes the condition beside the image.")
        if self._model and self._model[0].encoder is not model.encoder:
            raise ValueError("`prior` is the VampPrior of another encoder: give each VAE one of its own.")
        self._model = (model,)

    @torch.no_grad()
    def fix(self) -> None:
        """Compute the components once, for weights that will not change; in training mode, again at each call."""
        self._mu, self._logvar = self._components()

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats: ``(B, *latent_shape)`` to ``(B,)``."""
        mu, logvar = self._components()
        check_tensor("z", z, ("B", *mu.shape[1:]))
        log_weights = z.new_full((self.num_components,), -math.log(self.num_components))
        return _log_prob(z, log_weights, mu, logvar)

    def from_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise ``(B, D + 1)`` to draws of z, ``(B, *latent_shape)``; the last chooses a component."""
        weights = noise.new_full((self.num_components,), 1 / self.num_components)
        return _from_noise(noise, weights, *self._components())

    def _components(self) -> tuple[Tensor, Tensor]:
        if self._mu is not None and self._logvar is not None and not self.training:
            return self._mu, self._logvar
        if not self._model:
            raise ValueError("`VampPrior` must be given to a VAE, whose encoder it asks, before it can be used.")
        mu, logvar = self._model[0].encoder(self.pseudo_logits.sigmoid())
        return mu, logvar


def _log_prob(z: Tensor, log_weights: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Log density of a mixture of diagonal Gaussians, in nats.

    ``log_weights`` are ``(K,)``, and their exponentials sum to one; ``mu`` and ``logvar`` are ``(K, *latent_shape)``.
    """
    scaled = (z[:, None] - mu) * torch.exp(-0.5 * logvar)
    squares = (scaled.square() + logvar + math.log(2 * math.pi)).flatten(2).sum(2)
    return torch.logsumexp(log_weights - 0.5 * squares, dim=1)


def _from_noise(noise: Tensor, weights: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Draws of such a mixture, ``(B, *latent_shape)``, from standard normal noise ``(B, D + 1)``.

    The last column chooses the component, by its quantile.
    """
    quantile = torch.special.ndtr(noise[:, -1:])
    chosen = (quantile > weights.cumsum(0)[:-1]).sum(1)
    eps = noise[:, :-1].unflatten(1, mu.shape[1:])
    return mu.index_select(0, chosen) + (0.5 * logvar.index_select(0, chosen)).exp() * eps
