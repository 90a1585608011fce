"""The backends of an NVIDIA GPU: torch, onnxruntime and ``OnnxVAE``, from numpy to numpy or on the device.

TF32 is off (:mod:`vaelib.benchmark.worker` sets it) and convolution algorithms are searched for. A call returns when
the device is idle.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vaelib.benchmark.backend import (
    Array,
    Backend,
    Opened,
    functions_of,
    needs_packages,
    opened_bundle,
    run_session,
    sessions_of,
)
from vaelib.runtime.machine import load_libraries

__all__ = ["CUDA_BACKENDS", "torch_on"]

_BFLOAT16_TOLERANCE = 5e-2
_CUDA, _TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
_SETTINGS = {_CUDA: {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}, _TENSORRT: {}}
_SHAPES = 64  # that torch.compile may see of one operation; after 8 it would run eagerly without an error


def torch_on(device: str, directory: Path, threads: int, *, how: str = "eager", where: str = "host") -> Opened:
    """A model in torch on ``device``.

    Args:
        device: ``"cuda"``; ``"cpu"`` runs the same code without graphs and pinned memory.
        directory: Holds the model.
        threads: Threads of the CPU's part.
        how: ``"eager"``, ``"channels last"``, ``"bf16"`` (autocast, channels last), ``"compiled"`` or
            ``"compiled graphs"`` (``mode="reduce-overhead"``).
        where: Where batch and answer are: ``"device"``; ``"host"``, in numpy; or ``"pinned"``, in numpy and copied
            through pinned memory.
    """
    import torch

    from vaelib import serialization

    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if how in ("channels last", "bf16") else torch.contiguous_format
    functions = functions_of(serialization.load(directory / "model").eval().to(device, memory_format=layout))

    @functools.lru_cache(maxsize=1)  # a graph keeps the memory of its shape for as long as it is there
    def launched(operation: str, shape: tuple[int, ...]) -> Callable[[Any], Any]:
        return _launched(functions[operation], how)

    def compute(operation: str, values: Any) -> Any:
        precision = torch.autocast(device, torch.bfloat16) if how == "bf16" else contextlib.nullcontext()
        with torch.inference_mode(), precision:
            answer = launched(operation, tuple(values.shape))(values)
        _wait(device)
        return answer

    place, fetch = _through_pinned(device) if where == "pinned" else _copies(device)
    if where == "device":
        return Opened(compute, place, fetch)
    return Opened(lambda operation, values: fetch(compute(operation, place(values))))


def _launched(function: Callable[[Any], Any], how: str) -> Callable[[Any], Any]:
    import torch

    if how in ("compiled", "compiled graphs"):
        torch._dynamo.config.recompile_limit = _SHAPES
        mode = "reduce-overhead" if how == "compiled graphs" else None
        return torch.compile(function, dynamic=False, mode=mode)
    return function


def _copies(device: str) -> tuple[Callable[[Array], Any], Callable[[Any], Array]]:
    """To the device and back, as one would write it."""
    import torch

    return lambda values: torch.from_numpy(values).to(device), lambda answer: answer.float().cpu().numpy()


def _through_pinned(device: str) -> tuple[Callable[[Array], Any], Callable[[Any], Array]]:
    """The same through pinned memory, which torch keeps for the next call."""
    import torch

    def place(values: Array) -> Any:
        return torch.from_numpy(values).pin_memory().to(device, non_blocking=True)

    def fetch(answer: Any) -> Array:
        host = torch.empty(answer.shape, dtype=torch.float32, pin_memory=True)
        host.copy_(answer, non_blocking=True)
        _wait(device)
        return host.numpy()

    return place, fetch


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def _onnxruntime(directory: Path, threads: int, *, provider: str, on_device: bool) -> Opened:
    import onnxruntime

    session = sessions_of(directory, threads, provider=provider, settings=_SETTINGS[provider])

    def bound(operation: str, values: Any) -> Any:
        opened = session(operation)
        binding = opened.io_binding()
        binding.bind_ortvalue_input(opened.get_inputs()[0].name, values)
        binding.bind_output(opened.get_outputs()[0].name, "cuda")
        opened.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding.get_outputs()[0]

    if not on_device:
        return Opened(functools.partial(run_session, session))
    return Opened(
        bound, lambda values: onnxruntime.OrtValue.ortvalue_from_numpy(values, "cuda", 0), lambda answer: answer.numpy()
    )


def _vaelib(directory: Path, threads: int) -> Opened:
    from vaelib.runtime import OnnxVAE

    return opened_bundle(OnnxVAE(directory / "bundle", providers=[(_CUDA, _SETTINGS[_CUDA])], threads=threads))


def _needs_cuda() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


def _needs_compiler() -> str | None:
    missing = _needs_cuda() or needs_packages("triton")
    compilers = [name for name in ("cc", "gcc", "clang") if shutil.which(name)]
    return missing or (None if compilers else "no C compiler (cc, gcc or clang), which triton needs")


def _needs_provider(name: str) -> str | None:
    if missing := needs_packages("onnxruntime"):
        return missing
    import onnxruntime

    load_libraries([name])  # some builds know of the provider only then
    available = name in onnxruntime.get_available_providers()
    return _needs_cuda() if available else f"this onnxruntime has no {name}"


def _of_torch(how: str, where: str) -> Backend:
    return Backend(
        functools.partial(torch_on, "cuda", how=how, where=where),
        _needs_compiler if how.startswith("compiled") else _needs_cuda,
        tolerance=_BFLOAT16_TOLERANCE if how == "bf16" else 1e-4,
        products="cuda bf16" if how == "bf16" else "cuda",
    )


def _of_onnxruntime(provider: str, on_device: bool) -> Backend:
    return Backend(
        functools.partial(_onnxruntime, provider=provider, on_device=on_device),
        functools.partial(_needs_provider, provider),
        products="cuda",
        needs="graphs",
    )


CUDA_BACKENDS = {
    "torch CUDA": _of_torch("eager", "host"),
    "torch CUDA pinned": _of_torch("eager", "pinned"),
    "torch CUDA compiled": _of_torch("compiled", "host"),
    "torch CUDA bf16": _of_torch("bf16", "host"),
    "onnxruntime CUDA": _of_onnxruntime(_CUDA, on_device=False),
    "onnxruntime TensorRT": _of_onnxruntime(_TENSORRT, on_device=False),
    "OnnxVAE CUDA": Backend(_vaelib, functools.partial(_needs_provider, _CUDA), products="cuda", needs="bundle"),
    "torch CUDA on device": _of_torch("eager", "device"),
    "torch CUDA channels last on device": _of_torch("channels last", "device"),
    "torch CUDA compiled on device": _of_torch("compiled", "device"),
    "torch CUDA compiled graphs on device": _of_torch("compiled graphs", "device"),
    "torch CUDA bf16 on device": _of_torch("bf16", "device"),
    "onnxruntime CUDA on device": _of_onnxruntime(_CUDA, on_device=True),
    "onnxruntime TensorRT on device": _of_onnxruntime(_TENSORRT, on_device=True),
}
"""By name; from numpy to numpy, or with batch and answer on the device where the name says so."""
