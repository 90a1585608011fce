"""What a figure holds for."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

import torch

__all__ = ["hardware"]


def hardware() -> str:
    """The processor, the threads and the version of onnxruntime, where it is installed."""
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
