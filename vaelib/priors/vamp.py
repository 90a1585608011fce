"""The prior that is the posterior of learned images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vaelib._checks import check_images, check_int, check_int_tuple, check_shape, check_tensor, check_unit_range
from vaelib.priors.base import Prior
from vaelib.priors.gaussians import mixture_from_noise, mixture_log_prob

__all__ = ["VampPrior"]


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
        """Compute the components once, for weights that will not change; in training mode they are computed anew."""
        self._mu, self._logvar = self._components()

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats: ``(B, *latent_shape)`` to ``(B,)``."""
        mu, logvar = self._components()
        check_tensor("z", z)
        check_shape("z", z.shape, ("B", *mu.shape[1:]))
        log_weights = z.new_full((self.num_components,), -math.log(self.num_components))
        return mixture_log_prob(z, log_weights, mu, logvar)

    def from_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise ``(B, D + 1)`` to draws of z, ``(B, *latent_shape)``; the last chooses a component."""
        weights = noise.new_full((self.num_components,), 1 / self.num_components)
        return mixture_from_noise(noise, weights, *self._components())

    def _components(self) -> tuple[Tensor, Tensor]:
        if self._mu is not None and self._logvar is not None and not self.training:
            return self._mu, self._logvar
        if not self._model:
            raise ValueError("`VampPrior` must be given to a VAE, whose encoder it asks, before it can be used.")
        mu, logvar = self._model[0].encoder(self.pseudo_logits.sigmoid())
        return mu, logvar
