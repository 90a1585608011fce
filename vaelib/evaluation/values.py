"""Values of images and of models that change what a number means: grey, 8-bit, not finite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from vaelib._images import Batch
from vaelib.functional import at_levels, check_levels
from vaelib.likelihoods import Bernoulli, DiscretizedLogistic

__all__ = ["ImageValues", "check_model_finite"]

_RELAXATION = (
    "Bernoulli on grey values: these nats are a relaxation, the cross-entropy, and no log p(x); their best value is the"
    " entropy of the data, not 0."
)
_NO_CODE_LENGTH = (
    "A density at 8-bit levels k / 255: bits_per_dim is no code length. It bounds one for dequantised images,"
    " (255 * x + u) / 256 with u uniform in [0, 1)."
)


class ImageValues:
    """Which values the images of one pass have under a likelihood.

    Args:
        likelihood: The model's.

    Attributes:
        binary: Whether every value so far is 0 or 1.
        eight_bit: Whether every value so far is a level k / 255.
    """

    def __init__(self, likelihood: Any) -> None:
        self.likelihood = likelihood
        self.binary, self.eight_bit = True, True

    def watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches, each taken into account; ``ValueError`` if the likelihood has no probability for it."""
        for batch in batches:
            self.watch(batch.x)
            yield batch

    def watch(self, images: Tensor) -> None:
        """Take one batch into account."""
        if isinstance(self.likelihood, DiscretizedLogistic):
            check_levels("x", images)
        self.binary = self.binary and bool(((images == 0) | (images == 1)).all())
        self.eight_bit = self.eight_bit and at_levels(images)

    @property
    def note(self) -> str:
        """What the nats and bits are not, in a sentence; empty if they are what their names say."""
        is_density = getattr(self.likelihood, "is_density", False)  # an autoencoder may have no likelihood
        return self.note_on_nats or (_NO_CODE_LENGTH if is_density and self.eight_bit else "")

    @property
    def note_on_nats(self) -> str:
        """The same where no bits are shown."""
        return _RELAXATION if isinstance(self.likelihood, Bernoulli) and not self.binary else ""


def check_model_finite(name: str, what: str, *values: Tensor) -> None:
    """Raise ``ValueError`` if what a model gave for some image is not finite.

    Args:
        name: The model's argument.
        what: What the values are.
        values: One or more ``(N, ...)`` of the same N images.
    """
    good = torch.stack([part.reshape(len(part), -1).isfinite().all(1) for part in values]).all(0)
    bad = int((~good).sum())
    if bad:
        raise ValueError(
            f"`{name}` must give finite numbers, but {what} is not finite for {bad} of {len(good)} images: its weights"
            " are too large or not finite, as after a training that diverged."
        )
