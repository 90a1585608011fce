"""The table of backends. Each is opened in a process of its own: an open onnxruntime session slows torch down.

On CUDA, TF32 is off (:mod:`vaelib.benchmark.worker` sets it), convolution algorithms are searched for, and a call
returns when the device is idle.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

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

__all__ = ["BACKENDS", "CUDA_BACKENDS"]

_INT8_TOLERANCE, _BFLOAT16_TOLERANCE = 0.2, 5e-2
_CUDA, _TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
_SETTINGS = {_CUDA: {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}}
_SHAPES = 64  # that torch.compile may see of one operation; after 8 it would run eagerly without an error


def _torch(device: str, directory: Path, threads: int, *, how: str = "eager", where: str = "host") -> Opened:
    """A model in torch on ``device``.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        directory: Holds the model.
        threads: Threads of the CPU's part.
        how: ``"eager"``, ``"channels last"``, ``"bf16"`` (autocast, channels last), ``"compiled"`` or
            ``"compiled graphs"`` (``mode="reduce-overhead"``).
        where: Place of batch and answer: ``"device"``; ``"host"``, in numpy; or ``"pinned"``, in numpy and copied
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
        if not how.startswith("compiled"):
            return functions[operation]
        torch._dynamo.config.recompile_limit = _SHAPES
        mode = "reduce-overhead" if how == "compiled graphs" else None
        return torch.compile(functions[operation], dynamic=False, mode=mode)

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


def _onnxruntime(
    directory: Path,
    threads: int,
    *,
    prefix: str = "",
    provider: str = "CPUExecutionProvider",
    on_device: bool = False,
) -> Opened:
    session = sessions_of(directory, threads, prefix=prefix, provider=provider, settings=_SETTINGS.get(provider))
    if not on_device:
        return Opened(functools.partial(run_session, session))
    import onnxruntime

    def bound(operation: str, values: Any) -> Any:
        opened = session(operation)
        binding = opened.io_binding()
        binding.bind_ortvalue_input(opened.get_inputs()[0].name, values)
        binding.bind_output(opened.get_outputs()[0].name, "cuda")
        opened.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding.get_outputs()[0]

    return Opened(
        bound, lambda values: onnxruntime.OrtValue.ortvalue_from_numpy(values, "cuda", 0), lambda answer: answer.numpy()
    )


def _openvino(directory: Path, threads: int) -> Opened:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}

    @functools.cache
    def compiled(operation: str) -> Any:
        return openvino.Core().compile_model(directory / f"{operation}.onnx", "CPU", settings)

    return Opened(lambda operation, values: np.array(compiled(operation)(values)[0]))


def _vaelib(directory: Path, threads: int, *, providers: Any = None) -> Opened:
    from vaelib.runtime import OnnxVAE

    return opened_bundle(OnnxVAE(directory / "bundle", providers=providers, threads=threads))


def _needs_compiler() -> str | None:
    return None if shutil.which("g++") else "no C++ compiler (g++)"


def _needs_cuda() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


def _needs_cuda_compiler() -> str | None:
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


def _of_torch_cuda(how: str, where: str) -> Backend:
    return Backend(
        functools.partial(_torch, "cuda", how=how, where=where),
        _needs_cuda_compiler if how.startswith("compiled") else _needs_cuda,
        tolerance=_BFLOAT16_TOLERANCE if how == "bf16" else 1e-4,
        products="cuda bf16" if how == "bf16" else "cuda",
    )


def _of_onnxruntime_cuda(provider: str, on_device: bool) -> Backend:
    return Backend(
        functools.partial(_onnxruntime, provider=provider, on_device=on_device),
        functools.partial(_needs_provider, provider),
        products="cuda",
        needs="graphs",
    )


_needs_onnxruntime = functools.partial(needs_packages, "onnxruntime")
CUDA_BACKENDS = {
    "torch CUDA": _of_torch_cuda("eager", "host"),
    "torch CUDA pinned": _of_torch_cuda("eager", "pinned"),
    "torch CUDA compiled": _of_torch_cuda("compiled", "host"),
    "torch CUDA bf16": _of_torch_cuda("bf16", "host"),
    "onnxruntime CUDA": _of_onnxruntime_cuda(_CUDA, on_device=False),
    "onnxruntime TensorRT": _of_onnxruntime_cuda(_TENSORRT, on_device=False),
    "OnnxVAE CUDA": Backend(
        functools.partial(_vaelib, providers=[(_CUDA, _SETTINGS[_CUDA])]),
        functools.partial(_needs_provider, _CUDA),
        products="cuda",
        needs="bundle",
    ),
    "torch CUDA on device": _of_torch_cuda("eager", "device"),
    "torch CUDA channels last on device": _of_torch_cuda("channels last", "device"),
    "torch CUDA compiled on device": _of_torch_cuda("compiled", "device"),
    "torch CUDA compiled graphs on device": _of_torch_cuda("compiled graphs", "device"),
    "torch CUDA bf16 on device": _of_torch_cuda("bf16", "device"),
    "onnxruntime CUDA on device": _of_onnxruntime_cuda(_CUDA, on_device=True),
    "onnxruntime TensorRT on device": _of_onnxruntime_cuda(_TENSORRT, on_device=True),
}
"""By name; from numpy to numpy, or with batch and answer on the device where the name says so."""
BACKENDS = {
    "torch": Backend(functools.partial(_torch, "cpu")),
    "torch channels last": Backend(functools.partial(_torch, "cpu", how="channels last")),
    "torch compiled": Backend(functools.partial(_torch, "cpu", how="compiled"), _needs_compiler),
    "onnxruntime": Backend(_onnxruntime, _needs_onnxruntime, needs="graphs"),
    "onnxruntime int8": Backend(
        functools.partial(_onnxruntime, prefix="int8-"), _needs_onnxruntime, tolerance=_INT8_TOLERANCE, needs="int8"
    ),
    "openvino": Backend(_openvino, functools.partial(needs_packages, "openvino"), needs="graphs"),
    "OnnxVAE": Backend(_vaelib, _needs_onnxruntime, needs="bundle"),
    **CUDA_BACKENDS,
}
"""By name. "onnxruntime" is ``InferenceSession.run`` of a plain ``torch.onnx.export``, or of a bundle's own graphs;
int8 is the bundle's graphs as :mod:`vaelib.export.precision` quantizes them."""
