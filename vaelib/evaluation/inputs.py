"""What every measure is given: a model, and images from whatever holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vaelib._checks import DataError, check_generator, check_int, check_tensor, check_unit_range, shown
from vaelib.vae import VAE

__all__ = ["BatchSource", "as_batches", "batches_for", "check_data", "check_vae", "device_of"]


@runtime_checkable
class BatchSource(Protocol):
    """A set that moves to a device and cuts itself into batches, as ``vaelib.data.ImageDataset`` does."""

    def to(self, device: torch.device | str) -> BatchSource:
        """The same set on ``device``."""

    def batches(
        self, batch_size: int, *, shuffle: bool = False, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        """float32 batches ``(B, C, H, W)`` in [0, 1]."""


def as_batches(
    data: Tensor | BatchSource | Iterable[Any],
    batch_size: int,
    *,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """One pass of image batches from a tensor, an ``ImageDataset``, or a loader (first of what it yields).

    Raises:
        TypeError: If something else is yielded.
    """
    batch_size = check_int("batch_size", batch_size)
    check_generator(generator)
    if isinstance(data, BatchSource):
        yield from data.batches(batch_size, shuffle=shuffle, generator=generator)
        return
    check_data("data", data)
    for batch in data.split(batch_size) if isinstance(data, Tensor) else data:
        images = batch[0] if isinstance(batch, list | tuple) else batch
        if not isinstance(images, Tensor):
            raise TypeError(
                "`data` must be images, an ImageDataset, or yield batches of images, alone or first of a tuple;"
                f" got {type(images).__name__} from {type(data).__name__}."
            )
        check_tensor("data", images, floating=False)
        check_unit_range("x", images)  # an ImageDataset has been checked when it was made
        yield images


def batches_for(
    model: nn.Module,
    data: Tensor | BatchSource | Iterable[Any],
    batch_size: int,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """One pass on the model's device, at least one image in each batch.

    What a set draws itself, such as dynamic binarisation, comes from a generator of its own that ``generator``'s state
    seeds, so the same state gives the same images whatever the model draws between them.

    Raises:
        DataError: A ``ValueError``: if there is no image.
        TypeError: If ``data`` are no images.
    """
    device, empty = device_of(model), True
    check_generator(generator)
    if isinstance(data, BatchSource):
        data = data.to(device)
    if generator is not None:
        state, generator = generator.get_state(), torch.Generator(generator.device)
        generator.set_state(state)
        generator.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
    for images in as_batches(data, batch_size, generator=generator):
        if len(images):
            empty = False
            yield images.to(device)
    if empty:
        raise DataError("`data` must hold at least one image, got none.")


def check_data(name: str, data: object) -> None:
    """Raise ``TypeError`` unless ``data`` may hold images: it can be iterated, and is no text, mapping or scalar."""
    is_scalar = getattr(data, "ndim", 1) == 0
    if (
        is_scalar
        or isinstance(data, str | bytes | bytearray | memoryview | Mapping | type)
        or not isinstance(data, Iterable)
    ):
        raise TypeError(f"`{name}` must be images, an ImageDataset, or batches of images, got {shown(data)}.")
    if isinstance(data, Tensor):
        check_tensor(name, data, floating=False)


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are; the CPU of one without."""
    return next(model.parameters(), torch.empty(0)).device


def check_vae(name: str, model: object) -> None:
    """Raise ``TypeError`` unless ``model`` is a VAE."""
    if not isinstance(model, VAE):
        raise TypeError(f"`{name}` must be a VAE, got {type(model).__name__}.")
