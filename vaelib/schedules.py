"""Schedules: a training step to a float, for the KL weight and whatever else changes with time.

A schedule is any callable ``step -> float`` with steps counted from 0; a plain number stands for
:func:`constant` wherever one is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from vaelib._checks import check_float, check_int

__all__ = ["Schedule", "constant", "cosine", "cyclical", "linear_warmup"]

Schedule = Callable[[int], float]


def constant(value: float) -> Schedule:
    """The same ``value`` at every step.

    Examples:
        >>> constant(0.5)(1_000)
        0.5
    """
    value = check_float("value", value)
    return lambda step: value


def linear_warmup(steps: int, final: float = 1.0) -> Schedule:
    """From 0 to ``final`` in a straight line over ``steps`` steps, then ``final``.

    Examples:
        >>> beta = linear_warmup(10)
        >>> beta(0), beta(5), beta(99)
        (0.0, 0.5, 1.0)

    References:
        Sonderby et al. (2016), Ladder Variational Autoencoders. https://arxiv.org/abs/1602.02282
    """
    check_int("steps", steps)
    final = check_float("final", final)
    return lambda step: final * min(1.0, step / steps)


def cosine(steps: int, initial: float = 0.0, final: float = 1.0) -> Schedule:
    """From ``initial`` to ``final`` along half a cosine over ``steps`` steps, then ``final``.

    Examples:
        >>> [round(cosine(4)(step), 3) for step in range(6)]
        [0.0, 0.146, 0.5, 0.854, 1.0, 1.0]
    """
    check_int("steps", steps)
    initial, final = check_float("initial", initial), check_float("final", final)
    return lambda step: final + (initial - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def cyclical(period: int, final: float = 1.0, rise: float = 0.5) -> Schedule:
    """Sawtooth: in each ``period``, rise linearly from 0 to ``final`` for the fraction ``rise``, then hold.

    Examples:
        >>> [cyclical(4)(step) for step in range(6)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5]

    References:
        Fu et al. (2019), Cyclical Annealing Schedule. https://arxiv.org/abs/1903.10145
    """
    check_int("period", period)
    final, rise = check_float("final", final), check_float("rise", rise, 0, 1, above=True)
    return lambda step: final * min(1.0, (step % period) / (period * rise))
