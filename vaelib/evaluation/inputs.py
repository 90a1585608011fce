"""What every measure is given: a model, and images from whatever holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vaelib._checks import DataError, check_generator
from vaelib._images import Batch, ImageSet, as_batches
from vaelib.vae import VAE

__all__ = ["batches_for", "check_model", "check_vae", "device_of"]


def batches_for(
    model: nn.Module,
    data: Tensor | ImageSet | Iterable[Any],
    batch_size: int,
    generator: torch.Generator | None = None,
) -> Iterator[Batch]:
    """One pass on the model's device, at least one image in each batch.

    What a set draws itself, such as dynamic binarisation, comes from a generator of its own that ``generator``'s state
    seeds, so the same state gives the same images whatever the model draws between them.

    Raises:
        DataError: A ``ValueError``: if there is no image.
        TypeError: If ``data`` are no images.
    """
    empty = True
    check_generator(generator)
    if generator is not None:
        seed = int(torch.randint(2**62, (), generator=generator.clone_state(), device=generator.device))
        generator = torch.Generator(generator.device).manual_seed(seed)
    for batch in as_batches("data", data, batch_size, device_of(model), generator=generator):
        if len(batch.x):
            empty = False
            yield batch
    if empty:
        raise DataError("`data` must hold at least one image, got none.")


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are; the CPU of one without."""
    return next(model.parameters(), torch.empty(0)).device


def check_vae(name: str, model: object) -> None:
    """Raise ``TypeError`` unless ``model`` is a VAE whose latent has a prior."""
    if not (isinstance(model, VAE) and model.latent.has_prior):
        raise TypeError(f"`{name}` must be a VAE, got {type(model).__name__}.")


def check_model(name: str, model: object) -> None:
    """Raise ``TypeError`` unless ``model`` is a VAE or an autoencoder."""
    if not isinstance(model, VAE):
        raise TypeError(f"`{name}` must be a VAE or an AutoEncoder, got {type(model).__name__}.")
