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

__all__ = ["BACKENDS", "OPERATIONS", "Array", "Backend", "Opened", "functions_of"]

Array = NDArray[np.float32]
OPERATIONS = ("encode", "decode", "reconstruct")
"""Images to mu; latents to pictures; images to pictures through z = mu."""
_BFLOAT16_TOLERANCE = 5e-2
_INT8_TOLERANCE = 0.2


class Opened(NamedTuple):
    """A way that is ready to run."""

    call: Callable[[str, Any], Any]
    """An operation and a batch in its place to the answer, which is there when this returns: what is timed."""
    place: Callable[[Array], Any] = lambda values: values
    """A batch to where it is when a call begins."""
    fetch: Callable[[Any], Array] = lambda answer: answer
    """An answer to numpy."""


class Backend(NamedTuple):
    """A way to run a model."""

    opened: Callable[[Path, int], Opened]
    """From the directory that :func:`vaelib.benchmark.files.write_files` fills, and a number of threads."""
    missing: Callable[[], str | None] = lambda: None
    """Why it cannot run here."""
    tolerance: float = 1e-4
    """What it may differ from float64 by, of the largest value, and still be right."""
    products: str = "cpu"
    """Which rate of :func:`vaelib.benchmark.roofline.rates` is its ceiling."""
    needs: str = "model"
    """Which files it opens: ``"model"``, ``"bundle"``, ``"graphs"`` or ``"int8"``, of each operation."""


def functions_of(model: Any) -> dict[str, Callable[[Any], Any]]:
    """Each operation as a function of one tensor."""
    from vaelib.vae import image_of

    def encode(x: Any) -> Any:
        code = model.encode(x)
        return code[0] if isinstance(code, tuple) else code

    def decode(z: Any) -> Any:
        return image_of(model.likelihood, model.decode(z))

    return {"encode": encode, "decode": decode, "reconstruct": lambda x: decode(encode(x))}


def _torch(directory: Path, threads: int, *, channels_last: bool = False, compiled: bool = False) -> Opened:
    import torch

    from vaelib import serialization

    torch.set_num_threads(threads)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    functions = functions_of(serialization.load(directory / "model").eval().to(memory_format=layout))
    if compiled:
        functions = {name: torch.compile(function, dynamic=False) for name, function in functions.items()}

    def call(operation: str, values: Array) -> Array:
        with torch.inference_mode():
            return functions[operation](torch.from_numpy(values)).numpy()

    return Opened(call)


def _torch_cuda(directory: Path, threads: int, *, how: str, on_device: bool) -> Opened:
    """Channels last, without TF32, with cuDNN's search for algorithms."""
    import torch

    from vaelib import serialization
    from vaelib.training.hardware import Graphed

    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    model = serialization.load(directory / "model").eval().cuda().to(memory_format=torch.channels_last)
    functions = functions_of(model)

    @functools.cache
    def launched(operation: str, shape: tuple[int, ...]) -> Callable[[Any], Any]:
        function = functions[operation]
        if how == "compiled":
            return torch.compile(function, dynamic=False)
        return Graphed(function) if how == "graphs" else function

    def compute(operation: str, values: Any) -> Any:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=how == "bf16"):
            answer = launched(operation, values.shape)(values)
        torch.cuda.synchronize()
        return answer

    def place(values: Array) -> Any:
        return torch.from_numpy(values).cuda()

    def fetch(answer: Any) -> Array:
        return answer.float().cpu().numpy()

    if on_device:
        return Opened(compute, place, fetch)
    return Opened(lambda operation, values: fetch(compute(operation, place(values))))


