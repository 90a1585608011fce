"""The machine's own rate of matrix products, the ceiling of what a network can reach on it."""

from __future__ import annotations

import functools
import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from vaelib._timing import timed

__all__ = ["rates"]

_REPEATS = 15
_SIZES = (256, 512, 1024)
_CUDA_SIZE = 4096


@functools.cache
def rates(threads: int) -> dict[str, float]:
    """Products in FLOP/s: ``"cpu"``, in float32 with these threads; where there is a GPU ``"cuda"``, ``"cuda bf16"``.

    On the CPU the best of torch and onnxruntime (where it is installed) and of three sizes, none of which alone bounds
    what the convolutions of both reach; each the median call. Measured once, in a process of its own.
    """
    result = subprocess.run([sys.executable, "-m", __name__, str(threads)], capture_output=True, text=True, check=True)
    return dict(json.loads(result.stdout))


def _measure(threads: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(threads)
    found = {"cpu": max(_flops(call, n) for n in _SIZES for call in _products(n, threads))}
    if torch.cuda.is_available():
        for name, dtype in (("cuda", torch.float32), ("cuda bf16", torch.bfloat16)):
            a, b = torch.rand(2, _CUDA_SIZE, _CUDA_SIZE, device="cuda", dtype=dtype)
            found[name] = _flops(functools.partial(_synchronised, a, b), _CUDA_SIZE)
    return found


def _products(n: int, threads: int) -> list[Callable[[], object]]:
    import torch

    a, b = torch.rand(2, n, n)
    installed = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
    return [lambda: a @ b, *([_product_of_onnxruntime(a.numpy(), b.numpy(), threads)] if installed else [])]


def _product_of_onnxruntime(a: Any, b: Any, threads: int) -> Callable[[], object]:
    import onnx
    import onnxruntime

    nodes = [onnx.helper.make_node("MatMul", ["a", "b"], ["c"])]
    values = {name: onnx.helper.make_tensor_value_info(name, 1, list(a.shape)) for name in "abc"}
    constants = [onnx.numpy_helper.from_array(b, "b")]
    graph = onnx.helper.make_graph(nodes, "product", [values["a"]], [values["c"]], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": a})


def _synchronised(a: Any, b: Any) -> None:
    import torch

    a @ b
    torch.cuda.synchronize()


def _flops(call: Callable[[], object], n: int) -> float:
    call()
    (times,) = timed(call, least=_REPEATS * max(1, _SIZES[-1] ** 3 // n**3))
    return 2 * n**3 / statistics.median(times)


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]))))  # noqa: T201
