"""The models: an encoder and a decoder put together. No loss is computed here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaelib._checks import LARGEST_TENSOR, check_generator, check_int, check_unit_range
from vaelib._parts import (
    agreed_shape,
    check_code,
    check_input,
    check_latents,
    check_modules,
    check_param_channels,
    check_posterior,
    check_recon_params,
)
from vaelib.functional import gaussian_log_prob, reparameterize
from vaelib.likelihoods import Bernoulli, ContinuousBernoulli, Likelihood
from vaelib.priors import Prior, StandardNormal, VampPrior

__all__ = ["VAE", "AutoEncoder", "AutoEncoderOutput", "FlowVAEOutput", "VAEOutput", "eval_mode", "image_of"]


class VAEOutput(NamedTuple):
    """One pass through a VAE; unpacks in this order."""

    recon_params: Tensor
    """Raw parameters of p(x|z), ``(B, likelihood.param_channels(C), H, W)``."""
    mu: Tensor
    """Posterior mean, ``(B, *latent_shape)``."""
    logvar: Tensor
    """Posterior log variance, the same shape."""
    z: Tensor
    """The draw from the posterior that was decoded, the same shape."""


class FlowVAEOutput(NamedTuple):
    """Of a bent posterior: ``mu`` and ``logvar`` are of what is bent; ``log_q``, log q(z|x), has the shape ``(B,)``."""

    recon_params: Tensor
    mu: Tensor
    logvar: Tensor
    z: Tensor
    log_q: Tensor


class AutoEncoderOutput(NamedTuple):
    """One pass through an autoencoder."""

    recon_params: Tensor
    """Raw decoder output, ``(B, C, H, W)`` (more channels if the likelihood wants them)."""
    z: Tensor
    """The code, ``(B, *latent_shape)``."""


def image_of(likelihood: Likelihood | None, recon_params: Tensor) -> Tensor:
    """The image that a person sees: the likelihood's mean, or ``recon_params`` without one, clamped to [0, 1].

    The mean of a Gaussian or a Laplace may be any real value, and log p(x|z) takes it as it is.
    """
    image = recon_params if likelihood is None else likelihood.mean(recon_params)
    if type(likelihood) in (Bernoulli, ContinuousBernoulli):  # their means are in (0, 1)
        return image
    return image.clamp(0, 1) + 0 * image  # NaN where it is infinite, so that a broken model does not look white


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients inside the ``with``; every submodule's own mode comes back after it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


class VAE(nn.Module):
    """A variational autoencoder from any encoder and decoder.

    The parts need no base class: the encoder maps images ``(B, C, H, W)`` to ``(mu, logvar)``, the decoder
    maps ``z`` to ``recon_params``. If neither carries ``image_shape`` or ``latent_shape``, give them here.

    Args:
        encoder: Network of q(z|x). If yours returns unbounded log variances, pass them through
            :func:`vaelib.functional.soft_bound` as :class:`ConvEncoder` does.
        decoder: Network of p(x|z).
        likelihood: What ``recon_params`` mean; :class:`Bernoulli` if None.
        prior: p(z); :class:`StandardNormal` if None.
        posterior: What bends the encoder's Gaussian, such as :class:`vaelib.posteriors.FlowPosterior`; nothing if None.
        corruption: Noise on the encoder's input, in training mode only; see :mod:`vaelib.corruptions`.
        image_shape: ``(C, H, W)``; the parts' own if None.
        latent_shape: ``(D,)`` or ``(C, h, w)``; the parts' own if None.

    Raises:
        ValueError: If the parts disagree about the image or the latent, or nobody knows its shape.

    Examples:
        >>> import vaelib as vl
        >>> vae = VAE(vl.ConvEncoder((1, 28, 28), 32), vl.ConvDecoder(32, (1, 28, 28)))
        >>> out = vae(torch.rand(2, 1, 28, 28))
        >>> out.recon_params.shape, out.mu.shape
        (torch.Size([2, 1, 28, 28]), torch.Size([2, 32]))
        >>> vae.sample(4).shape
        torch.Size([4, 1, 28, 28])

    References:
        Kingma & Welling (2014), Auto-Encoding Variational Bayes. https://arxiv.org/abs/1312.6114
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        likelihood: Likelihood | None = None,
        prior: Prior | None = None,
        posterior: nn.Module | None = None,
        corruption: nn.Module | None = None,
        image_shape: Sequence[int] | None = None,
        latent_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_modules(encoder=encoder, decoder=decoder, likelihood=likelihood, prior=prior, corruption=corruption)
        check_modules(posterior=posterior)
        parts = {"encoder": encoder, "decoder": decoder, "prior": prior, "posterior": posterior}
        self.image_shape = agreed_shape("image_shape", image_shape, **parts)
        self.latent_shape = agreed_shape("latent_shape", latent_shape, **parts)
        self.encoder, self.decoder = encoder, decoder
        self.likelihood: Likelihood = Bernoulli() if likelihood is None else likelihood
        self.prior: Prior = StandardNormal() if prior is None else prior
        self.posterior, self.corruption = posterior, corruption
        if isinstance(prior, VampPrior):
            prior.attach(self)
        check_param_channels(decoder, self.likelihood, self.image_shape)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``(B, C, H, W)`` in [0, 1] to ``(mu, logvar)``, each ``(B, *latent_shape)``."""
        check_input(self, x)
        mu, logvar = check_posterior(self.encoder(x), x, self.latent_shape)
        return mu.to(x.dtype), logvar.to(x.dtype)  # autocast ends here: what follows is in full precision

    def decode(self, z: Tensor) -> Tensor:
        """Latents ``(B, *latent_shape)`` to ``recon_params``: raw, before any squashing."""
        check_latents(self, z)
        channels = self.likelihood.param_channels(self.image_shape[0])
        return check_recon_params(self.decoder(z), z, channels, self.image_shape).to(z.dtype)

    def infer(self, x: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The posterior as training sees it: :meth:`encode` behind the corruption, if there is one and it trains."""
        return self.encode(_corrupt(self, x, generator))

    def draw(self, mu: Tensor, logvar: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Z from the posterior, ``(B, *latent_shape)``, and log q(z|x) in nats, ``(B,)``."""
        check_latents(self, mu, "mu")
        check_latents(self, logvar, "logvar")
        check_generator(generator)
        z = reparameterize(mu, logvar, generator=generator)
        log_q = gaussian_log_prob(z, mu, 0.5 * logvar)
        if self.posterior is None:
            return z, log_q
        z, log_det = self.posterior(z, mu, logvar)
        return z, log_q - log_det

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> VAEOutput | FlowVAEOutput:
        """Encode, draw z from the posterior, decode; z is drawn in eval mode too, as the ELBO wants it."""
        mu, logvar = self.infer(x, generator=generator)
        if self.posterior is not None:
            z, log_q = self.draw(mu, logvar, generator=generator)
            return FlowVAEOutput(self.decode(z), mu, logvar, z, log_q)
        z = reparameterize(mu, logvar, generator=generator)
        return VAEOutput(self.decode(z), mu, logvar, z)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Images from images, ``(B, C, H, W)`` both: z = mu and the likelihood's mean, clamped to [0, 1].

        Deterministic: always in eval mode, without gradients, and a corruption is not applied.

        Raises:
            ValueError: If ``x`` has the wrong shape or values outside [0, 1].
            TypeError: If ``x`` is not floating point.
        """
        with eval_mode(self):
            check_input(self, x)
            check_unit_range("x", x)
            mu, logvar = self.encode(x)
            z = mu if self.posterior is None else self.posterior(mu, mu, logvar)[0]
            return image_of(self.likelihood, self.decode(z))

    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Images from the prior: the likelihood's mean of z ~ p(z), clamped to [0, 1], ``(num_samples, C, H, W)``.

        Always in eval mode, without gradients. Draw pixels too with ``likelihood.sample(vae.decode(z))``.
        A generator of the CPU gives the same latents on every device.
        """
        check_int("num_samples", num_samples, minimum=0, maximum=LARGEST_TENSOR // math.prod(self.image_shape))
        check_generator(generator)
        parameter = next(self.parameters(), torch.empty(0))
        with eval_mode(self):
            z = self.prior.sample(num_samples, self.latent_shape, generator=generator, device=parameter.device)
            return image_of(self.likelihood, self.decode(z.to(parameter.dtype)))


class AutoEncoder(nn.Module):
    """The VAE's deterministic sibling: one code per image, no prior, nothing to sample.

    Args:
        encoder: Maps images to codes; of an encoder that returns ``(mu, logvar)``, ``mu`` is the code.
        decoder: Maps codes to ``recon_params``.
        likelihood: What ``recon_params`` mean; pictures themselves, trained by squared error, if None.
        corruption: Noise on the encoder's input, in training mode only: a denoising autoencoder.
        image_shape: ``(C, H, W)``; the parts' own if None.
        latent_shape: ``(D,)`` or ``(C, h, w)``; the parts' own if None.

    Raises:
        ValueError: If the parts disagree about the image or the latent, or nobody knows its shape.

    Examples:
        >>> import vaelib as vl
        >>> model = AutoEncoder(vl.ConvEncoder((1, 28, 28), 2), vl.ConvDecoder(2, (1, 28, 28)))
        >>> model.encode(torch.rand(5, 1, 28, 28)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        likelihood: Likelihood | None = None,
        corruption: nn.Module | None = None,
        image_shape: Sequence[int] | None = None,
        latent_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_modules(encoder=encoder, decoder=decoder, likelihood=likelihood, corruption=corruption)
        self.image_shape = agreed_shape("image_shape", image_shape, encoder=encoder, decoder=decoder)
        self.latent_shape = agreed_shape("latent_shape", latent_shape, encoder=encoder, decoder=decoder)
        self.encoder, self.decoder = encoder, decoder
        self.likelihood = likelihood
        self.corruption = corruption
        if likelihood is not None:
            check_param_channels(decoder, likelihood, self.image_shape)

    def encode(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` in [0, 1] to codes ``(B, *latent_shape)``."""
        check_input(self, x)
        return check_code(self.encoder(x), x, self.latent_shape)

    def decode(self, z: Tensor) -> Tensor:
        """Codes ``(B, *latent_shape)`` to ``recon_params``."""
        check_latents(self, z)
        channels = self.image_shape[0]
        if self.likelihood is not None:
            channels = self.likelihood.param_channels(channels)
        return check_recon_params(self.decoder(z), z, channels, self.image_shape).to(z.dtype)

    def infer(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The code as training sees it: :meth:`encode` behind the corruption, if there is one and it trains."""
        return self.encode(_corrupt(self, x, generator))

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> AutoEncoderOutput:
        """Encode and decode; ``generator`` is for the corruption."""
        z = self.infer(x, generator=generator)
        return AutoEncoderOutput(self.decode(z), z)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Images from images, ``(B, C, H, W)`` both, clamped to [0, 1]; in eval mode, without gradients.

        Raises as a VAE's.
        """
        with eval_mode(self):
            check_input(self, x)
            check_unit_range("x", x)
            return image_of(self.likelihood, self.decode(self.encode(x)))


def _corrupt(model: VAE | AutoEncoder, x: Tensor, generator: torch.Generator | None) -> Tensor:
    check_generator(generator)
    if model.corruption is None or not model.training:
        return x
    check_input(model, x)
    return model.corruption(x, generator=generator)
