"""Integers only: the sizes of feature maps on the way down, and back up to exactly the same size.

A strided convolution maps ``n`` pixels to ``(n + 2 * padding - kernel) // stride + 1`` and forgets
the remainder of that division. Keeping the remainder as ``output_padding`` makes the transposed
convolution its exact inverse, so a decoder returns the encoder's size by construction, for any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Resampling(NamedTuple):
    """One stage between a large and a small map, each ``(height, width)``."""

    large: tuple[int, int]
    small: tuple[int, int]
    padding: tuple[int, int]
    output_padding: tuple[int, int]


def plan(image_size: Sequence[int], stages: int, kernel_size: int, stride: int) -> tuple[Resampling, ...]:
    """Stages from the image down to the smallest map, which has at least one pixel.

    Args:
        image_size: ``(height, width)``, each >= 1.
        stages: How many strided convolutions, >= 0.
        kernel_size: Their kernel, >= 1.
        stride: Their stride, >= 1.

    Returns:
        One :class:`Resampling` per stage; ``small`` is at least ``ceil(large / stride)``.

    Examples:
        >>> [stage.small for stage in plan((28, 17), stages=3, kernel_size=3, stride=2)]
        [(14, 9), (7, 5), (4, 3)]
    """
    result = []
    large = (image_size[0], image_size[1])
    for _ in range(stages):
        rows, columns = (_plan_axis(size, kernel_size, stride) for size in large)
        result.append(Resampling(large, *zip(rows, columns, strict=True)))
        large = result[-1].small
    return tuple(result)


def _plan_axis(size: int, kernel_size: int, stride: int) -> tuple[int, int, int]:
    """Smallest symmetric padding that keeps ``ceil(size / stride)`` pixels: (small, padding, remainder)."""
    wanted = -(-size // stride)
    padding = max(0, -(-((wanted - 1) * stride + kernel_size - size) // 2))
    quotient, remainder = divmod(size + 2 * padding - kernel_size, stride)
    return quotient + 1, padding, remainder
