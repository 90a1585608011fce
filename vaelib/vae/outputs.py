"""What one pass gives, the image that a person sees, eval mode, and a model with the condition of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaelib.likelihoods import Bernoulli, ContinuousBernoulli, Likelihood

__all__ = ["LatentOutput", "VAEOutput", "bound", "condition_of", "eval_mode", "image_of"]


class VAEOutput(NamedTuple):
    """One pass through a VAE with a Gaussian posterior; unpacks in this order, for :func:`elbo_loss`."""

    recon_params: Tensor
    """Raw parameters of p(x|z), ``(B, likelihood.param_channels(C), H, W)``."""
    mu: Tensor
    """Posterior mean, ``(B, *latent_shape)``."""
    logvar: Tensor
    """Posterior log variance, the same shape."""
    z: Tensor
    """The draw from the posterior that was decoded, the same shape."""


class LatentOutput(NamedTuple):
    """One pass through a model with another latent, such as an autoencoder or a VAE with a flow posterior."""

    recon_params: Tensor
    """Raw decoder output, ``(B, C, H, W)`` (more channels if the likelihood wants them)."""
    z: Tensor
    """The latent that was decoded, ``(B, *latent_shape)``."""
    kl: Tensor
    """KL(q(z|x) to p(z)) in nats, ``(B, G)``, as in :class:`vaelib.latents.Draw`."""


def image_of(likelihood: Likelihood | None, recon_params: Tensor) -> Tensor:
    """The image that a person sees: the likelihood's mean, or ``recon_params`` without one, clamped to [0, 1].

    The mean of a Gaussian or a Laplace may be any real value, and log p(x|z) takes it as it is.
    """
    image = recon_params if likelihood is None else likelihood.mean(recon_params)
    if type(likelihood) in (Bernoulli, ContinuousBernoulli):  # their means are in (0, 1)
        return image
    return image.clamp(0, 1) + 0 * image  # NaN where it is infinite, so that a broken model does not look white


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Eval mode without gradients inside the ``with``; every submodule's own mode comes back after it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def condition_of(model: Any) -> Any:
    """The part of a model that takes a condition; None of one without, or with one bound."""
    part = getattr(model, "condition", None) if isinstance(model, nn.Module) else None
    return part if hasattr(part, "check") else None


def bound(model: Any, condition: Tensor | None) -> Any:
    """The model with the condition of a batch; one without a condition, or with one bound, as it is."""
    return model if condition is None or condition_of(model) is None else model.given(condition)
