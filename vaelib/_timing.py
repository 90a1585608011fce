"""The one loop that times calls: of exported graphs, of a benchmark's backends, of matrix products."""

import time
from collections.abc import Callable

__all__ = ["timed"]


def timed(*calls: Callable[[], object], seconds: float = 0.0, least: int = 1) -> list[list[float]]:
    """Seconds of every call, made in turn so that a busy moment of the machine hits all alike.

    Args:
        calls: Functions without arguments.
        seconds: How long turns begin.
        least: The fewest turns.
    """
    times: list[list[float]] = [[] for _ in calls]
    started = time.perf_counter()
    while len(times[0]) < least or time.perf_counter() < started + seconds:
        for call, found in zip(calls, times, strict=True):
            before = time.perf_counter()
            call()
            found.append(time.perf_counter() - before)
    return times
