"""Images and latent maps of any size, tile by tile, so that memory is bounded by the tile."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np

from vaelib._checks import check_bool, check_int
from vaelib._tiles import Axis, assembled, reflected, refused, tiles_of
from vaelib.runtime.engine import Array
from vaelib.runtime.inputs import rows_for
from vaelib.runtime.opened import Graphs

__all__ = ["Tiles", "ask", "to_whole_cells"]

Tiles = tuple[int | None, bool]
"""The arguments ``tile`` and ``blend`` of a method."""


def ask(
    graphs: Graphs, part: str, name: str, values: Any, called: str, outputs: tuple[str, ...], tiles: Tiles
) -> list[Array]:
    """As :meth:`Graphs.ask`, tile by tile if ``tiles`` says so: an image after the other, one tile at a time.

    Raises:
        ValueError: If the bundle is of one size, the tile is too small, or the graph has no bound and is not blended.
        TypeError: If ``tile`` is no whole number, or ``blend`` no bool.
    """
    tile, blend = tiles
    if tile is None and not blend:
        return graphs.ask(part, name, values, called, outputs)
    check_bool("blend", blend)
    axes, is_exact = _axes(graphs, part, blend)
    values = graphs.checked(part, name, values, called)
    parts = tiles_of(axes, values.shape[2:], check_int("tile", tile), exact=is_exact)
    images = [
        assembled(
            lambda cut, one=one: one.ask(part, name, cut, called, outputs),  # type: ignore[misc]
            values[i : i + 1],
            axes,
            parts,
            empty=lambda like, shape: np.zeros(shape, like.dtype),
            like=lambda like, numbers: np.array(numbers, like.dtype),
        )
        for i, one in enumerate(_one_by_one(graphs, part, len(values)))
    ]
    if len(images) == 1:
        return images[0]
    if not images:
        return graphs.ask(part, name, values, called, outputs)
    return [np.concatenate(results) for results in zip(*images, strict=True)]


def to_whole_cells(graphs: Graphs, images: Any, tiles: Tiles, *, is_cropped: bool) -> Any:
    """The images, with tiles reflected at the bottom and on the right, up to whole cells of the latent map.

    A warning says so unless the caller crops what is decoded.
    """
    multiple = graphs.multiple
    if tiles == (None, False) or multiple is None or not isinstance(images, np.ndarray) or images.ndim != 4:
        return images
    height, width = images.shape[2:]
    if not height or not width or (height % multiple == width % multiple == 0):
        return images
    rows, columns = (reflected(size, multiple) for size in (height, width))
    if not is_cropped:
        warnings.warn(
            f"`images` of {height} x {width} are reflected at the bottom and on the right to {len(rows)} x"
            f" {len(columns)}, multiples of {multiple}: crop what you decode of them.",
            UserWarning,
            stacklevel=3,
        )
    return images[:, :, rows][:, :, :, columns]


def _axes(graphs: Graphs, part: str, blend: bool) -> tuple[tuple[Axis, Axis], bool]:
    """Of the graph, and whether its tiles are exact."""
    tiling, multiple = graphs.metadata["tiling"], graphs.multiple
    if tiling is None or multiple is None:
        raise ValueError(
            "`tile` must be None for a bundle of one image size, or of a vaelib without tiles: export the model again,"
            " with dynamic_size=True."
        )
    found = tiling[part]
    if "rows" in found:
        return (Axis(**found["rows"]), Axis(**found["columns"])), True
    if not blend:
        raise ValueError(refused(part, f"{found['layer']} {found['reason']}"))
    axis = Axis(multiple, 1) if part == "encoder" else Axis(1, multiple)
    return (axis, axis), False


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
