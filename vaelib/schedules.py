"""Schedules: a training step to a float, for the KL weight and whatever else changes with time.

A schedule is any callable ``step -> float`` with steps counted from 0; a plain number stands for
:func:`constant` wherever one is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from vaelib._checks import check_float, check_int

__all__ = ["Schedule", "constant", "cosine", "cyclical", "linear_warmup", "one_cycle", "warmup_cosine"]

Schedule = Callable[[int], float]
"""A training step, counted from 0, to a float."""


def constant(value: float) -> Schedule:
    """The same ``value`` at every step.

    Examples:
        >>> constant(0.5)(1_000)
        0.5
    """
    value = check_float("value", value)
    return lambda step: value


def as_schedule(name: str, value: float | Schedule, minimum: float = 0.0) -> Schedule:
    """A schedule from a number (:func:`constant`) or from a schedule, which is called once to check it.

    Raises:
        TypeError: If ``value`` is neither, such as ``linear_warmup`` itself, which is called to make a schedule.
        ValueError: If it is out of its range.

    Examples:
        >>> as_schedule("beta", 4)(0), as_schedule("beta", linear_warmup(10))(5)
        (4.0, 0.5)
    """
    if not callable(value):
        return constant(check_float(name, value, minimum))
    wanted = f"`{name}` must be a number or a schedule, step -> float"
    called = getattr(value, "__name__", type(value).__name__)
    try:
        result: Any = value(1)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{wanted}, got {called}, which raises for step 1: {error}") from error
    if callable(result):
        raise TypeError(f"{wanted}, got {called}, which makes one: give {called}(...).")
    check_float(f"{name}(1)", result, minimum)
    return value


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


def warmup_cosine(steps: int, warmup: float = 0.05) -> Schedule:
    """A factor of the learning rate: up linearly over a fraction ``warmup`` of ``steps``, down along a cosine.

    Examples:
        >>> [round(warmup_cosine(100)(step), 2) for step in (0, 4, 50, 100)]
        [0.2, 1.0, 0.5, 0.0]

    References:
        Loshchilov & Hutter (2017), SGDR. https://arxiv.org/abs/1608.03983
    """
    check_int("steps", steps)
    rise = linear_warmup(max(1, int(steps * check_float("warmup", warmup, 0.0, 1.0))))
    fall = cosine(steps, initial=1.0, final=0.0)
    return lambda step: rise(step + 1) * fall(step)


def one_cycle(steps: int, rise: float = 0.3, initial: float = 0.04, final: float = 4e-6) -> Schedule:
    """A factor of the learning rate: from ``initial`` to 1 over the fraction ``rise``, then to ``final``.

    Examples:
        >>> [round(one_cycle(100)(step), 3) for step in (0, 30, 65, 100)]
        [0.04, 1.0, 0.5, 0.0]

    References:
        Smith & Topin (2018), Super-Convergence. https://arxiv.org/abs/1708.07120
    """
    check_int("steps", steps)
    peak = max(1, round(steps * check_float("rise", rise, 0.0, 1.0)))
    up, down = cosine(peak, initial, 1.0), cosine(max(1, steps - peak), 1.0, final)
    return lambda step: up(step) if step < peak else down(step - peak)


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
