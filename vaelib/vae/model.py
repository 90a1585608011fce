"""The model: encoder, latent and decoder put together. No loss is computed here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vaelib._checks import LARGEST_TENSOR, check_generator, check_int, check_unit_range
from vaelib._parts import (
    agreed_shape,
    check_heads,
    check_input,
    check_modules,
    check_param_channels,
)
from vaelib.functional.draws import normal
from vaelib.latents import GaussianLatent, Latent, PointLatent
from vaelib.likelihoods import Bernoulli, Likelihood
from vaelib.priors import Prior
from vaelib.vae.outputs import LatentOutput, VAEOutput, eval_mode
from vaelib.vae.verbs import Verbs

__all__ = ["VAE", "AutoEncoder"]


class VAE(Verbs):
    """A variational autoencoder from any encoder, latent and decoder.

    Encoder and decoder need no base class: the encoder maps images ``(B, C, H, W)`` to what the latent reads, for the
    default :class:`GaussianLatent` ``(mu, logvar)``; the decoder maps ``z`` to ``recon_params``. If neither carries
    ``image_shape`` or ``latent_shape``, give them here.

    Args:
        encoder: Network of q(z|x). If yours returns unbounded log variances, pass them through
            :func:`vaelib.functional.soft_bound` as :class:`ConvEncoder` does.
        decoder: Network of p(x|z).
        likelihood: What ``recon_params`` mean; :class:`Bernoulli` if None.
        prior: p(z) of a Gaussian latent; :class:`StandardNormal` if None.
        latent: Posterior, prior and rate together; ``GaussianLatent(latent_shape, prior)`` if None.
        corruption: Noise on the encoder's input, in training mode only; see :mod:`vaelib.corruptions`.
        image_shape: ``(C, H, W)``; the parts' own if None.
        latent_shape: ``(D,)`` or ``(C, h, w)``; the parts' own if None.

    Raises:
        ValueError: If the parts disagree about the image or the latent, nobody knows its shape, or both ``prior`` and
            ``latent`` are given.

    Examples:
        >>> import vaelib as vl
        >>> vae = VAE(vl.ConvEncoder((1, 28, 28), 32), vl.ConvDecoder(32, (1, 28, 28)))
        >>> out = vae(torch.rand(2, 1, 28, 28))
        >>> out.recon_params.shape, out.mu.shape
        (torch.Size([2, 1, 28, 28]), torch.Size([2, 32]))
        >>> vae.sample(4, seed=0).shape
        torch.Size([4, 1, 28, 28])

    References:
        Kingma & Welling (2014), Auto-Encoding Variational Bayes. https://arxiv.org/abs/1312.6114
    """

    short_forms = ("prior",)
    """Arguments that ``latent`` holds, for :func:`vaelib.save`."""

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        likelihood: Likelihood | None = None,
        prior: Prior | None = None,
        latent: Latent | None = None,
        corruption: nn.Module | None = None,
        image_shape: Sequence[int] | None = None,
        latent_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_modules(encoder=encoder, decoder=decoder, likelihood=likelihood, prior=prior, corruption=corruption)
        check_modules(latent=latent)
        if prior is not None and latent is not None:
            raise ValueError(
                "`prior` must be None where `latent` is given, which has its own: write GaussianLatent(shape, prior)."
            )
        parts = {"encoder": encoder, "decoder": decoder, "prior": prior, "latent": latent}
        self.image_shape = agreed_shape("image_shape", image_shape, **parts)
        self.latent_shape = agreed_shape("latent_shape", latent_shape, **parts)
        self.encoder, self.decoder = encoder, decoder
        self.likelihood: Any = Bernoulli() if likelihood is None else likelihood
        self.latent: Any = GaussianLatent(self.latent_shape, prior) if latent is None else latent
        self.corruption = corruption
        check_heads(encoder, self.latent)
        if hasattr(self.prior, "attach"):
            self.prior.attach(self)
        check_param_channels(decoder, self.likelihood, self.image_shape)
        self.register_load_state_dict_pre_hook(_of_version_0_1)

    @property
    def prior(self) -> Any:
        """p(z): the latent's own; None of a latent without one. ``model.prior = ...`` gives the latent another."""
        return getattr(self.latent, "prior", None)

    def __setattr__(self, name: str, value: Any) -> None:
        """Prior and posterior are the latent's; torch would register modules here that nothing would use."""
        if name in ("prior", "posterior"):
            setattr(self.latent, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> VAEOutput | LatentOutput:
        """Encode, draw z from the posterior, decode; z is drawn in eval mode too, as the ELBO wants it."""
        draw = self.draw(self.observe(x, generator=generator), generator=generator)
        if draw.mu is None or draw.logvar is None:
            return LatentOutput(self.decode(draw), draw.z, draw.kl)
        return VAEOutput(self.decode(draw), draw.mu, draw.logvar, draw.z)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Images from images, ``(B, C, H, W)`` both: :meth:`embed` and the likelihood's mean, clamped to [0, 1].

        Deterministic: always in eval mode, without gradients, and a corruption is not applied.

        Raises:
            ValueError: If ``x`` has the wrong shape or values outside [0, 1].
            TypeError: If ``x`` is not floating point.
        """
        with eval_mode(self):
            check_input(self, x)
            check_unit_range("x", x)
            return self.decode_mean(self.embed(x))

    def sample(self, num_samples: int, *, seed: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Images from the prior: the likelihood's mean of z ~ p(z), clamped to [0, 1], ``(num_samples, C, H, W)``.

        Always in eval mode, without gradients. Draw pixels too with ``likelihood.sample(vae.decode(z))``.

        Args:
            num_samples: How many, >= 0.
            seed: The same images again, and within rounding those of ``OnnxVAE.sample`` with this seed.
            generator: Of the noise, in the place of a seed; torch's global one if both are None.

        Raises:
            ValueError: If both ``seed`` and ``generator`` are given, or the model has no prior.
        """
        check_int("num_samples", num_samples, minimum=0, maximum=LARGEST_TENSOR // math.prod(self.image_shape))
        shape = num_samples, self.latent.prior_noise_size
        noise = _noise(shape, seed, generator, next(self.parameters(), torch.empty(0)))
        with eval_mode(self):
            return self.decode_mean(self.latent.from_noise(noise))


class AutoEncoder(VAE):
    """A :class:`VAE` whose latent is a point: one code per image, no prior, nothing to sample.

    Args:
        encoder: Maps images to codes; of an encoder that returns ``(mu, logvar)``, ``mu`` is the code.
        decoder: Maps codes to ``recon_params``.
        likelihood: What ``recon_params`` mean; images themselves, trained by squared error, if None.
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
        check_modules(encoder=encoder, decoder=decoder)
        shape = agreed_shape("latent_shape", latent_shape, encoder=encoder, decoder=decoder)
        super().__init__(
            encoder,
            decoder,
            likelihood=likelihood,
            latent=PointLatent(shape),
            corruption=corruption,
            image_shape=image_shape,
        )
        if likelihood is None:
            del self.likelihood
            self.likelihood = None


def _noise(shape: tuple[int, int], seed: int | None, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Standard normal numbers, of a seed the same as in ``vaelib.runtime``."""
    check_generator(generator)
    if seed is None:
        return normal(shape, like, generator)
    if generator is not None:
        raise ValueError("`generator` must be None where `seed` is given.")
    numbers = np.random.default_rng(check_int("seed", seed, 0)).standard_normal(shape, np.float32)
    return torch.from_numpy(numbers).to(like)


def _of_version_0_1(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """The keys of weights from version 0.1, where prior and posterior lay beside encoder and decoder."""
    for name in [name for name in state if name.startswith((f"{prefix}prior.", f"{prefix}posterior."))]:
        state[f"{prefix}latent.{name.removeprefix(prefix)}"] = state.pop(name)
