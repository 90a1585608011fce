"""What every measure is given: a model, and images from whatever holds them; and what their values mean."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from vaelib._checks import DataError, MissingExtraError, check_generator
from vaelib._images import Batch, ImageSet, as_batches
from vaelib.functional import at_levels, check_levels
from vaelib.likelihoods import Bernoulli, DiscretizedLogistic
from vaelib.vae import VAE, Given, condition_of

__all__ = [
    "ImageValues",
    "batches_for",
    "check_model",
    "check_model_finite",
    "check_vae",
    "device_of",
    "metrics_module",
    "quantity_of",
    "wanted_by",
]

_RELAXATION = (
    "Bernoulli on grey values: these nats are a relaxation, the cross-entropy, and no log p(x); their best value is the"
    " entropy of the data, not 0."
)
_NO_CODE_LENGTH = (
    "A density at 8-bit levels k / 255: bits_per_dim is no code length. It bounds one for dequantised images,"
    " (255 * x + u) / 256 with u uniform in [0, 1)."
)


def wanted_by(*models: Any) -> Any:
    """The condition that a pass has to have for each image: of the first model that has one and has none bound."""
    return next((part for part in map(condition_of, models) if part is not None), None)


def quantity_of(model: Any) -> str:
    """What a bound or an estimate of ``model`` is of: log p(x), or log p(x|c) of a model with a condition."""
    is_given = model.condition is not None and not (isinstance(model, Given) and model.is_null)
    return "log p(x|c)" if is_given else "log p(x)"


def batches_for(
    model: Any,
    data: Tensor | ImageSet | Iterable[Any],
    batch_size: int,
    generator: torch.Generator | None = None,
    *,
    condition: Any = None,
) -> Iterator[Batch]:
    """One pass on the model's device, at least one image in each batch.

    What a set draws itself, such as dynamic binarisation, comes from a generator of its own that ``generator``'s state
    seeds, so the same state gives the same images whatever the model draws between them. Where the model has a
    condition, or one is given, batches have it too. ``DataError`` if there is no image.
    """
    empty = True
    check_generator(generator)
    if generator is not None:
        seed = int(torch.randint(2**62, (), generator=generator.clone_state(), device=generator.device))
        generator = torch.Generator(generator.device).manual_seed(seed)
    condition = wanted_by(model) if condition is None else condition
    for batch in as_batches("data", data, batch_size, device_of(model), condition=condition, generator=generator):
        if len(batch.x):
            empty = False
            yield batch
    if empty:
        raise DataError("`data` must hold at least one image, got none.")


def device_of(model: Any) -> torch.device:
    """Where a model's weights are; the CPU of one without."""
    return next(model.parameters(), torch.empty(0)).device


def metrics_module(name: str, what: str) -> Any:
    """A module of the extra ``metrics``, which ``what`` needs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(what, "metrics") from error


def check_vae(name: str, model: object) -> None:
    """Raise ``TypeError`` unless ``model`` is a VAE, or a view of one, whose latent has a prior."""
    if not (isinstance(model, VAE | Given) and model.latent.has_prior):
        raise TypeError(f"`{name}` must be a VAE, got {type(model).__name__}.")


def check_model(name: str, model: object) -> None:
    """Raise ``TypeError`` unless ``model`` is a VAE or an autoencoder, or a view of one."""
    if not isinstance(model, VAE | Given):
        raise TypeError(f"`{name}` must be a VAE or an AutoEncoder, got {type(model).__name__}.")


class ImageValues:
    """Which values the images of one pass have under a likelihood: all 0 or 1, all levels k / 255."""

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
    """Raise ``ValueError`` if ``what`` a model gave for some image, each ``(N, ...)``, is not finite."""
    good = torch.stack([part.reshape(len(part), -1).isfinite().all(1) for part in values]).all(0)
    bad = int((~good).sum())
    if bad:
        raise ValueError(
            f"`{name}` must give finite numbers, but {what} is not finite for {bad} of {len(good)} images: its weights"
            " are too large or not finite, as after a training that diverged."
        )
