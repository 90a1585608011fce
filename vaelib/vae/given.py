"""A model with a condition bound: the same verbs, so that no objective and no evaluation asks for it."""

from __future__ import annotations

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
