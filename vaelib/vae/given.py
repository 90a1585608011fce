"""A model with a condition bound: the same verbs, so that no objective and no evaluation asks for it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vaelib._parts import rows_of
from vaelib.vae.verbs import Passes

__all__ = ["Given"]


class Given(Passes):
    """What ``model.given(condition)`` returns: no module of its own, everything else is the model's.

    Args:
        model: A VAE with a condition.
        embedding: The condition as numbers, ``(B, E)``; one row serves any number of images.
        dropped: The same with the rows that a training step replaces by the null embedding; none if None.
    """

    def __init__(self, model: Any, embedding: Tensor, dropped: Tensor | None = None) -> None:
        self.model = model
        self._embedding, self._dropped = embedding, embedding if dropped is None else dropped

    @property
    def embedding(self) -> Tensor:
        """``(B, E)``, the same for encoder, decoder and prior; in training mode with dropout."""
        return self._dropped if self.model.training else self._embedding

    @property
    def latent(self) -> Any:
        """The model's; where it, or its prior, takes a condition, with this one bound."""
        latent = self.model.latent
        if hasattr(latent, "given"):
            return latent.given(self.embedding)
        prior = getattr(latent, "prior", None)
        if prior is None or not hasattr(prior, "given"):
            return latent
        return _LatentOf(latent, prior.given(self.embedding))

    @property
    def prior(self) -> Any:
        """p(z), given the condition if it takes one."""
        return getattr(self.latent, "prior", None)

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

    def _run(self, network: nn.Module, value: Tensor) -> Any:
        is_encoder = network is self.model.encoder
        embedding = rows_of(self.embedding, len(value), draws=not is_encoder).to(value)
        if getattr(network, "takes_condition", False):
            return network(value, embedding)
        if value.ndim == 4:
            embedding = embedding[:, :, None, None].expand(-1, -1, *value.shape[2:])
        return network(torch.cat([value, embedding], dim=1))


class _LatentOf:
    """A latent with another prior for a moment: its own methods, which find ``prior`` here and all else there."""

    def __init__(self, latent: Any, prior: Any) -> None:
        self.__dict__.update(_latent=latent, prior=prior)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._latent, name)
        return partial(found.__func__, self) if hasattr(found, "__func__") else found

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._latent, name, value)
