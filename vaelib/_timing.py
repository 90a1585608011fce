"""The one loop that times calls (exported graphs, a benchmark's backends, matrix products), and the hardware's name."""

import importlib.util
import platform
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["hardware", "timed"]


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


def hardware() -> str:
    """The processor, the threads and the version of onnxruntime, where it is installed."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    found = f"{processor}, {threads} thread{'s' if threads > 1 else ''}"
    if importlib.util.find_spec("onnxruntime") is None:
        return found
    import onnxruntime

    return f"{found}, onnxruntime {onnxruntime.__version__}"
