"""What every measure is given: a model, and images from whatever holds them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from vaelib._checks import DataError, check_generator, check_int, check_shape, check_tensor, check_unit_range, shown
from vaelib.vae import VAE

__all__ = [
    "BatchSource",
    "as_batches",
    "batches_for",
    "check_data",
    "check_model",
    "check_vae",
    "device_of",
    "images_of_batch",
    "opened",
]

IMAGE_KEYS = ("image", "images", "pixel_values", "img", "x")
"""Names under which batches that are dicts may hold their images."""


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
    name: str = "data",
) -> Iterator[Tensor]:
    """One pass of image batches from an array, a set of vaelib's, a ``TensorDataset``, a ``Subset``, or a loader.

    Errors call the data by ``name``.

    Raises:
        TypeError: If something else is yielded; see :func:`images_of_batch`.
    """
    batch_size = check_int("batch_size", batch_size)
    check_generator(generator)
    data = opened(name, data)
    if isinstance(data, BatchSource):
        yield from data.batches(batch_size, shuffle=shuffle, generator=generator)
        return
    check_data(name, data)
    for batch in data.split(batch_size) if isinstance(data, Tensor) else data:
        yield images_of_batch(name, batch)


def opened(name: str, data: Any) -> Any:
    """What numpy arrays, ``TensorDataset`` and ``Subset`` hold: a tensor, or a set of vaelib's; all else as it is.

    Raises:
        TypeError: If ``data`` is another ``Dataset`` of single images, or an array of another dtype.
    """
    if isinstance(data, BatchSource):
        return data
    if isinstance(data, TensorDataset):
        data = data.tensors[0]
    if isinstance(data, np.ndarray):
        data = _tensor(name, data)
    if isinstance(data, Tensor):
        _check_8_bit(name, data)
        return data
    if isinstance(data, Subset):
        whole, indices = opened(name, data.dataset), torch.as_tensor(data.indices, dtype=torch.long)
        return whole[indices] if isinstance(whole, Tensor) else whole.subset(indices)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(
            f"`{name}` must be images or batches of images, got {type(data).__name__}, a Dataset of single images:"
            " give torch.utils.data.DataLoader(dataset, batch_size=...)."
        )
    return data


def images_of_batch(name: str, batch: Any) -> Tensor:
    """Floating-point images of what a loader yields: alone, first of a tuple, or under one of ``IMAGE_KEYS``.

    8-bit images are divided by 255; those of numpy become float32.

    Raises:
        TypeError: If there are no images, or of another dtype.
        ValueError: If values leave [0, 1], or 8-bit values are 0 and 1 alone, which may mean either range.
    """
    images = batch
    if isinstance(batch, Mapping):
        keys = [key for key in IMAGE_KEYS if key in batch]
        if len(keys) != 1:
            raise TypeError(
                f"`{name}` must be images, an ImageDataset, or batches with one of the keys {', '.join(IMAGE_KEYS)};"
                f" got {type(batch).__name__} with the keys {', '.join(map(str, batch)) or 'none'}."
            )
        images = batch[keys[0]]
    elif isinstance(batch, list | tuple) and batch:
        images = batch[0]
    if isinstance(images, np.ndarray):
        images = _tensor(name, images)
    if not isinstance(images, Tensor):
        raise TypeError(
            f"`{name}` must be images, an ImageDataset, or yield batches of images, alone, first of a tuple or in a"
            f" dict; got {type(images).__name__} in {type(batch).__name__}."
        )
    check_tensor(name, images, floating=False)
    if images.dtype == torch.uint8:
        _check_8_bit(name, images)
        return images.float().div_(255)
    check_unit_range(name, images)  # an ImageDataset has been checked when it was made
    check_tensor(name, images)
    return images


def _tensor(name: str, images: np.ndarray) -> Tensor:
    """8-bit as it is, floats as float32; shares the array's memory where torch can."""
    if isinstance(images, np.ma.MaskedArray) or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
        kind = "a masked array" if isinstance(images, np.ma.MaskedArray) else f"dtype {images.dtype}"
        raise TypeError(f"`{name}` must be uint8, or floating point in [0, 1], got {kind}.")
    check_shape(name, images.shape, ("N", "C", "H", "W"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing here writes to it
        return torch.from_numpy(np.ascontiguousarray(images, np.uint8 if images.dtype == np.uint8 else np.float32))


def _check_8_bit(name: str, images: Tensor) -> None:
    if images.dtype == torch.uint8 and images.numel() and int(images.max()) == 1:
        raise ValueError(
            f"`{name}` must be clear about its range, got 8-bit values of 0 and 1: give floats, or 0 and 255."
        )


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
    data = opened("data", data)
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
    if isinstance(data, BatchSource | TensorDataset | Subset):  # an ImageDataset has no iterator of its own
        return
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
    """Raise ``TypeError`` unless ``model`` is a VAE whose latent has a prior."""
    if not (isinstance(model, VAE) and model.latent.has_prior):
        raise TypeError(f"`{name}` must be a VAE, got {type(model).__name__}.")


def check_model(name: str, model: object) -> None:
    """Raise ``TypeError`` unless ``model`` is a VAE or an autoencoder."""
    if not isinstance(model, VAE):
        raise TypeError(f"`{name}` must be a VAE or an AutoEncoder, got {type(model).__name__}.")
