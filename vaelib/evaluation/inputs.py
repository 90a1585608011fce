"""What every measure is given: a model, and images from whatever holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from vaelib._checks import DataError, check_generator
from vaelib._images import Batch, ImageSet, as_batches
from vaelib.vae import VAE, Given

__all__ = ["batches_for", "bound", "check_model", "check_vae", "device_of", "quantity_of", "wanted_by"]


def wanted_by(*models: Any) -> Any:
    """The condition that a pass has to have for each image: of the first model that has one and has none bound."""
    parts = (model.condition for model in models if isinstance(model, VAE))
    return next((part for part in parts if part is not None), None)


def bound(model: Any, condition: Tensor | None) -> Any:
    """The model with the condition of a batch; one without a condition, or with one bound, as it is."""
    return model if condition is None or wanted_by(model) is None else model.given(condition)


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
    condition, or one is given, batches have it too.

    Raises:
        DataError: A ``ValueError``: if there is no image.
        ValueError: If a condition is missing, or breaks a rule.
        TypeError: If ``data`` are no images.
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


def check_vae(name: str, model: object) -> None:
    """Raise ``TypeError`` unless ``model`` is a VAE, or a view of one, whose latent has a prior."""
    if not (isinstance(model, VAE | Given) and model.latent.has_prior):
        raise TypeError(f"`{name}` must be a VAE, got {type(model).__name__}.")


def check_model(name: str, model: object) -> None:
    """Raise ``TypeError`` unless ``model`` is a VAE or an autoencoder, or a view of one."""
    if not isinstance(model, VAE | Given):
        raise TypeError(f"`{name}` must be a VAE or an AutoEncoder, got {type(model).__name__}.")
