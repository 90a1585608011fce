"""Submodules that follow the weights once per step, such as codebooks."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

__all__ = ["Followers"]


class Followers:
    """The outermost submodules of a model with a method ``after_step(reduce, generator, moved)``.

    Args:
        model: Whatever holds them; each calls its own parts.
        accelerator: Sums over processes.
        seed: Of what they draw, which is the same on all processes.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator, seed: int) -> None:
        self._modules, self._accelerator, self._seed = _outermost(model), accelerator, seed

    def after_step(self, step: int, moved: Tensor) -> None:
        """Let them follow a step whose codes have been decoded; ``moved`` is false, on the device, of a skipped one.

        Where only the device knows that a step is skipped, they get the tensor. They may wait for it, or follow it:
        whoever calls this then restores their buffers.
        """
        if not self._modules:
            return
        accelerator = self._accelerator
        is_known = accelerator.device.type == "cpu" or accelerator.scaler is not None
        reduce = None if accelerator.num_processes == 1 else functools.partial(accelerator.reduce, reduction="sum")
        seed = int(np.random.SeedSequence([self._seed, step]).generate_state(1, np.uint32)[0])
        generator = torch.Generator(accelerator.device).manual_seed(seed)
        for module in self._modules:
            module.after_step(reduce=reduce, generator=generator, moved=bool(moved) if is_known else moved)


def _outermost(module: nn.Module) -> list[Any]:
    found: list[Any] = []
    for part in module.children():
        found += [part] if hasattr(part, "after_step") else _outermost(part)
    return found
