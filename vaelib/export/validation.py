"""The proof that a graph is what it claims to be; whatever fails raises."""

from __future__ import annotations

import onnx
import onnxruntime
import torch
from torch import Tensor

from vaelib._checks import ExportError
from vaelib.export import Parity
from vaelib.export.graphs import Graph

__all__ = ["BATCHES", "PICTURE_TOLERANCE", "RELATIVE_TOLERANCE", "check_contract", "compare"]

BATCHES = (1, 2, 3, 7, 16)
PICTURE_TOLERANCE = 1e-5
RELATIVE_TOLERANCE = 1e-4
_LEVELS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "on": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def compare(content: bytes, graph: Graph) -> dict[str, Parity]:
    """Largest differences per output between onnxruntime and torch.

    Raises:
        ExportError: A ``ValueError`` that lists every output, batch and optimisation level beyond tolerance.
    """
    generator = torch.Generator().manual_seed(0)
    worst = dict.fromkeys(graph.outputs, Parity(0.0, 0.0))
    failures = []
    for optimisations, level in _LEVELS.items():
        session = _session(content, level)
        for batch in BATCHES:
            inputs = {name: _draw(name, (batch, *shape), generator) for name, shape in graph.inputs.items()}
            with torch.no_grad():
                expected = graph.module(*inputs.values())
            got = session.run(list(graph.outputs), {name: value.numpy() for name, value in inputs.items()})
            for name, reference, values in zip(graph.outputs, expected, got, strict=True):
                picture = name in graph.pictures
                parity = _difference(reference, torch.from_numpy(values), least_scale=1.0 if picture else 1e-12)
                worst[name] = Parity(*map(max, worst[name], parity))
                limit = PICTURE_TOLERANCE if picture else RELATIVE_TOLERANCE
                if not parity.max_rel <= limit:
                    failures.append(
                        f"`{name}` at batch {batch}, optimisations {optimisations}: {parity.max_rel:.1e} > {limit:.0e}"
                    )
    if failures:
        raise ExportError(
            "onnxruntime differs from torch, relative to the output's scale: " + "; ".join(failures) + "."
        )
    return worst


def check_contract(content: bytes, graph: Graph) -> None:
    """Refuse a file with other names, a fixed batch, a random operator or data elsewhere.

    Raises:
        ExportError: A ``ValueError`` that says which rule is broken.
    """
    try:
        onnx.checker.check_model(content, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"onnx.checker refuses the graph: {error}") from error
    proto = onnx.load_model_from_string(content)
    for kind, values, names in (
        ("inputs", proto.graph.input, tuple(graph.inputs)),
        ("outputs", proto.graph.output, graph.outputs),
    ):
        if tuple(value.name for value in values) != names:
            raise ExportError(f"The {kind} must be {names}, got {tuple(value.name for value in values)}.")
        for value in values:
            if not value.type.tensor_type.shape.dim[0].dim_param:
                raise ExportError(f"The batch axis of {value.name!r} must be free, got a fixed one.")
    forbidden = {node.op_type for node in proto.graph.node if "Random" in node.op_type or node.op_type == "Dropout"}
    if forbidden:
        raise ExportError(f"The graph must be deterministic, got {', '.join(sorted(forbidden))}.")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer):
        raise ExportError("The weights must be inside the file, got external data.")


def _session(content: bytes, level: onnxruntime.GraphOptimizationLevel) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Images uniform in [0, 1], latents and noise normal."""
    draw = torch.rand if name == "image" else torch.randn
    return draw(shape, generator=generator)


def _difference(reference: Tensor, values: Tensor, *, least_scale: float) -> Parity:
    """NaN anywhere, or another shape, counts as infinitely wrong."""
    if reference.shape != values.shape or not values.isfinite().all():
        return Parity(float("inf"), float("inf"))
    max_abs = (reference - values).abs().max().item()
    return Parity(max_abs, max_abs / max(reference.abs().max().item(), least_scale))
