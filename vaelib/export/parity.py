"""How far a graph is from torch, as a number that can be written down."""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["Parity", "at_most"]


class Parity(NamedTuple):
    """How far a graph is from torch on one output, over all batches, optimisation levels and evaluators."""

    max_abs: float
    """Largest absolute difference; of codes, how many differ."""
    max_rel: float
    """The same, divided by the largest absolute value that torch gave; of images and nats, by 1 at least; of codes by
    their number."""
    near_ties: int = 0
    """Of codes: how many of those compared are so close to another code that rounding may decide; no other may differ
    from torch's."""


def at_most(difference: float) -> float:
    """The next power of ten, for files: digits of rounding errors differ between machines, bytes must not."""
    return float(f"1e{math.ceil(math.log10(difference))}") if difference else 0.0
