"""How a batch is cut into calls, and which cut is fastest, by measurement.

A large batch falls out of the cache between one layer and the next, and a small call does not occupy all threads; which
of the two costs more depends on the graph and on the machine.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

__all__ = ["SIZE_CLASSES", "Plan", "candidates", "fastest", "size_class_of"]

SIZE_CLASSES = (32, 128, 512)
"""Batch sizes at which plans are measured; each stands for up to twice its size, the last for all that is larger."""
_CHUNKS = (8, 16, 32, 64, 128, 256)
_SECONDS = 0.3
"""Spent on one measurement, if that is enough for two rounds."""
_CHANCE = 0.03


class Plan(NamedTuple):
    """How a batch is cut into calls."""

    chunk: int
    """Most images of one call."""
    workers: int
    """Calls at a time: 1 with all threads, or as many as there are threads with one thread each."""

    def cut(self, size: int) -> deque[tuple[int, int]]:
        """Start and stop of each call: even, and as many for each worker.

        Examples:
            >>> list(Plan(chunk=16, workers=2).cut(36))
            [(0, 9), (9, 18), (18, 27), (27, 36)]
        """
        rounds = -(-size // (self.chunk * self.workers))
        calls = min(size, rounds * self.workers)
        return deque(pairwise(size * i // calls for i in range(calls + 1)))


def size_class_of(size: float) -> int:
    """The size class that a batch of this size belongs to."""
    return next((held for held in SIZE_CLASSES if size <= 2 * held), SIZE_CLASSES[-1])


def candidates(size_class: int, threads: int) -> list[Plan]:
    """The plans worth measuring for a size class."""
    whole = size_class if size_class == SIZE_CLASSES[-1] else 2 * size_class
    plans = [Plan(whole, 1), *(Plan(chunk, 1) for chunk in _CHUNKS if 32 <= chunk < size_class)]
    if threads > 1:
        share = max(size_class // threads, _CHUNKS[0])
        plans += [Plan(chunk, threads) for chunk in _CHUNKS if chunk <= share]
    return plans


def fastest(plans: Sequence[Plan], run: Callable[[Plan], object]) -> Plan:
    """The plan with the shortest run of all, measured in turn: what others do on the machine only ever adds time.

    Each runs twice in a row, for the first time finds the threads and the cache as the plan before has left them.
    The first plan stands unless another is faster by more than chance.
    """
    times: dict[Plan, list[float]] = {plan: [] for plan in plans}
    started = time.perf_counter()
    while len(times[plans[-1]]) < 2 or time.perf_counter() - started < _SECONDS:
        for plan in plans:
            run(plan)
            before = time.perf_counter()
            run(plan)
            times[plan].append(time.perf_counter() - before)
    return min(plans, key=lambda plan: min(times[plan]) * (1 if plan == plans[0] else 1 + _CHANCE))
