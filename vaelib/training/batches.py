"""Which images make up each step, and their way to the training device.

A step is over ``batch_size`` images, whatever does the work: each of P processes takes its share, in A pieces if
gradients are accumulated. Order and shares follow from the seed and the epoch alone: a position in them is one number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from vaelib._images import Batch, ImageSet, as_batch, as_batches, check_condition, even_parts, opened
from vaelib.data import ImageDataset
from vaelib.training.hardware import isolated, random_states, restore_random
from vaelib.vae import condition_of

__all__ = ["Batches", "LoaderBatches", "Piece", "Share", "batches_of", "first_batch", "on_device"]

_EXAMPLES = 256  # images to draw and for the count of dead latents


class Piece(NamedTuple):
    """What one backward pass is over."""

    batch: Batch
    """On the training device."""
    weight: float
    """Its share of the step's images, times the processes, whose gradients are averaged."""


class Share(NamedTuple):
    """The part of every step that is this process's."""

    rank: int = 0
    processes: int = 1
    accumulate: int = 1


class IndexedBatches:
    """Batches of a set whose images can be had by number."""

    def __init__(self, data: ImageSet, batch_size: int, share: Share, seed: int, device: torch.device) -> None:
        self._data, self._share, self._seed, self._device = data, share, seed, device
        self.num_images = len(data)
        self._parts = even_parts(len(data), batch_size)
        pieces = share.processes * share.accumulate
        smallest = len(data) // len(self._parts)
        if smallest < pieces:
            raise ValueError(
                f"`batch_size` must give each of {share.processes} processes at least {share.accumulate} images a step"
                f" (`accumulate`), got steps of {smallest} images."
            )

    def __len__(self) -> int:
        return len(self._parts)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Piece]]:
        """The pieces of each step of an epoch (counted from 1), from step ``start`` of it on."""
        seed = int(np.random.SeedSequence([self._seed, epoch]).generate_state(1, np.uint32)[0])
        order = torch.randperm(self.num_images, generator=torch.Generator().manual_seed(seed))
        steps = [self._pieces(order[first:last]) for first, last in self._parts[start:]]
        batches = self._data.fetch((indices for step in steps for indices, _ in step), self._device, seed=seed)
        for step in steps:
            yield [Piece(next(batches), weight) for _, weight in step]

    def _pieces(self, indices: Tensor) -> list[tuple[Tensor, float]]:
        rank, processes, accumulate = self._share
        mine = indices.tensor_split(processes * accumulate)[rank * accumulate : (rank + 1) * accumulate]
        return [(piece, len(piece) / len(indices) * processes) for piece in mine]


class LoaderBatches:
    """Batches of somebody else's loader, one step each; ``condition`` is the model's part, or None."""

    def __init__(self, loader: Any, share: Share, device: torch.device, condition: Any = None) -> None:
        if not hasattr(loader, "__len__") or len(loader) == 0:
            raise ValueError("`train` must be images, or a loader of known length that is not empty.")
        if share.accumulate > 1:
            raise ValueError(
                f"`accumulate` must be 1 for a loader, which cuts its own batches, got {share.accumulate}."
            )
        sampler = getattr(loader, "sampler", None)
        if share.processes > 1 and not isinstance(sampler, DistributedSampler):
            raise ValueError(
                f"`train` must be images, a stream, or a DataLoader with a DistributedSampler for {share.processes}"
                f" processes, got {type(loader).__name__}."
            )
        self._loader, self._device, self._sampler, self._condition = loader, device, sampler, condition
        self._generator: torch.Generator | None = getattr(loader, "generator", None)
        self._state: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._loader)

    def state_dict(self) -> dict[str, Any]:
        """The random states at the start of the epoch, from which its order follows, and now."""
        return {"start": self._state, "now": self._capture()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self._state = state["start"]
        self._restore(state["now"])

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Piece]]:
        """The batches of an epoch; those before ``start`` are drawn again and skipped."""
        if isinstance(self._sampler, DistributedSampler):
            self._sampler.set_epoch(epoch)
        now = self._capture()
        if start:
            self._restore(self._state)
        else:
            self._state = now
        batches = iter(self._loader)
        for _ in range(start):
            next(batches)
        if start:
            restore_random(now["random"], self._device)
        for batch in batches:
            yield [Piece(as_batch("train", batch, self._condition).to(self._device), 1.0)]

    def _capture(self) -> dict[str, Any]:
        state: dict[str, Any] = {"random": random_states(self._device)}
        return state if self._generator is None else state | {"generator": self._generator.get_state()}

    def _restore(self, state: dict[str, Any]) -> None:
        restore_random(state["random"], self._device)
        if self._generator is not None:
            self._generator.set_state(state["generator"])


Batches = IndexedBatches | LoaderBatches


def batches_of(data: Any, batch_size: int, share: Share, seed: int, device: torch.device, condition: Any) -> Batches:
    """The steps of a set, or of somebody else's loader."""
    if isinstance(data, ImageSet):
        return IndexedBatches(data, batch_size, share, seed, device)
    return LoaderBatches(data, share, device, condition)


def on_device(name: str, data: Any, model: nn.Module, device: torch.device) -> Any:
    """Images by number, of the model's shape, or somebody else's loader.

    Images in memory move to the device once and for all, if they fit; streams and loaders stay what they are.
    """
    if data is None and name == "val":
        return None
    condition = condition_of(model)
    data = opened(name, data, condition)
    if isinstance(data, Tensor | Batch):
        data = ImageDataset(data) if isinstance(data, Tensor) else ImageDataset(data.x, condition=data.condition)
    if condition is None:
        check_condition(name, data, None)
    if not isinstance(data, ImageSet):
        if iter(data) is data:
            raise TypeError(f"`{name}` must be images, or a loader that can be passed over again, got an iterator.")
        return data
    wanted = tuple(getattr(model, "image_shape", data.image_shape))
    if tuple(data.image_shape) != wanted:
        raise ValueError(
            f"`{name}` must have images of the model's shape {wanted}, got {tuple(data.image_shape)};"
            " vaelib.data.load(..., image_size=...) resizes."
        )
    if not isinstance(data, ImageDataset):
        return data
    fits = device.type != "cuda" or data.images.nbytes <= torch.cuda.mem_get_info(device)[0] // 2
    return data.to(device) if fits else data


def first_batch(name: str, data: Any, device: torch.device, condition: Any = None) -> Batch:
    """The first 256 images, with fixed draws of their own; ``condition`` is the model's part, or None."""
    with isolated(device):
        set_seed(0)
        if isinstance(data, ImageSet):
            return next(data.fetch([torch.arange(min(_EXAMPLES, len(data)))], device))
        generator = getattr(data, "generator", None)
        state = None if generator is None else generator.get_state()
        x, rows = next(as_batches(name, data, _EXAMPLES, device, condition=condition))
        if generator is not None:
            generator.set_state(state)
        return Batch(x[:_EXAMPLES], None if rows is None else rows[:_EXAMPLES])
