"""How fast graphs are on this machine's CPU: side by side, in turn, medians."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from vaelib._timing import timed
from vaelib.export.comparison import session
from vaelib.export.differences import drawn_inputs
from vaelib.export.graphs import Graph

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
            drawn = drawn_inputs(graphs[part], batch, torch.Generator().manual_seed(0))
            inputs = {name: values.numpy() for name, values in drawn.items()}
            rows.append(Speed(part, batch, images_per_second(opened, inputs)[part]))
    return rows


def images_per_second(
    sessions: Mapping[str, onnxruntime.InferenceSession], inputs: Mapping[str, NDArray[np.float32]]
) -> dict[str, float]:
    """The median of each session over rounds in which every one has its turn, so that drift hits all alike."""
    calls = [functools.partial(opened.run, None, dict(inputs)) for opened in sessions.values()]
    for call in calls:
        call()
    batch = len(next(iter(inputs.values())))
    times = timed(*calls, seconds=_SECONDS * len(calls), least=_LEAST_ROUNDS)
    return {name: batch / statistics.median(found) for name, found in zip(sessions, times, strict=True)}
