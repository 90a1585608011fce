"""Integers only: how an image, or a latent map, is cut into tiles whose results together are the whole's.

Sizes are counted in steps: the cells of a network's input after which its computation repeats, such as 8 pixels for an
encoder of stride 8, and one cell of the latent map for its decoder.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from vaelib._checks import check_bool, check_int

__all__ = ["Axis", "Part", "assembled", "reflected", "refused", "tiles_asked", "tiles_by_section", "tiles_of"]


class Axis(NamedTuple):
    """What the output of a network needs of its input along one axis."""

    step: int
    """Input cells of one step."""
    cells: int
    """Output cells of one step."""
    low: int = 0
    """Steps before its own that an output cell depends on: the receptive radius towards 0."""
    high: int = 0
    """Steps after its own."""
    least: int = 1
    """Steps of the smallest input whose borders are those of a large one; more than 1 with reflected padding."""


class Part(NamedTuple):
    """One tile along one axis, in steps."""

    start: int
    stop: int
    """What is read: ``start <= step < stop``."""
    first: int
    last: int
    """What is kept of it."""
    before: int = 0
    after: int = 0
    """Steps at either end over which it is blended with its neighbour."""

    def weights(self, cells: int) -> list[float]:
        """Weight of each output cell kept: 1, with linear ramps over the overlaps, which add up to 1 with the other's.

        Examples:
            >>> Part(0, 4, 0, 4, before=2).weights(1)
            [0.25, 0.75, 1.0, 1.0]
        """
        before, after, size = self.before * cells, self.after * cells, (self.last - self.first) * cells
        rising = [(i + 0.5) / before if i < before else 1.0 for i in range(size)]
        return [min(weight, (size - i - 0.5) / after if size - i <= after else 1.0) for i, weight in enumerate(rising)]


def tiles_asked(tile: Any, blend: Any) -> bool:
    """Whether the arguments ``tile`` and ``blend`` of a method ask for tiles.

    Raises:
        ValueError: If ``tile`` is below 1, or ``blend`` is True without it.
        TypeError: If ``tile`` is no whole number, or ``blend`` no bool.
    """
    check_bool("blend", blend)
    if tile is not None:
        check_int("tile", tile)
    elif blend:
        raise ValueError("`blend` must be False where `tile` is None: it is how tiles are put together.")
    return tile is not None


def tiles_of(axes: Sequence[Axis], sizes: Sequence[int], tile: int, *, exact: bool = True) -> list[list[Part]]:
    """The tiles of an input of ``sizes`` cells along each axis, whose sides have at most ``tile`` pixels.

    All have one length and overlap on inner edges: by the receptive radius, or by a quarter if the result is to be
    blended.

    Args:
        axes: Of the network.
        sizes: Cells of its input.
        tile: Pixels, of the larger one of input and output.
        exact: False to blend.

    Raises:
        ValueError: If a size is no whole number of steps, or ``tile`` too small.

    Examples:
        >>> (parts,) = tiles_of([Axis(1, 8, low=2, high=1)], [10], tile=48)
        >>> [part[:4] for part in parts]
        [(0, 6, 0, 4), (2, 8, 4, 6), (4, 10, 6, 10)]
    """
    parts = []
    for axis, size in zip(axes, sizes, strict=True):
        steps, rest = divmod(size, axis.step)
        pixels = max(axis.step, axis.cells)
        if rest:
            raise ValueError(
                f"`tile` needs images whose height and width are multiples of {pixels} for this network, got"
                f" {size * pixels // axis.step}."
            )
        overlap = axis.low + axis.high if exact else max(1, tile // pixels // 4)
        least = pixels * (max(overlap + 1, axis.least) if exact else 4)
        if steps * pixels > tile and tile < least:
            why = f", whose outputs depend on {axis.low} + {axis.high} steps of {pixels} pixels around their own"
            raise ValueError(f"`tile` must be at least {least} for this network{why if exact else ''}, got {tile}.")
        parts.append(_parts(axis, steps, tile // pixels, overlap, exact))
    return parts


def _parts(axis: Axis, steps: int, tile: int, overlap: int, exact: bool) -> list[Part]:
    if steps <= tile:
        return [Part(0, steps, 0, steps)]
    count = -(-(steps - overlap) // (tile - overlap))
    length = max(-(-(steps - overlap) // count) + overlap, axis.least)
    starts = [(steps - length) * i // (count - 1) for i in range(count)]
    if exact:
        ends = [0, *(start + axis.low for start in starts[1:]), steps]
        return [Part(start, start + length, *kept) for start, kept in zip(starts, pairwise(ends), strict=True)]
    shared = [0, *(before + length - after for before, after in pairwise(starts)), 0]
    return [Part(s, s + length, s, s + length, *both) for s, both in zip(starts, pairwise(shared), strict=True)]


def assembled(
    call: Callable[[Any], Sequence[Any]],
    values: Any,
    axes: Sequence[Axis],
    parts: Sequence[Sequence[Part]],
    *,
    empty: Callable[[Any, tuple[int, ...]], Any],
    like: Callable[[Any, list[float]], Any],
) -> list[Any]:
    """What ``call`` gives for ``values``, ``(B, C, H, W)`` of numpy or torch, put together from its results for tiles.

    Args:
        call: Gives arrays ``(B, C, H, W)`` for such an array.
        values: Its input.
        axes: Of the rows and of the columns.
        parts: The tiles along each.
        empty: Makes an array of zeros as the first argument, of the shape of the second.
        like: Makes an array as the first argument of the numbers of the second.
    """
    results: list[Any] = []
    rows, columns = parts
    sizes = tuple(of[-1].last * axis.cells for of, axis in zip(parts, axes, strict=True))
    for pair in itertools.product(rows, columns):
        both = list(zip(pair, axes, strict=True))
        read = [slice(part.start * axis.step, part.stop * axis.step) for part, axis in both]
        inner = [slice((p.first - p.start) * a.cells, (p.last - p.start) * a.cells) for p, a in both]
        kept = [slice(part.first * axis.cells, part.last * axis.cells) for part, axis in both]
        found = call(values[:, :, read[0], read[1]])
        results = results or [empty(each, (*each.shape[:2], *sizes)) for each in found]
        for result, each in zip(results, found, strict=True):
            own = each[:, :, inner[0], inner[1]]
            if any(part.before or part.after for part in pair):
                down, across = (like(each, part.weights(axis.cells)) for part, axis in both)
                result[:, :, kept[0], kept[1]] += own * down[:, None] * across
            else:
                result[:, :, kept[0], kept[1]] = own
    return results


def tiles_by_section(
    sections: Sequence[Sequence[Axis]], sizes: Sequence[int], tile: int, *, exact: bool = True
) -> list[list[list[Part]]]:
    """The tiles of networks that follow each other, as :func:`tiles_of` gives them for each.

    A section with neither end at the image's resolution, whose maps have more channels, gets tiles of a quarter as many
    cells, or of twice the least.
    """
    found = []
    finest = max(_pixels(axis) for axes in sections for axis in axes)
    for axes in sections:
        least = max(_pixels(axis) * max(axis.low + axis.high + 1, axis.least) for axis in axes)
        own = tile if max(map(_pixels, axes)) == finest else max(tile // 4, 2 * least)
        found.append(tiles_of(axes, sizes, own, exact=exact))
        sizes = [size // axis.step * axis.cells for size, axis in zip(sizes, axes, strict=True)]
    return found


def _pixels(axis: Axis) -> int:
    return max(axis.step, axis.cells)


def reflected(size: int, multiple: int) -> list[int]:
    """Where each row of an image comes from that is reflected at its end, up to the next multiple.

    Examples:
        >>> reflected(5, 4)
        [0, 1, 2, 3, 4, 3, 2, 1]
        >>> reflected(1, 3)
        [0, 0, 0]
    """
    period = max(2 * size - 2, 1)
    return [min(i % period, period - i % period) if size > 1 else 0 for i in range(-(-size // multiple) * multiple)]


def refused(part: str, reason: object) -> str:
    """The error of a network without a bound."""
    return (
        f"`tile` needs an output that depends on a bounded part of the input, but in the {part} {reason}: build the"
        " model without that, or give `blend=True`, whose tiles are blended and not exact."
    )
