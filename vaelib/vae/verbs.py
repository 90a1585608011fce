"""What objectives and evaluation ask of a model: from images to draws of the latent, and from there to pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from vaelib._checks import check_generator, check_int, check_shape, check_tensor
from vaelib._parts import check_input, check_latents, check_recon_params, check_rows
from vaelib.functional.draws import normal
from vaelib.latents import Draw
from vaelib.latents.base import first_tensor, repeated
from vaelib.vae.outputs import image_of

__all__ = ["Verbs"]


class Verbs(nn.Module):
    """A model by its parts: ``encoder``, ``latent``, ``decoder``, ``likelihood`` and ``corruption``."""

    image_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    encoder: nn.Module
    decoder: nn.Module
    latent: Any
    likelihood: Any
    corruption: nn.Module | None

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
        if check_int("num_samples", num_samples) > 1:
            features = repeated(features, num_samples)
        like = first_tensor(features)
        shape = like.shape[0], self.latent.noise_size
        if noise is None:
            noise = normal(shape, like, generator)
        else:
            check_tensor("noise", noise)
            check_shape("noise", noise.shape, shape)
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

        Of a latent without a Gaussian posterior, such as one with a :class:`FlowPosterior`, to z alone.
        """
        check_input(self, x)
        return self.latent.encoded(self._features(x))

    def _features(self, x: Tensor) -> Any:
        features = self.encoder(x)
        check_rows(tree_leaves(features), x)
        return tree_map_only(Tensor, lambda part: part.to(x.dtype) if part.is_floating_point() else part, features)