def _onnxruntime(
    directory: Path,
    threads: int,
    *,
    prefix: str = "",
    provider: str = "CPUExecutionProvider",
    settings: dict[str, str] | None = None,
    on_device: bool = False,
) -> Opened:
    import onnxruntime

    @functools.cache
    def session(operation: str) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        opened = onnxruntime.InferenceSession(
            directory / f"{prefix}{operation}.onnx", options, [(provider, settings or {})]
        )
        if opened.get_providers()[0] != provider:
            raise RuntimeError(f"{provider} did not load, onnxruntime fell back to {opened.get_providers()}")
        return opened

    def run(operation: str, values: Array) -> Array:
        opened = session(operation)
        return opened.run([opened.get_outputs()[0].name], {opened.get_inputs()[0].name: values})[0]

    def bound(operation: str, values: Any) -> Any:
        opened = session(operation)
        binding = opened.io_binding()
        binding.bind_ortvalue_input(opened.get_inputs()[0].name, values)
        binding.bind_output(opened.get_outputs()[0].name, "cuda")
        opened.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding.get_outputs()[0]

    if not on_device:
        return Opened(run)
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


def _vaelib(directory: Path, threads: int, *, provider: str = "CPUExecutionProvider") -> Opened:
    from vaelib.runtime import OnnxVAE

    settings = _CUDA_SETTINGS if provider == _CUDA else {}
    model = OnnxVAE(directory / "bundle", providers=[(provider, settings)], threads=threads)

    def call(operation: str, values: Array) -> Array:
        answer = getattr(model, operation)(values)
        return answer[0] if isinstance(answer, tuple) else answer

    return Opened(call)


def _needs_cuda() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


def _needs_compiler() -> str | None:
    return None if shutil.which("g++") else "no C++ compiler (g++)"


def _needs_openvino() -> str | None:
    return None if importlib.util.find_spec("openvino") else "openvino is not installed"


def _needs_provider(name: str) -> str | None:
    import onnxruntime

    available = name in onnxruntime.get_available_providers()
    return _needs_cuda() if available else f"this onnxruntime has no {name}"


_CUDA, _TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
_CUDA_SETTINGS = {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}


def _on_cuda(suffix: str, *, on_device: bool) -> dict[str, Backend]:
    found = {}
    for name, how in (("", "eager"), (" compiled", "compiled"), (" bf16", "bf16"), (" graphs", "graphs")):
        found[f"torch CUDA{name}{suffix}"] = Backend(
            functools.partial(_torch_cuda, how=how, on_device=on_device),
            _needs_cuda,
            tolerance=_BFLOAT16_TOLERANCE if how == "bf16" else 1e-4,
            products="cuda bf16" if how == "bf16" else "cuda",
        )
    for name, provider, settings in (("CUDA", _CUDA, _CUDA_SETTINGS), ("TensorRT", _TENSORRT, {})):
        found[f"onnxruntime {name}{suffix}"] = Backend(
            functools.partial(_onnxruntime, provider=provider, settings=settings, on_device=on_device),
            functools.partial(_needs_provider, provider),
            products="cuda",
            needs="graphs",
        )
    return found


BACKENDS = {
    "torch": Backend(_torch),
    "torch channels last": Backend(functools.partial(_torch, channels_last=True)),
    "torch compiled": Backend(functools.partial(_torch, compiled=True), _needs_compiler),
    "onnxruntime": Backend(_onnxruntime, needs="graphs"),
    "onnxruntime int8": Backend(
        functools.partial(_onnxruntime, prefix="int8-"), tolerance=_INT8_TOLERANCE, needs="int8"
    ),
    "openvino": Backend(_openvino, _needs_openvino, needs="graphs"),
    "OnnxVAE": Backend(_vaelib, needs="bundle"),
    **_on_cuda("", on_device=False),
    "OnnxVAE CUDA": Backend(
        functools.partial(_vaelib, provider=_CUDA),
        functools.partial(_needs_provider, _CUDA),
        products="cuda",
        needs="bundle",
    ),
    **_on_cuda(" on device", on_device=True),
}
"""By name. "onnxruntime" is ``InferenceSession.run`` of a plain ``torch.onnx.export``, or of a bundle's own graphs;
int8 is the bundle's graphs as :mod:`vaelib.export.precision` quantizes them. Times are from numpy to numpy; where it
says "on device", batch and answer stay on the GPU. On CUDA, TF32 is off and convolution algorithms are searched for.
"""
