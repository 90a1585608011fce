"""What objectives and evaluation ask of a model: from images to draws of the latent, and from there to pixels.

A model with a condition bound has the same verbs, so that no objective and no evaluation asks for the condition.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from vaelib._checks import (
    LARGEST_TENSOR,
    check_generator,
    check_int,
    check_tensor,
    check_unit_range,
)
from vaelib._parts import check_input, check_latents, check_recon_params, check_rows, rows_of
from vaelib.functional.draws import normal, normal_of
from vaelib.latents import Draw, LatentScaling
from vaelib.latents.base import first_tensor, repeated
from vaelib.latents.scaling import scaling_if
from vaelib.vae.outputs import LatentOutput, VAEOutput, eval_mode, image_of
from vaelib.vae.tiled import in_tiles

__all__ = ["Given", "Passes", "Verbs"]


class Verbs:
    """What a model, and a model with a condition bound, does with its parts."""

    image_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    encoder: nn.Module
    decoder: nn.Module
    latent: Any
    likelihood: Any
    corruption: nn.Module | None
    scaling: LatentScaling | None
    training: bool
    parameters: Any

    @property
    def prior(self) -> Any:
        """p(z): the latent's own, with the condition bound if it takes one; None of a latent without a prior."""
        return getattr(self.latent, "prior", None)

    def given(self, condition: Any, *, generator: torch.Generator | None = None) -> Passes:
        """The same verbs with ``condition`` bound."""
        raise NotImplementedError

    def _undropped(self) -> Passes:
        """The same verbs, of a bound condition without dropout."""
        raise NotImplementedError

    def _run(self, network: nn.Module, value: Tensor) -> Any:
        """What the encoder gives for images, the decoder for latents."""
        raise NotImplementedError

    def observe(self, x: Tensor, *, generator: torch.Generator | None = None) -> Any:
        """The encoder's output for images ``(B, C, H, W)`` in [0, 1], which are corrupted first in training mode.

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
            features: What :meth:`observe` returns.
            num_samples: K draws of each image, as ``(K * B, ...)``: the first of all images, the second, ...
            noise: Standard normal, ``(K * B, noise_size)``; drawn if None.
            generator: Random generator for the noise; torch's global one if None.
        """
        check_generator(generator)
        if check_int("num_samples", num_samples) > 1:
            features = repeated(features, num_samples)
        like = first_tensor(features)
        shape = like.shape[0], self.latent.noise_size
        if noise is None:
            noise = normal(shape, like, generator)
        else:
            check_tensor("noise", noise, shape)
        draw: Draw = self.latent.draw(features, noise)
        return draw

    def decode(self, z: Tensor | Draw, *, scaled: bool = False) -> Tensor:
        """Latents ``(B, *latent_shape)``, or a :class:`Draw`, to ``recon_params``: raw, before any squashing.

        With ``scaled``, latents in the model's ``scaling``, as ``embed(x, scaled=True)`` gives them.
        """
        scaling = scaling_if(scaled, self)
        if isinstance(z, Draw):
            if scaling is not None:
                raise ValueError("`scaled` must be False for a Draw, whose z is not scaled.")
            return self.decode_hidden(z.hidden)
        check_latents(self, z)
        return self.decode_hidden(self.latent.hidden(z if scaling is None else scaling.inverse(z)))

    def decode_hidden(self, hidden: Tensor) -> Tensor:
        """What the latent gives the decoder to ``recon_params``."""
        channels = self.image_shape[0]
        if self.likelihood is not None:
            channels = self.likelihood.param_channels(channels)
        return check_recon_params(self._run(self.decoder, hidden), hidden, channels, self.image_shape).to(hidden.dtype)

    def decode_mean(
        self, z: Tensor | Draw, *, scaled: bool = False, tile: int | None = None, blend: bool = False
    ) -> Tensor:
        """The same to images: the likelihood's mean, clamped to [0, 1], ``(B, C, H, W)``.

        With ``tile``, of latent maps of any size, as :meth:`Passes.reconstruct`.
        """
        view, z = in_tiles(self, "z", z, tile, blend)
        return image_of(view.likelihood, view.decode(z, scaled=scaled))

    def _features(self, x: Tensor) -> Any:
        features = self._run(self.encoder, x)
        check_rows(tree_leaves(features), x)
        return tree_map_only(Tensor, lambda part: part.to(x.dtype) if part.is_floating_point() else part, features)


