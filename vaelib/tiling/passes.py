"""Passes of a network over tiles, in torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from vaelib._tiles import Axis, assembled, reflected, refused, tiles_of
from vaelib.tiling.field import Field, Refusal, receptive_field
from vaelib.tiling.sizes import size_dependence

__all__ = ["COLUMNS", "ROWS", "InTiles", "free_axes", "multiple_of", "sharing_copy", "to_whole_steps"]

ROWS, COLUMNS = 48, 80
"""Steps of the example that a network is traced with: large against any padding, and multiples of many strides."""


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

    Its receptive field is read off again at each call: whatever the code of a layer reads may have changed.

    Args:
        name: What it is called, for the errors.
        network: Maps feature maps ``(B, C, H, W)`` to one or several of one size.
        scale: Input and output cells by step, if the network has no bound.
        tile: The longest side of a tile in pixels, overlap included.
        blend: Whether to blend the tiles of a network that has no bound; else it is refused.
        finish: What is done with the result of each tile, cell by cell, before tiles are put together.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        scale: tuple[int, int],
        tile: int,
        blend: bool,
        finish: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.takes_condition = network, getattr(network, "takes_condition", False)
        self._name, self._scale, self._tile, self._blend, self._finish = name, scale, tile, blend, finish

    def forward(self, x: Tensor, *more: Tensor) -> Any:
        """What the network gives for all of ``x``."""
        example = x.new_zeros(1, x.shape[1], ROWS * self._scale[0], COLUMNS * self._scale[0])
        examples = [example, *(each[:1].detach() for each in more)]
        found = receptive_field(self.network, examples)
        if isinstance(found, Field):
            found = size_dependence(self.network, examples, self._sizes(x, found)) or found
        if isinstance(found, Refusal) and not self._blend:
            raise ValueError(refused(self._name, found))
        axes = self._axes(found)
        structures = []

        def call(values: Tensor) -> list[Tensor]:
            result = self.network(values, *more)
            leaves, structure = tree_flatten(result if self._finish is None else self._finish(result))
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

    def _axes(self, found: Field | Refusal) -> tuple[Axis, Axis]:
        return tuple(found) if isinstance(found, Field) else (Axis(*self._scale),) * 2  # type: ignore[return-value]

    def _sizes(self, x: Tensor, field: Field) -> list[tuple[int, ...]]:
        """Height and width of the whole and of a tile."""
        whole = tuple(x.shape[2:])
        parts = tiles_of(field, whole, self._tile)
        tile = tuple((of[0].stop - of[0].start) * axis.step for of, axis in zip(parts, field, strict=True))
        return [whole] if tile == whole else [whole, tile]
