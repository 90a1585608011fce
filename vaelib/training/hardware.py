"""Where and how a step is computed: device, precision, processes, compilation, random generators."""

from __future__ import annotations

import atexit
import functools
import gc
import logging
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn

from vaelib.training.cpu_convolutions import fast_convolutions
from vaelib.training.processes import heartbeat

__all__ = [
    "PRECISIONS",
    "compiled",
    "compiles",
    "is_main_process",
    "isolated",
    "make_accelerator",
    "random_states",
    "restore_random",
    "tuned",
]

_logger = logging.getLogger("vaelib.training")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
_STEPS_THAT_PAY = 20_000  # compilation costs up to a minute, and gains a few milliseconds a step


def random_states(device: torch.device) -> dict[str, Tensor]:
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


def restore_random(state: dict[str, Tensor], device: torch.device) -> None:
    """Put the generators where they were at :func:`random_states`."""
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
    state = random_states(device)
    try:
        yield
    finally:
        restore_random(state, device)


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
        _logger.warning(
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


def compiles(wanted: bool | None, total_steps: int, device: torch.device, objective: Any) -> bool:
    """Whether to compile; by itself only where that was measured to gain, on a CPU with a compiler, in long runs."""
    if getattr(objective, "eager", False):
        if wanted:
            _logger.warning("The step is not compiled: torch.compile cannot run %s.", type(objective).__name__)
        return False
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
        if device.type == "cuda" and precision in ("fp32", "tf32"):
            stack.enter_context(float32_products(tf32=precision == "tf32"))
        before = torch.backends.cudnn.deterministic
        try:
            torch.backends.cudnn.deterministic = before or device.type == "cuda"
            yield
        finally:
            torch.backends.cudnn.deterministic = before
            model.zero_grad()
            model.to(memory_format=torch.contiguous_format)


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Whether CUDA may round factors to TF32, by both of torch's interfaces: where they disagree, inductor raises."""
    new: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    new += [getattr(torch.backends.cudnn, part) for part in ("conv", "rnn")]
    before = [place.fp32_precision for place in new]
    try:
        old = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:  # where the new interface alone was used, the old one raises
        old = None
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


def _set_old_interface(products: str, convolutions: bool) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API settings")
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
