"""Which input cells a cell of a feature map depends on, along one axis, through strides and back up.

A feature map after strides and upsampling looks the same again after a period: its cell ``p + period`` depends on what
cell ``p`` depends on, moved by ``advance`` input cells. So a few integers tell all of it, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from vaelib._tiles import Axis

__all__ = ["Reach", "UnboundedError", "axis_of", "joined"]

_NOTHING = 2**40
"""Added to a bound: of a cell that depends on no input, such as one between the cells of a transposed convolution."""


class UnboundedError(ValueError):
    """An operation whose result depends on the whole map, or on where it is; the message says why."""


class Reach(NamedTuple):
    """What the cells of a feature map depend on, along one axis of the input."""

    axis: int
    """0 of rows, 1 of columns."""
    size: int
    """Input cells in the example that the network was traced with."""
    period: int = 1
    advance: int = 1
    low: tuple[int, ...] = (0,)
    """First input cell that each of the first ``period`` cells depends on."""
    high: tuple[int, ...] = (0,)
    """Last input cell."""
    extra: int = 0
    """Cells that the map has in addition to ``size * period / advance``, as unpadded convolutions have fewer."""
    least: int = 1
    """Input cells of the smallest input whose borders are those of a large one."""

    def seen(self, position: int) -> tuple[int, int]:
        """Bounds of the input without which this cell is another, or is not there and so read as padding."""
        times, phase = divmod(position, self.period)
        low, high = self.low[phase] + times * self.advance, self.high[phase] + times * self.advance
        exists = position * self.advance // self.period, (position - self.extra) * self.advance // self.period
        return min(low, exists[0]), max(high, exists[1])

    def resampled(self, numerator: int, denominator: int, size: int, reads: Callable[[int], Iterable[int]]) -> Reach:
        """The map of ``size`` cells in which cell ``o`` reads the cells ``reads(o)`` of this one.

        Its cells are ``numerator / denominator`` times as many.
        """
        shared = math.gcd(self.period * numerator, denominator)
        period, times = self.period * numerator // shared, denominator // shared
        advance = self.advance * times
        whole, rest = divmod(self.size * period, advance)
        if rest:
            raise UnboundedError(f"repeats itself only after {advance} cells of the input")
        bounds = [[self.seen(position) for position in reads(o)] for o in range(period)]
        low = tuple(min((each[0] for each in of), default=_NOTHING) for of in bounds)
        high = tuple(max((each[1] for each in of), default=-_NOTHING) for of in bounds)
        return Reach(self.axis, self.size, period, advance, low, high, size - whole, self.least)

    def window(self, kernel: int, stride: int, padding: int, dilation: int, size: int) -> Reach:
        """After a convolution, a pooling, a slice or a pad: cell ``o`` reads ``o * stride - padding`` and on."""
        offsets = [dilation * tap - padding for tap in range(kernel)]
        return self.resampled(1, stride, size, lambda o: [o * stride + offset for offset in offsets])

    def transposed(self, kernel: int, stride: int, padding: int, dilation: int, size: int) -> Reach:
        """After a transposed convolution."""
        offsets = [padding - dilation * tap for tap in range(kernel)]
        return self.resampled(
            stride, 1, size, lambda o: [(o + at) // stride for at in offsets if not (o + at) % stride]
        )

    def bordered(self, before: Iterable[int], after: Iterable[int]) -> Reach:
        """The same map, whose padding is made of the cells ``before`` and, counted from the end, ``after``.

        A tile at the border must hold them.
        """
        needed = [1 + self.seen(position)[1] for position in before]
        needed += [-self.seen(self.extra - 1 - position)[0] for position in after]
        return self._replace(least=max([self.least, *needed]))


def joined(reaches: Sequence[Reach]) -> Reach:
    """What a cell depends on that is computed from one cell of each map."""
    first = reaches[0]
    if len({(reach.axis, reach.period * first.advance == first.period * reach.advance) for reach in reaches}) > 1:
        raise UnboundedError("puts together maps of another scale or orientation")
    period = math.lcm(*(reach.period for reach in reaches))
    bounds = [[_plain(reach, position) for reach in reaches] for position in range(period)]
    return first._replace(
        period=period,
        advance=first.advance * period // first.period,
        low=tuple(min(each[0] for each in of) for of in bounds),
        high=tuple(max(each[1] for each in of) for of in bounds),
        least=max(reach.least for reach in reaches),
    )


def _plain(reach: Reach, position: int) -> tuple[int, int]:
    times, phase = divmod(position, reach.period)
    return reach.low[phase] + times * reach.advance, reach.high[phase] + times * reach.advance


def axis_of(reach: Reach) -> Axis:
    """The receptive radius of a network's output, in steps on each side."""
    if reach.extra:
        raise UnboundedError(
            f"is of {reach.size * reach.period // reach.advance + reach.extra} cells where the input is of {reach.size}"
        )
    bounds = [reach.seen(position) for position in range(reach.period)]
    step = reach.advance
    before, after = -min(low for low, _ in bounds), max(high for _, high in bounds) - (step - 1)
    low, high = (max(0, -(-cells // step)) for cells in (before, after))
    return Axis(step, reach.period, low, high, -(-reach.least // step))
