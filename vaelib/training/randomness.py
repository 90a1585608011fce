"""Every random generator that a training step may draw from, as tensors of fixed shapes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["capture", "isolated", "restore"]


def capture(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's, numpy's and Python's global generators, and of the training device's."""
    numpy_state: Any = np.random.get_state(legacy=True)  # noqa: NPY002  # what old transforms draw from
    _, keys, position, has_gauss, gauss = numpy_state
    _, words, next_gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*keys.tolist(), position, has_gauss]),
        "numpy_gauss": torch.tensor([gauss], dtype=torch.float64),
        "python": torch.tensor(words),
        "python_gauss": torch.tensor([float("nan") if next_gauss is None else next_gauss], dtype=torch.float64),
    }
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore(state: dict[str, Tensor], device: torch.device) -> None:
    """Put the generators where they were at :func:`capture`."""
    torch.set_rng_state(state["torch"].clone())  # torch 2.15 reads a view of another tensor from the wrong place
    *keys, position, has_gauss = state["numpy"].tolist()
    gauss = state["numpy_gauss"].item()
    np.random.set_state(  # noqa: NPY002
        ("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, gauss)
    )
    next_gauss = state["python_gauss"].item()
    random.setstate((3, tuple(state["python"].tolist()), None if next_gauss != next_gauss else next_gauss))
    if device.type == "cuda" and "cuda" in state:  # not in the checkpoint of a run on the CPU
        torch.cuda.set_rng_state(state["cuda"].clone(), device)


@contextmanager
def isolated(device: torch.device) -> Iterator[Any]:
    """Restores all random generators on exit."""
    state = capture(device)
    try:
        yield
    finally:
        restore(state, device)
