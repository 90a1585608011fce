"""Images and latent maps of any size, tile by tile, so that memory is bounded by the tile."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from vaelib._tiles import Axis, assembled, reflected, refused, tiles_asked, tiles_by_section
from vaelib.runtime import opened
from vaelib.runtime.contract import item_shape
from vaelib.runtime.inputs import Array, rows_for
from vaelib.runtime.opened import Graphs

__all__ = ["Tiles", "decoded", "encoded"]

Tiles = tuple[Any, Any]
"""The arguments ``tile`` and ``blend`` of a method."""


def encoded(
    graphs: Graphs, images: Any, outputs: tuple[str, ...], tiles: Tiles, *, is_cropped: bool = False
) -> list[Array]:
    """What the encoder gives for images; with tiles, of any height and width.

    Those are reflected at the bottom and on the right, up to whole cells of the latent map; a warning reports it unless
    the caller crops what is decoded.

    Raises:
        ValueError: If the bundle is of one size, the tile is too small, or the graph has no bound and is not blended.
        TypeError: If ``tile`` is no whole number, or ``blend`` no bool.
    """
    if not tiles_asked(*tiles):
        return graphs.ask("encoder", "image", images, "images", outputs)
    sections = _sections(graphs, "encoder", "image", tiles)
    multiple = graphs.multiple or 1
    if isinstance(images, np.ndarray) and images.ndim == 4 and 0 not in images.shape[2:]:
        height, width = images.shape[2:]
        if height % multiple or width % multiple:
            rows, columns = (reflected(size, multiple) for size in (height, width))
            images = images[:, :, rows][:, :, :, columns]
            if not is_cropped:
                warnings.warn(
                    f"`images` of {height} x {width} are reflected at the bottom and on the right to {len(rows)} x"
                    f" {len(columns)}, multiples of {multiple}: crop what you decode of them.",
                    UserWarning,
                    stacklevel=3,
                )
    return _in_tiles(graphs, ("encoder", "image", "images"), images, outputs, sections, tiles)


def decoded(graphs: Graphs, z: Any, output: str, tiles: Tiles) -> Array:
    """What the decoder gives for latents; raises as :func:`encoded`."""
    if not tiles_asked(*tiles):
        return graphs.ask("decoder", "z", z, "z", (output,))[0]
    sections = _sections(graphs, "decoder", "z", tiles)
    return _in_tiles(graphs, ("decoder", "z", "z"), z, (output,), sections, tiles)[0]


class _Section(NamedTuple):
    """What is computed tile by tile: a graph, or the nodes of it that follow those of the section before."""

    given: str
    """The name of what it is given."""
    axes: tuple[Axis, Axis]
    channels: int = 0
    """Of what it is given, where that lies within the graph."""


def _in_tiles(
    graphs: Graphs, of: tuple[str, str, str], values: Any, outputs: tuple[str, ...], sections: _Sections, tiles: Tiles
) -> list[Array]:
    """An image after the other, and one tile at a time with all threads: memory is that of one tile."""
    part, name, called = of
    values = graphs.checked(part, name, values, called)
    if not len(values):
        return graphs.ask(part, name, values, called, outputs)
    sides = [
        size // axis.step * max(axis.step, axis.cells)
        for size, axis in zip(values.shape[2:], sections.whole.axes, strict=True)
    ]
    used = sections.parts if sections.parts and max(sides) > tiles[0] else [sections.whole]
    cut = tiles_by_section([each.axes for each in used], values.shape[2:], tiles[0], exact=sections.are_exact)
    found = []
    for i, view in enumerate(_one_by_one(graphs, part, len(values))):
        results = [values[i : i + 1]]
        for section, after, parts in zip(used, [*used[1:], None], cut, strict=True):
            results = assembled(
                partial(view.ask, part, name, called=called, outputs=outputs)
                if len(used) == 1
                else _section_of(view, of, section, after, outputs),
                results[0],
                section.axes,
                parts,
                empty=lambda like, shape: np.zeros(shape, like.dtype),
                like=lambda like, numbers: np.array(numbers, like.dtype),
            )
        found.append(results)
    return found[0] if len(found) == 1 else [np.concatenate(results) for results in zip(*found, strict=True)]


def _section_of(
    graphs: Graphs, of: tuple[str, str, str], section: _Section, after: _Section | None, outputs: tuple[str, ...]
) -> Callable[[Array], list[Array]]:
    """Computes tiles of what ``after`` is given; of the outputs if there is none."""
    part, _, called = of
    run = opened.section(graphs, part, section.given, called, outputs if after is None else (after.given,))

    def call(tile: Array) -> list[Array]:
        size = [n // axis.step * axis.cells for n, axis in zip(tile.shape[2:], section.axes, strict=True)]
        wanted = _shapes(graphs, part, outputs, size) if after is None else {after.given: (after.channels, *size)}
        return run(tile, wanted)

    return call


def _shapes(graphs: Graphs, part: str, outputs: tuple[str, ...], size: list[int]) -> dict[str, Any]:
    """Of one item of each output, of this height and width."""
    multiple = graphs.multiple or 1
    rows, columns = size if part == "encoder" else (side // multiple for side in size)
    axes = {"h": rows, "w": columns, "H": rows * multiple, "W": columns * multiple}
    return {name: item_shape(graphs.contract[part].outputs[name], axes) for name in outputs}


class _Sections(NamedTuple):
    whole: _Section
    parts: list[_Section]
    """The same in several, each of which looks less far; none of most graphs."""
    are_exact: bool


def _sections(graphs: Graphs, part: str, name: str, tiles: Tiles) -> _Sections:
    tiling, multiple = graphs.metadata["tiling"], graphs.multiple
    if tiling is None or multiple is None:
        raise ValueError(
            "`tile` must be None for a bundle of one image size, or of a vaelib without tiles: export the model again,"
            " with dynamic_size=True."
        )
    found = tiling[part]
    if "rows" in found:
        parts = [_Section(each["given"], _both(each), each["channels"]) for each in found.get("sections", [])]
        return _Sections(_Section(name, _both(found)), parts, are_exact=True)
    if not tiles[1]:
        raise ValueError(refused(part, f"{found['layer']} {found['reason']}"))
    axis = Axis(multiple, 1) if part == "encoder" else Axis(1, multiple)
    return _Sections(_Section(name, (axis, axis)), [], are_exact=False)


def _both(found: Mapping[str, Any]) -> tuple[Axis, Axis]:
    return Axis(**found["rows"]), Axis(**found["columns"])


def _one_by_one(graphs: Graphs, part: str, count: int) -> list[Graphs]:
    """The graphs for each image of a batch, with its own condition."""
    if graphs.condition is None or len(graphs.condition) <= 1:
        return [graphs] * count
    views = []
    for row in rows_for(graphs.condition, count, draws=part != "encoder"):
        view = copy.copy(graphs)
        view.condition = row[None]
        views.append(view)
    return views
