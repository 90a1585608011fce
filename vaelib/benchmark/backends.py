"""The ways to run a model. Each is opened in a process of its own: an open onnxruntime session slows torch down."""

from __future__ import annotations

import functools
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["BACKENDS", "OPERATIONS", "Array", "Backend"]

Array = NDArray[np.float32]
OPERATIONS = ("encode", "decode", "reconstruct")
"""Images to mu; latents to pictures; images to pictures through z = mu."""


class Backend(NamedTuple):
    """A way to run a model."""

    opened: Callable[[Path, int], Callable[[str, Array], Array]]
    """From the files that ``matrix`` writes and a number of threads to a function of an operation and a batch."""
    missing: Callable[[], str | None] = lambda: None
    """Why it cannot run here."""
    tolerance: float = 1e-4
    """What it may differ from float64 by, of the largest value, and still be right."""


def _torch(
    directory: Path, threads: int, *, device: str = "cpu", channels_last: bool = False, compiled: bool = False
) -> Callable[[str, Array], Array]:
    import torch

    from vaelib import serialization

    torch.set_num_threads(threads)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    functions: dict[str, Any] = functions_of(
        serialization.load(directory / "model").eval().to(device).to(memory_format=layout)
    )
    if compiled:
        functions = {name: torch.compile(function, dynamic=False) for name, function in functions.items()}

    def call(operation: str, values: Array) -> Array:
        with torch.inference_mode():
            return functions[operation](torch.from_numpy(values).to(device)).cpu().numpy()

    return call


def functions_of(model: Any) -> dict[str, Callable[[Any], Any]]:
    """Each operation as a function of one tensor."""

    def encode(x: Any) -> Any:
        code = model.encode(x)
        return code[0] if isinstance(code, tuple) else code

    def decode(z: Any) -> Any:
        recon_params = model.decode(z)
        return recon_params if model.likelihood is None else model.likelihood.mean(recon_params)

    return {"encode": encode, "decode": decode, "reconstruct": lambda x: decode(encode(x))}


def _plain_onnxruntime(directory: Path, threads: int) -> Callable[[str, Array], Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = {
        name: onnxruntime.InferenceSession(directory / f"{name}.onnx", options, ["CPUExecutionProvider"])
        for name in OPERATIONS
    }
    return lambda operation, values: sessions[operation].run(None, {"x": values})[0]


def _openvino(directory: Path, threads: int) -> Callable[[str, Array], Array]:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = {name: openvino.Core().compile_model(directory / f"{name}.onnx", "CPU", settings) for name in OPERATIONS}
    return lambda operation, values: np.array(compiled[operation](values)[0])


def _vaelib(directory: Path, threads: int) -> Callable[[str, Array], Array]:
    from vaelib.runtime import OnnxVAE

    model = OnnxVAE(directory / "bundle", threads=threads)

    def call(operation: str, values: Array) -> Array:
        answer = getattr(model, operation)(values)
        return answer[0] if isinstance(answer, tuple) else answer

    return call


def _needs_cuda() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


def _needs_compiler() -> str | None:
    return None if shutil.which("g++") else "no C++ compiler (g++)"


def _needs_openvino() -> str | None:
    return None if importlib.util.find_spec("openvino") else "openvino is not installed"


BACKENDS = {
    "torch": Backend(_torch),
    "torch channels last": Backend(functools.partial(_torch, channels_last=True)),
    "torch compiled": Backend(functools.partial(_torch, compiled=True), _needs_compiler),
    "torch CUDA": Backend(functools.partial(_torch, device="cuda", channels_last=True), _needs_cuda, 1e-3),
    "onnxruntime": Backend(_plain_onnxruntime),
    "openvino": Backend(_openvino, _needs_openvino),
    "OnnxVAE": Backend(_vaelib),
}
"""By name. "onnxruntime" is ``InferenceSession.run`` of a plain ``torch.onnx.export``; OpenVINO reads the same file."""
