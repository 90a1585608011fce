"""What is measured, and the batches that it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaelib.benchmark.backend import Array

__all__ = ["Subject", "draw"]

_ROTATED = 4
_MOST_BYTES = 2**28


class Subject(NamedTuple):
    """What is measured."""

    directory: Path
    """Holds the files of all backends."""
    image_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    exact: Callable[[str, Array], NDArray[np.float64]]
    """The answer to a batch in float64: torch's, or of a bundle the reference evaluator's."""
    checked: Callable[[int], Sequence[int]]
    """Which images of a batch are compared with it: all, or of a bundle the first and the last."""
    flops: dict[str, int]
    """Of an operation on one image; of a bundle unknown."""
    tolerance: float
    """What its own precision adds to a backend's."""


def draw(subject: Subject, operation: str, batch: int) -> Array:
    """Batches in a stack: images uniform in [0, 1], latents normal. Their turns keep answers out of the caches."""
    shape = subject.latent_shape if operation == "decode" else subject.image_shape
    number = max(2, min(_ROTATED, _MOST_BYTES // (4 * batch * int(np.prod(shape)))))
    generator = np.random.default_rng(0)
    sampler = generator.standard_normal if operation == "decode" else generator.random
    return sampler((number, batch, *shape), dtype=np.float32)
