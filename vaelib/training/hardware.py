"""Where and how a step is computed: device, precision, processes, compilation."""

from __future__ import annotations

import atexit
import functools
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env
from torch import nn

from vaelib.training.convolutions import fast_convolutions
from vaelib.training.flat import unflattened

__all__ = ["PRECISIONS", "compiles", "is_main_process", "make_accelerator", "tuned"]

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
_STEPS_THAT_PAY = 20_000  # compilation costs up to a minute, and gains a few milliseconds a step


def make_accelerator(precision: str | None) -> Accelerator:
    """What accelerate knows of devices and processes; ``precision`` None is what ``accelerate launch`` says."""
    mixed = {None: None, "bf16": "bf16", "fp16": "fp16"}.get(precision, "no")
    # accelerate keeps the precision of the first Accelerator of a process for all that follow; the processes stay.
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=mixed, cpu=_on_cpu())
    if accelerator.num_processes > 1:
        _leave_at_exit()
    return accelerator


@functools.cache
def _leave_at_exit() -> None:
    """Without it, threads of gloo are cut off when the interpreter ends, which may abort the process."""
    atexit.register(torch.distributed.destroy_process_group)


def is_main_process() -> bool:
    """Whether this is the process that writes and talks; joins the others if there are any."""
    return PartialState(cpu=_on_cpu()).is_main_process


def _on_cpu() -> bool:
    """Said outright, since accelerate finds the other processes of a machine without accelerator only then."""
    return parse_flag_from_env("ACCELERATE_USE_CPU") == 1 or not torch.accelerator.is_available()


def compiles(wanted: bool | None, total_steps: int, device: torch.device) -> bool:
    """Whether to compile; by itself only where a compiler is at hand and the run is long enough to gain by it."""
    if wanted is not None:
        return wanted
    if device.type == "cuda":
        return total_steps >= _STEPS_THAT_PAY // 10
    return device.type == "cpu" and total_steps >= _STEPS_THAT_PAY and shutil.which("g++") is not None


@contextmanager
def tuned(model: nn.Module, device: torch.device, precision: str | None) -> Iterator[None]:
    """Inside the ``with``: weights channels last, convolutions in their fastest form, TF32 as ``precision`` says."""
    model.to(memory_format=torch.channels_last)
    with ExitStack() as stack:
        if device.type == "cpu":
            stack.enter_context(fast_convolutions(model))
        if device.type == "cuda" and precision in ("fp32", "tf32"):
            stack.enter_context(_float32_products("ieee" if precision == "fp32" else "tf32"))
        try:
            yield
        finally:
            unflattened(model)
            model.to(memory_format=torch.contiguous_format)


@contextmanager
def _float32_products(how: str) -> Iterator[None]:
    places: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv")]  # noqa: B009
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = how
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
