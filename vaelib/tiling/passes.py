"""Passes of a network over tiles, in torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from vaelib._tiles import Axis, assembled, reflected, refused, tiles_by_section
from vaelib.tiling.field import Field, Refusal, field_and_calls
from vaelib.tiling.sizes import size_dependence
from vaelib.tiling.traces import Called

__all__ = [
    "COLUMNS",
    "ROWS",
    "InTiles",
    "fields_of",
    "free_axes",
    "multiple_of",
    "sections_of",
    "sharing_copy",
    "to_whole_steps",
]

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


class Section(NamedTuple):
    """One of the networks that a network consists of, one after the other."""

    network: nn.Module
    examples: list[Tensor]
    found: Field | Refusal
    calls: list[Called]


@torch.no_grad()
def sections_of(network: nn.Module, examples: Sequence[Tensor]) -> list[Section]:
    """The ``sections()`` of the network, if it has any and all have a bound; else itself."""
    found: list[Section] = []
    given = list(examples)
    sections: Any = getattr(network, "sections", tuple)
    for section in sections() if len(examples) == 1 else ():
        field, calls = field_and_calls(section, given)
        if isinstance(field, Refusal):
            found = []
            break
        found.append(Section(section, given, field, calls))
        few = section(given[0][:, :, : 8 * field.rows.step, : 8 * field.columns.step])
        sides = [size // axis.step * axis.cells for size, axis in zip(given[0].shape[2:], field, strict=True)]
        given = [given[0].new_zeros(1, tree_leaves(few)[0].shape[1], *sides)]
    return found or [Section(network, list(examples), *field_and_calls(network, examples))]


def fields_of(sections: Sequence[Section]) -> list[Field]:
    """The receptive field of each; none of a section without a bound."""
    return [each.found for each in sections if isinstance(each.found, Field)]


class InTiles(nn.Module):
    """A network that is computed tile by tile.

    A network of which one tile is the whole is called at once. Else its receptive field is read off its trace, again
    whenever a module, an attribute or the code of a layer has changed.

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
        self._pixels = max(scale) // scale[0]

    def forward(self, x: Tensor, *more: Tensor) -> Any:
        """What the network gives for all of ``x``."""
        if max(x.shape[2:]) * self._pixels <= self._tile:
            result = self.network(x, *more)
            return result if self._finish is None else self._finish(result)
        example = x.new_zeros(1, x.shape[1], ROWS * self._scale[0], COLUMNS * self._scale[0])
        sections = sections_of(self.network, [example, *(each[:1].detach() for each in more)])
        refusal = _refusal(sections, x.shape[2:], self._tile)
        if refusal is not None and not self._blend:
            raise ValueError(refused(self._name, refusal))
        if refusal is None:
            networks, all_axes = [each.network for each in sections], fields_of(sections)
        else:
            networks, all_axes = [self.network], [Field(Axis(*self._scale), Axis(*self._scale))]
        tiles = tiles_by_section(all_axes, x.shape[2:], self._tile, exact=refusal is None)
        for network, axes, parts in zip(networks, all_axes, tiles, strict=True):
            finish = self._finish if network is networks[-1] else None
            found = _computed(network, more, finish, x, axes, parts)
            x = tree_leaves(found)[0]
        return found


def _computed(
    network: nn.Module,
    more: Sequence[Tensor],
    finish: Callable[[Any], Any] | None,
    x: Tensor,
    axes: Any,
    parts: Any,
) -> Any:
    structures = []

    def call(values: Tensor) -> list[Tensor]:
        result = network(values, *more)
        leaves, structure = tree_flatten(result if finish is None else finish(result))
        structures.append(structure)
        return leaves

    leaves = assembled(
        call,
        x,
        axes,
        parts,
        empty=lambda like, shape: like.new_zeros(shape),
        like=lambda like, numbers: like.new_tensor(numbers),
    )
    return tree_unflatten(leaves, structures[0])


def _refusal(sections: Sequence[Section], size: Sequence[int], tile: int) -> Refusal | None:
    """Why the tiles of an input of this size would not be exact."""
    for each in sections:
        if isinstance(each.found, Refusal):
            return each.found
    fields = fields_of(sections)
    for section, field, parts in zip(sections, fields, tiles_by_section(fields, size, tile), strict=True):
        both = list(zip(parts, field, strict=True))
        sizes = [
            tuple(of[-1].last * axis.step for of, axis in both),
            tuple(of[0].stop * axis.step for of, axis in both),
        ]
        sizes = sizes if sizes[0] != sizes[1] else sizes[:1]
        dependence = size_dependence(section.network, section.examples, sizes, section.calls)
        if dependence is not None:
            return dependence._replace(layer=dependence.layer.replace("`network.", "`"))
    return None
