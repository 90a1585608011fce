"""Images and latent maps of any size, tile by tile, so that memory is bounded by the tile."""

from __future__ import annotations

import copy
import warnings
from typing import Any, NamedTuple

import numpy as np

from vaelib._tiles import Axis, assembled, reflected, refused, tiles_asked, tiles_of
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
    axes = _axes(graphs, "encoder", tiles)
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
    return _in_tiles(graphs, ("encoder", "image", "images"), images, outputs, axes, tiles)


def decoded(graphs: Graphs, z: Any, output: str, tiles: Tiles) -> Array:
    """What the decoder gives for latents; raises as :func:`encoded`."""
    if not tiles_asked(*tiles):
        return graphs.ask("decoder", "z", z, "z", (output,))[0]
    axes = _axes(graphs, "decoder", tiles)
    return _in_tiles(graphs, ("decoder", "z", "z"), z, (output,), axes, tiles)[0]


def _in_tiles(
    graphs: Graphs, of: tuple[str, str, str], values: Any, outputs: tuple[str, ...], axes: _Axes, tiles: Tiles
) -> list[Array]:
    """An image after the other, and one tile at a time with all threads: memory is that of one tile."""
    part, name, called = of
    values = graphs.checked(part, name, values, called)
    if not len(values):
        return graphs.ask(part, name, values, called, outputs)
    cut = tiles_of(axes.both, values.shape[2:], tiles[0], exact=axes.are_exact)
    found = [
        assembled(
            lambda tile, view=view: view.ask(part, name, tile, called, outputs),  # type: ignore[misc]
            values[i : i + 1],
            axes.both,
            cut,
            empty=lambda like, shape: np.zeros(shape, like.dtype),
            like=lambda like, numbers: np.array(numbers, like.dtype),
        )
        for i, view in enumerate(_one_by_one(graphs, part, len(values)))
    ]
    return found[0] if len(found) == 1 else [np.concatenate(results) for results in zip(*found, strict=True)]


class _Axes(NamedTuple):
    both: tuple[Axis, Axis]
    are_exact: bool


def _axes(graphs: Graphs, part: str, tiles: Tiles) -> _Axes:
    tiling, multiple = graphs.metadata["tiling"], graphs.multiple
    if tiling is None or multiple is None:
        raise ValueError(
            "`tile` must be None for a bundle of one image size, or of a vaelib without tiles: export the model again,"
            " with dynamic_size=True."
        )
    found = tiling[part]
    if "rows" in found:
        return _Axes((Axis(**found["rows"]), Axis(**found["columns"])), are_exact=True)
    if not tiles[1]:
        raise ValueError(refused(part, f"{found['layer']} {found['reason']}"))
    axis = Axis(multiple, 1) if part == "encoder" else Axis(1, multiple)
    return _Axes((axis, axis), are_exact=False)


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
