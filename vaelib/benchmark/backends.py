"""The table of backends. Each is opened in a process of its own: an open onnxruntime session slows torch down."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from vaelib.benchmark.backend import (
    OPERATIONS,
    Array,
    Backend,
    Opened,
    functions_of,
    needs_packages,
    opened_bundle,
    run_session,
    sessions_of,
)
from vaelib.benchmark.cuda import CUDA_BACKENDS, torch_on

__all__ = ["BACKENDS", "OPERATIONS", "Array", "Backend", "Opened", "functions_of"]

_INT8_TOLERANCE = 0.2
_torch = functools.partial(torch_on, "cpu")


def _onnxruntime(directory: Path, threads: int, *, prefix: str = "") -> Opened:
    return Opened(functools.partial(run_session, sessions_of(directory, threads, prefix=prefix)))


def _openvino(directory: Path, threads: int) -> Opened:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}

    @functools.cache
    def compiled(operation: str) -> Any:
        return openvino.Core().compile_model(directory / f"{operation}.onnx", "CPU", settings)

    return Opened(lambda operation, values: np.array(compiled(operation)(values)[0]))


def _vaelib(directory: Path, threads: int) -> Opened:
    from vaelib.runtime import OnnxVAE

    return opened_bundle(OnnxVAE(directory / "bundle", threads=threads))


def _needs_compiler() -> str | None:
    return None if shutil.which("g++") else "no C++ compiler (g++)"


_needs_onnxruntime = functools.partial(needs_packages, "onnxruntime")


BACKENDS = {
    "torch": Backend(_torch),
    "torch channels last": Backend(functools.partial(_torch, how="channels last")),
    "torch compiled": Backend(functools.partial(_torch, how="compiled"), _needs_compiler),
    "onnxruntime": Backend(_onnxruntime, _needs_onnxruntime, needs="graphs"),
    "onnxruntime int8": Backend(
        functools.partial(_onnxruntime, prefix="int8-"), _needs_onnxruntime, tolerance=_INT8_TOLERANCE, needs="int8"
    ),
    "openvino": Backend(_openvino, functools.partial(needs_packages, "openvino"), needs="graphs"),
    "OnnxVAE": Backend(_vaelib, _needs_onnxruntime, needs="bundle"),
    **CUDA_BACKENDS,
}
"""By name. "onnxruntime" is ``InferenceSession.run`` of a plain ``torch.onnx.export``, or of a bundle's own graphs;
int8 is the bundle's graphs as :mod:`vaelib.export.precision` quantizes them. Times are from numpy to numpy; where it
says "on device", batch and answer stay on the GPU. On CUDA, TF32 is off and convolution algorithms are searched for.
"""
