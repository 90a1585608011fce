"""How fast graphs are on this machine's CPU: side by side, in turn, medians."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from vaelib.export.graphs import Graph
from vaelib.export.validation import drawn_inputs, session

__all__ = ["Speed", "images_per_second", "measure"]

_SECONDS = 0.5
_LEAST_ROUNDS = 7


class Speed(NamedTuple):
    """Of one graph at one batch size."""

    part: str
    batch: int
    images_per_second: float


def measure(graphs: Mapping[str, Graph], files: Mapping[str, bytes]) -> list[Speed]:
    """Encoder and decoder at batches of 1 and 64, with as many threads as torch has."""
    rows = []
    for part in ("encoder", "decoder"):
        opened = {part: session(files[f"{part}.onnx"], threads=torch.get_num_threads())}
        for batch in (1, 64):
            drawn = drawn_inputs(graphs[part].inputs, batch, torch.Generator().manual_seed(0))
            inputs = {name: values.numpy() for name, values in drawn.items()}
            rows.append(Speed(part, batch, images_per_second(opened, inputs)[part]))
    return rows


def images_per_second(
    sessions: Mapping[str, onnxruntime.InferenceSession], inputs: Mapping[str, NDArray[np.float32]]
) -> dict[str, float]:
    """The median of each session over rounds in which every one has its turn, so that drift hits all alike."""
    batch = len(next(iter(inputs.values())))
    for opened in sessions.values():
        opened.run(None, dict(inputs))
    times: dict[str, list[float]] = {name: [] for name in sessions}
    end = time.perf_counter() + _SECONDS * len(sessions)
    while time.perf_counter() < end or len(next(iter(times.values()))) < _LEAST_ROUNDS:
        for name, opened in sessions.items():
            start = time.perf_counter()
            opened.run(None, dict(inputs))
            times[name].append(time.perf_counter() - start)
    return {name: batch / float(np.median(values)) for name, values in times.items()}
