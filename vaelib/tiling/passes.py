"""Passes of a network over tiles, in torch."""

from __future__ import annotations

import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from vaelib._tiles import Axis, assembled, reflected, refused, tiles_of
from vaelib.tiling.field import Field, Refusal, receptive_field

__all__ = ["COLUMNS", "ROWS", "InTiles", "free_axes", "multiple_of", "sharing_copy", "to_whole_steps"]

ROWS, COLUMNS = 48, 80
"""Steps of the example that a network is traced with: large against any padding, and multiples of many strides."""
_known: WeakKeyDictionary[nn.Module, tuple[Any, Field | Refusal]] = WeakKeyDictionary()


def multiple_of(model: Any) -> int | None:
    """Pixels by cell of the latent map, along both sides; None of a latent vector, or if they differ."""
    if len(model.latent_shape) != 3:
        return None
    (_, height, width), (_, rows, columns) = model.image_shape, model.latent_shape
    multiple = height // rows
    return int(multiple) if (multiple * rows, multiple * columns) == (height, width) else None


def free_axes(model: nn.Module) -> None:
    """Let the parts of ``model`` take images and latent maps of every size: a string is a free axis to their checks."""
    for module in model.modules():
        for name in ("image_shape", "latent_shape"):
            if hasattr(module, name):
                setattr(module, name, (getattr(module, name)[0], "H", "W"))


def sharing_copy(model: Any) -> Any:
    """The same modules again, with the same tensors in them."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def to_whole_steps(images: Tensor, multiple: int) -> Tensor:
    """The images, reflected at the bottom and on the right up to the next multiple."""
    for dim in (2, 3):
        if images.shape[dim] and images.shape[dim] % multiple:
            images = images.index_select(
                dim, torch.tensor(reflected(images.shape[dim], multiple), device=images.device)
            )
    return images


class InTiles(nn.Module):
    """A network that is computed tile by tile.

    Args:
        name: What it is called, for the errors.
        network: Maps feature maps ``(B, C, H, W)`` to one or several of one size.
        original: The network that ``network`` is a copy of; its receptive field is kept with it.
        scale: Input and output cells by step, if the network has no bound.
        tile: The longest side of a tile in pixels, overlap included.
        blend: Whether to blend the tiles of a network that has no bound; else it is refused.
    """

    def __init__(
        self, name: str, network: nn.Module, original: nn.Module, scale: tuple[int, int], tile: int, blend: bool
    ) -> None:
        super().__init__()
        self.network, self.takes_condition = network, getattr(network, "takes_condition", False)
        self._name, self._scale, self._tile, self._blend = name, scale, tile, blend
        self._original = [original]  # which is no part of this module

    def forward(self, x: Tensor, *more: Tensor) -> Any:
        """What the network gives for all of ``x``."""
        found = self._field(x, more)
        if isinstance(found, Refusal) and not self._blend:
            raise ValueError(refused(self._name, found))
        axes = tuple(found) if isinstance(found, Field) else (Axis(*self._scale),) * 2
        structures = []

        def call(values: Tensor) -> list[Tensor]:
            leaves, structure = tree_flatten(self.network(values, *more))
            structures.append(structure)
            return leaves

        leaves = assembled(
            call,
            x,
            axes,
            tiles_of(axes, x.shape[2:], self._tile, exact=isinstance(found, Field)),
            empty=lambda like, shape: like.new_zeros(shape),
            like=lambda like, numbers: like.new_tensor(numbers),
        )
        return tree_unflatten(leaves, structures[0])

    def _field(self, x: Tensor, more: tuple[Tensor, ...]) -> Field | Refusal:
        """By the layers as they are now, which is looked up only if they were the same before."""
        original = self._original[0]
        layers = repr(original), [module.training for module in original.modules()], x.shape[1]
        if original not in _known or _known[original][0] != layers:
            example = x.new_zeros(1, x.shape[1], ROWS * self._scale[0], COLUMNS * self._scale[0])
            found = receptive_field(self.network, [example, *(each[:1].detach() for each in more)])
            _known[original] = layers, found
        return _known[original][1]