class Passes(Verbs):
    """Whole passes through the model, for people: each takes the condition too, and then only calls ``given``."""

    def forward(
        self, x: Tensor, *, condition: Any = None, generator: torch.Generator | None = None
    ) -> VAEOutput | LatentOutput:
        """Encode, draw z from the posterior, decode; z is drawn in eval mode too, as the ELBO wants it."""
        if condition is not None:
            return self.given(condition, generator=generator).forward(x, generator=generator)
        draw = self.draw(self.observe(x, generator=generator), generator=generator)
        if draw.mu is None or draw.logvar is None:
            return LatentOutput(self.decode(draw), draw.z, draw.kl)
        return VAEOutput(self.decode(draw), draw.mu, draw.logvar, draw.z)

    def embed(
        self, x: Tensor, *, condition: Any = None, scaled: bool = False, tile: int | None = None, blend: bool = False
    ) -> Tensor:
        """The deterministic z of images, ``(B, *latent_shape)``: what :meth:`reconstruct` decodes.

        By the condition without its dropout, as :meth:`encode`. With ``scaled``, by the model's ``scaling``. With
        ``tile``, of images of any size, as :meth:`reconstruct`; a warning reports if they were reflected.
        """
        view, x = in_tiles(self, "x", x, tile, blend)
        if condition is not None:
            return view.given(condition).embed(x, scaled=scaled)
        scaling = scaling_if(scaled, view)
        check_input(view, x)
        view = view._undropped()
        z: Tensor = view.latent.point(view._features(x))
        return z if scaling is None else scaling(z)

    def encode(
        self, x: Tensor, *, condition: Any = None, scaled: bool = False, tile: int | None = None, blend: bool = False
    ) -> Any:
        """Images ``(B, C, H, W)`` in [0, 1] to ``(mu, logvar)``, each ``(B, *latent_shape)``.

        Of a quantised latent to its codes, int64 ``(B, positions)``; of another without a Gaussian posterior, such as
        one with a :class:`FlowPosterior`, to z. With ``scaled``, moments or z of the latent in the model's ``scaling``.
        With ``tile``, of images of any size, as :meth:`embed`.
        """
        view, x = in_tiles(self, "x", x, tile, blend)
        if condition is not None:
            return view.given(condition).encode(x, scaled=scaled)
        scaling = scaling_if(scaled, view)
        check_input(view, x)
        view = view._undropped()
        found = view.latent.encoded(view._features(x))
        return found if scaling is None else scaling.encoded(found)

    def reconstruct(self, x: Tensor, *, condition: Any = None, tile: int | None = None, blend: bool = False) -> Tensor:
        """Images from images, ``(B, C, H, W)`` both: :meth:`embed` and the likelihood's mean, clamped to [0, 1].

        Deterministic: always in eval mode, without gradients, and a corruption is not applied.

        Args:
            x: Images in [0, 1], of the model's ``image_shape``; with ``tile``, of any height and width.
            condition: Condition of the images, for a model that takes one.
            tile: Longest side, in pixels, of the tiles that encoder and decoder compute one after the other. They
                overlap by the network's receptive radius, so the result is that of the whole image, up to 1e-6; its
                outer border keeps the network's own padding. Where the size is no multiple of the latent's cells, the
                image is reflected at the bottom and on the right, and the result cropped.
            blend: Also tile a network that looks at the whole image, as with a normalisation over space or attention,
                and blend the tiles linearly where they overlap: by a quarter. The result is *not* the whole image's.

        Raises:
            ValueError: If ``x`` has the wrong shape or values outside [0, 1], ``tile`` is smaller than the receptive
                field, or a layer has no bound, which is named, and ``blend`` is False.
            TypeError: If ``x`` is not floating point.
        """
        with eval_mode(self):
            view, whole = in_tiles(self, "x", x, tile, blend, is_cropped=True)
            check_input(view, whole)
            check_unit_range("x", x)
            view = view if condition is None else view.given(condition)
            return view.decode_mean(view.embed(whole))[:, :, : x.shape[2], : x.shape[3]]

    def sample(
        self,
        num_samples: int,
        *,
        condition: Any = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Images from the prior: the likelihood's mean of z ~ p(z), clamped to [0, 1], ``(num_samples, C, H, W)``.

        Always in eval mode, without gradients. Draw pixels too with ``likelihood.sample(vae.decode(z))``.

        Args:
            num_samples: How many, >= 0.
            condition: Condition of all samples; or B conditions, the first for the first sample, the second for the
                second, ..., and again from the first, where B divides ``num_samples``.
            seed: The same images again, and within rounding those of ``OnnxVAE.sample`` with this seed.
            generator: Random generator for the noise, instead of a seed; torch's global one if both are None.

        Raises:
            ValueError: If both ``seed`` and ``generator`` are given, or the model has no prior.
        """
        check_int("num_samples", num_samples, minimum=0, maximum=LARGEST_TENSOR // math.prod(self.image_shape))
        shape = num_samples, self.latent.prior_noise_size
        noise = normal_of(seed, shape, generator, next(self.parameters(), torch.empty(0)))
        with eval_mode(self):
            view = self if condition is None else self.given(condition)
            return view.decode_mean(view.latent.from_noise(noise))


class Given(Passes):
    """What ``model.given(condition)`` returns: a model with a condition bound, no module of its own.

    Args:
        model: A VAE with a condition.
        embedding: The condition as numbers, ``(B, E)``; one row serves any number of images.
        dropped: The same with the rows that a training step replaces by the null embedding; none if None.
        is_null: Whether it is the null embedding for all images: the model without a condition, of p(x).
    """

    def __init__(self, model: Any, embedding: Tensor, dropped: Tensor | None = None, *, is_null: bool = False) -> None:
        self.model, self.is_null = model, is_null
        self._embedding, self._dropped = embedding, embedding if dropped is None else dropped

    @property
    def embedding(self) -> Tensor:
        """``(B, E)``, the same for encoder, decoder and prior; in training mode with dropout."""
        return self._dropped if self.model.training else self._embedding

    @property
    def latent(self) -> Any:
        """The model's, with the condition bound if it, or its prior, takes one."""
        latent = self.model.latent
        return latent.given(self.embedding) if hasattr(latent, "given") else latent

    def given(self, condition: Any, *, generator: torch.Generator | None = None) -> Passes:
        """Raise: there is one already.

        Raises:
            ValueError: Always.
        """
        raise ValueError("`condition` must be given once: this is model.given(...) already.")

    def __call__(self, x: Tensor, *, generator: torch.Generator | None = None) -> Any:
        """:meth:`forward`."""
        return self.forward(x, generator=generator)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    def _undropped(self) -> Passes:
        return self if self._dropped is self._embedding else Given(self.model, self._embedding, is_null=self.is_null)

    def _run(self, network: nn.Module, value: Tensor) -> Any:
        is_encoder = network is self.model.encoder
        embedding = rows_of(self.embedding, value.shape[0], draws=not is_encoder).to(value)
        if getattr(network, "takes_condition", False):
            return network(value, embedding)
        if value.ndim == 4:
            embedding = embedding[:, :, None, None].expand(-1, -1, *value.shape[2:])
        return network(torch.cat([value, embedding], dim=1))
