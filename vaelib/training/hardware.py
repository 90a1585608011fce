"""Where and how a step is computed: device, precision, processes, compilation."""

from __future__ import annotations

import atexit
import functools
import gc
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn

from vaelib.training.cpu_convolutions import fast_convolutions
from vaelib.training.heartbeat import heartbeat

__all__ = ["PRECISIONS", "compiled", "compiles", "is_main_process", "make_accelerator", "tuned"]

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
_STEPS_THAT_PAY = 20_000  # compilation costs up to a minute, and gains a few milliseconds a step


def make_accelerator(precision: str | None) -> Accelerator:
    """What accelerate knows of devices and processes; ``precision`` None is what ``accelerate launch`` says."""
    mixed = {None: None, "bf16": "bf16", "fp16": "fp16"}.get(precision, "no")
    # accelerate keeps the precision of the first Accelerator of a process for all that follow; the processes stay.
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=mixed, cpu=_on_cpu())
    if accelerator.num_processes > 1:
        _joined()
    return accelerator


@functools.cache
def _joined() -> None:
    """Show the other processes from now on that this one is alive, and leave them in order when it ends."""
    # Without it, threads of gloo are cut off when the interpreter ends, which may abort the process.
    atexit.register(torch.distributed.destroy_process_group)
    atexit.register(gc.collect)  # runs first: a model in a cycle would keep the group, and so its threads, alive
    heartbeat()
    _warn_of_a_store_that_stays()


def _warn_of_a_store_that_stays() -> None:
    """Seen with torch 2.14: restarted processes find the addresses of killed ones there and wait for them."""
    get = os.environ.get
    stays = get("TORCHELASTIC_USE_AGENT_STORE") == "True" and int(get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    if stays and int(get("GROUP_WORLD_SIZE", "1")) > 1 and PartialState().is_main_process:
        logging.getLogger("vaelib.training").warning(
            "After a restart, processes on several machines may wait for each other without end: set"
            " TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on every machine."
        )


def is_main_process() -> bool:
    """Whether this is the process that writes and prints; joins the others if there are any."""
    state = PartialState(cpu=_on_cpu())
    if state.num_processes > 1:
        _joined()
    return state.is_main_process


def _on_cpu() -> bool:
    """Set explicitly: without it accelerate does not find the other processes of a machine without accelerator."""
    return parse_flag_from_env("ACCELERATE_USE_CPU") == 1 or not torch.accelerator.is_available()


def compiles(wanted: bool | None, total_steps: int, device: torch.device) -> bool:
    """Whether to compile; by itself only where that was measured to gain, on a CPU with a compiler, in long runs."""
    if wanted is not None:
        return wanted
    return device.type == "cpu" and total_steps >= _STEPS_THAT_PAY and shutil.which("g++") is not None


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """``function`` compiled; on CUDA its kernels are launched as graphs unless its numbers change from step to step.

    Every batch size is compiled for itself: an epoch has two, and of a size that is free there is no graph.
    """
    # A schedule that follows the step makes a number of it, and would have a graph captured at every step.
    graphs: Any = {"triton.cudagraphs": True, "triton.cudagraph_skip_dynamic_graphs": True}
    on_cuda = device.type == "cuda"
    launched = torch.compile(function, options=graphs if on_cuda else None)

    def call(*arguments: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, Tensor):
                torch._dynamo.mark_static(argument)
        if on_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        return launched(*arguments)

    return call


@contextmanager
def tuned(model: nn.Module, device: torch.device, precision: str | None) -> Iterator[None]:
    """Inside the ``with``: weights channels last, convolutions in their fastest form, TF32 as ``precision`` asks.

    On CUDA the fastest of the deterministic form: cuDNN has algorithms that add in another order each time.
    """
    model.to(memory_format=torch.channels_last)
    with ExitStack() as stack:
        if device.type == "cpu":
            stack.enter_context(fast_convolutions(model))
        if device.type == "cuda":
            stack.enter_context(_deterministic_convolutions())
        if device.type == "cuda" and precision in ("fp32", "tf32"):
            stack.enter_context(float32_products(tf32=precision == "tf32"))
        try:
            yield
        finally:
            model.zero_grad()
            model.to(memory_format=torch.contiguous_format)


@contextmanager
def _deterministic_convolutions() -> Iterator[None]:
    before = torch.backends.cudnn.deterministic
    try:
        torch.backends.cudnn.deterministic = True
        yield
    finally:
        torch.backends.cudnn.deterministic = before


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Whether CUDA may round factors to TF32, by both of torch's interfaces: where they disagree, inductor raises."""
    new: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    new += [getattr(torch.backends.cudnn, part) for part in ("conv", "rnn")]
    before, old = [place.fp32_precision for place in new], _old_interface()
    try:
        if old is not None:
            _set_old_interface("high" if tf32 else "highest", tf32)
        for place in (place for place in new if place is not torch.backends.mkldnn.matmul):  # type: ignore[attr-defined]
            place.fp32_precision = "tf32" if tf32 else "ieee"
        yield
    finally:
        if old is not None:
            _set_old_interface(*old)
        for place, value in zip(new, before, strict=True):
            place.fp32_precision = value


def _old_interface() -> tuple[str, bool] | None:
    """TF32 in products and in convolutions; None where the new interface alone was used, of which torch then raises."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def _set_old_interface(products: str, convolutions: bool) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API settings")
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
