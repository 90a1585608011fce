"""The models: an encoder and a decoder put together. No loss is computed here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from vaelib._checks import LARGEST_TENSOR, check_generator, check_int, check_unit_range
from vaelib._parts import (
    agreed_shape,
    check_input,
    check_latents,
    check_modules,
    check_param_channels,
    check_recon_params,
    check_rows,
)
from vaelib.latents import Draw, GaussianLatent, Latent, PointLatent
from vaelib.latents.base import first_tensor, repeated
from vaelib.likelihoods import Bernoulli, ContinuousBernoulli, Likelihood
from vaelib.priors import Prior

__all__ = ["VAE", "AutoEncoder", "LatentOutput", "VAEOutput", "eval_mode", "image_of"]


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
            raise ValueError("`prior` must be None where `latent` is given, which has its own.")
        parts = {"encoder": encoder, "decoder": decoder, "prior": prior, "latent": latent}
        self.image_shape = agreed_shape("image_shape", image_shape, **parts)
        self.latent_shape = agreed_shape("latent_shape", latent_shape, **parts)
        self.encoder, self.decoder = encoder, decoder
        self.likelihood: Any = Bernoulli() if likelihood is None else likelihood
        self.latent: Any = GaussianLatent(self.latent_shape, prior) if latent is None else latent
        self.corruption = corruption
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

    def observe(self, x: Tensor, *, generator: torch.Generator | None = None) -> Any:
        """What the encoder makes of images ``(B, C, H, W)`` in [0, 1], in training mode behind the corruption.

        Autocast ends here: tensors come back in the dtype of ``x``, and what follows is in full precision.
        """
        check_input(self, x)
        check_generator(generator)
        if self.corruption is not None and self.training:
            x = self.corruption(x, generator=generator)
        return self._features(x)

    def draw(
        self,
        features: Any,
        *,
        num_samples: int = 1,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Draw:
        """A draw of q(z|x) with its nats.

        Args:
            features: Of :meth:`observe`.
            num_samples: K draws of each image, as ``(K * B, ...)``: the first of all images, the second, ...
            noise: Standard normal, ``(K * B, noise_size)``; drawn if None.
            generator: Of the noise; torch's global one if None.
        """
        check_generator(generator)
        if num_samples > 1:
            features = repeated(features, num_samples)
        if noise is None:
            like = first_tensor(features)
            shape = like.shape[0], self.latent.noise_size
            noise = torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
        draw: Draw = self.latent.draw(features, noise)
        return draw

    def decode(self, z: Tensor | Draw) -> Tensor:
        """Latents ``(B, *latent_shape)``, or a :class:`Draw`, to ``recon_params``: raw, before any squashing."""
        if isinstance(z, Draw):
            return self.decode_hidden(z.hidden)
        check_latents(self, z)
        return self.decode_hidden(self.latent.hidden(z))

    def decode_hidden(self, hidden: Tensor) -> Tensor:
        """What the latent gives the decoder to ``recon_params``."""
        channels = self.image_shape[0]
        if self.likelihood is not None:
            channels = self.likelihood.param_channels(channels)
        return check_recon_params(self.decoder(hidden), hidden, channels, self.image_shape).to(hidden.dtype)

    def decode_mean(self, z: Tensor | Draw) -> Tensor:
        """The same to images: the likelihood's mean, clamped to [0, 1], ``(B, C, H, W)``."""
        return image_of(self.likelihood, self.decode(z))

    def embed(self, x: Tensor) -> Tensor:
        """The deterministic z of images, ``(B, *latent_shape)``: what :meth:`reconstruct` decodes."""
        check_input(self, x)
        z: Tensor = self.latent.point(self._features(x))
        return z

    def encode(self, x: Tensor) -> Any:
        """Images ``(B, C, H, W)`` in [0, 1] to ``(mu, logvar)``, each ``(B, *latent_shape)``.

        Of a latent without a Gaussian posterior, to what describes an image there: z, or codes.
        """
        check_input(self, x)
        return self.latent.encoded(self._features(x))

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
        check_generator(generator)
        if seed is not None and generator is not None:
            raise ValueError("`generator` must be None where `seed` is given.")
        parameter = next(self.parameters(), torch.empty(0))
        shape = num_samples, self.latent.prior_noise_size
        if seed is None:
            noise = torch.randn(shape, generator=generator, device=parameter.device, dtype=parameter.dtype)
        else:
            normal = np.random.default_rng(check_int("seed", seed, 0)).standard_normal(shape, np.float32)
            noise = torch.from_numpy(normal).to(parameter)
        with eval_mode(self):
            return self.decode_mean(self.latent.from_noise(noise))

    def _features(self, x: Tensor) -> Any:
        features = self.encoder(x)
        check_rows(tree_leaves(features), x)
        return tree_map_only(Tensor, lambda part: part.to(x.dtype) if part.is_floating_point() else part, features)


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


def _of_version_0_1(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """The keys of weights from version 0.1, where prior and posterior lay beside encoder and decoder."""
    for name in [name for name in state if name.startswith((f"{prefix}prior.", f"{prefix}posterior."))]:
        state[f"{prefix}latent.{name.removeprefix(prefix)}"] = state.pop(name)
