"""A graph of a bundle, from torch to ONNX bytes, and what it takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import onnx
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from onnxscript import opset18 as op
from torch import Tensor, nn

from vaelib._checks import ExportError
from vaelib.export.lowering import lower
from vaelib.export.quiet import quiet, reason_of
from vaelib.runtime.contract import Contract, Spec

__all__ = ["Graph", "contract_of", "culprit", "lowest_ir_version", "to_bytes", "with_metadata"]


class Graph(NamedTuple):
    """A torch module of flat tensors with the names that its ONNX graph bears."""

    part: str
    module: nn.Module
    inputs: dict[str, tuple[int, ...]]
    """Input name to the shape of one item."""
    outputs: dict[str, str]
    """Output name to its kind, which has a tolerance: ``"image"``, ``"nats"``, ``"raw"`` or ``"codes"``."""
    multiple: int | None = None
    """Of which H and W must be multiples; None if they are fixed."""
    has_file: bool = True
    """False where the runtime needs none: draws that are the noise itself, or uniform codes."""
    choices: Mapping[str, int] = {}
    """Names of the inputs that are int64, such as labels and codes, and of how many values each is."""

    def larger(self) -> Graph:
        """The graph with the shapes of its inputs at another size."""
        steps = {name: self.multiple or 0 if name == "image" else 1 for name in self.inputs}
        grown = {
            name: (shape[0], shape[1] + steps[name], shape[2] + 2 * steps[name]) if len(shape) == 3 else shape
            for name, shape in self.inputs.items()
        }
        return self._replace(inputs=grown)

    def constant_inputs(self, value: float) -> tuple[Tensor, ...]:
        """Two items of each input, all of one value; 0 of what is int64."""
        return tuple(
            torch.zeros(2, *shape, dtype=torch.int64) if name in self.choices else torch.full((2, *shape), value)
            for name, shape in self.inputs.items()
        )

    def free_axes(self) -> tuple[dict[int, Any], ...]:
        """The axes of each input that may have any length."""
        batch, rows, columns = (torch.export.Dim(name) for name in ("B", "h", "w"))
        if self.multiple is None:
            return tuple({0: batch} for _ in self.inputs)
        image = {0: batch, 2: self.multiple * rows, 3: self.multiple * columns}
        latent = {0: batch, 2: rows, 3: columns}
        axes = {"image": image, "condition": {0: batch}}
        return tuple(axes.get(name, latent) for name in self.inputs)


def _log_sigmoid(x: Any) -> Any:
    """min(x, 0) - log(1 + u), u = exp(-|x|), the logarithm as 2 artanh(u / (2 + u)).

    Its series ends where float32 does, and is made of operators that compute an image alike in any company.
    """
    u = op.Exp(op.Neg(op.Abs(x)))
    t = op.Div(u, op.Add(u, _like(x, 2.0)))
    square, series = op.Mul(t, t), _like(x, 2.0 / 13.0)
    for odd in (11.0, 9.0, 7.0, 5.0, 3.0, 1.0):
        series = op.Add(op.Mul(series, square), _like(x, 2.0 / odd))
    return op.Sub(op.Min(x, _like(x, 0.0)), op.Mul(t, series))


def _expm1(x: Any) -> Any:
    return op.Mul(op.Tanh(op.Mul(x, _like(x, 0.5))), op.Add(op.Exp(x), _like(x, 1.0)))


def _like(x: Any, value: float) -> Any:
    """A constant of the dtype of ``x``."""
    constant: Any = op.Constant(value_float=value)
    return op.CastLike(constant, x)


# torch writes Log(Sigmoid(x)), infinite for the logits of any sure decoder, and Exp(x) - 1, which cancels near zero.
_TRANSLATIONS: dict[Any, Any] = {torch.ops.aten.log_sigmoid.default: _log_sigmoid, torch.ops.aten.expm1.default: _expm1}


def contract_of(graph: Graph) -> Contract:
    """What the graph takes and gives: the inputs' shapes, and those of what the module makes of them.

    An axis that is another at another size is free, and has the name of the input's that it follows.
    """
    runs = []
    for sized in [graph] if graph.multiple is None else [graph, graph.larger()]:
        example = sized.constant_inputs(0.0)
        with torch.no_grad():
            answers = graph.module(*example)
        runs.append([*example, *((answers,) if isinstance(answers, Tensor) else answers)])
    kinds = {**dict.fromkeys(graph.inputs, "raw"), "image": "image", **graph.outputs}
    names = [*graph.inputs, *graph.outputs]
    specs = []
    for name, values in zip(names, zip(*runs, strict=True), strict=True):
        extents = list(zip(*(each.shape[1:] for each in values), strict=True))
        specs.append(Spec(str(values[0].dtype).removeprefix("torch."), ("B", *_axes(graph, kinds[name], extents))))
    inputs, outputs = specs[: len(graph.inputs)], specs[len(graph.inputs) :]
    return Contract(
        dict(zip(graph.inputs, inputs, strict=True)),
        dict(zip(graph.outputs, outputs, strict=True)),
        f"{graph.part}.onnx" if graph.has_file else None,
    )


def _axes(graph: Graph, kind: str, extents: list[tuple[int, ...]]) -> list[int | str]:
    """Each axis by its extents at both sizes, or at the only one: a number or the name of a free one."""
    multiple = graph.multiple
    if multiple is not None and len(extents) == 3:
        name, (_, height, width) = next(iter(graph.inputs.items()))
        rows, columns = (height // multiple, width // multiple) if name == "image" else (height, width)
        latent = [(rows, rows + 1), (columns, columns + 2)]  # as in `larger`
        image = [tuple(multiple * size for size in axis) for axis in latent]
        free = [("H", "W", image), ("h", "w", latent)]  # the same for a multiple of 1
        for first, second, pairs in free if kind == "image" else reversed(free):
            if extents[1:] == pairs and len({*extents[0]}) == 1:
                return [extents[0][0], first, second]
    return [sizes[0] if len({*sizes}) == 1 else "G" for sizes in extents]


@torch.no_grad()  # with gradients torch traces the graph of the backward pass too, and throws it away
def to_bytes(graph: Graph, opset: int) -> bytes:
    """One ONNX file with a free batch axis and no trace of this machine.

    Raises:
        ExportError: A ``ValueError``: if torch cannot express the graph.
    """
    # torch takes a free axis whose example is 1 for a fixed one, and the model's own latent map may be one pixel.
    example = (graph if graph.multiple is None else graph.larger()).constant_inputs(0.5)
    try:
        with quiet():
            program: Any = torch.onnx.export(
                graph.module.eval(),
                example,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=graph.free_axes(),
                opset_version=opset,
                dynamo=True,
                custom_translation_table=_TRANSLATIONS,
                verbose=False,
            )
            lower(program.model)
    except Exception as error:  # torch wraps whatever went wrong in exporter errors of many kinds
        raise ExportError(f"torch could not export {culprit(graph)}: {reason_of(error)}") from error
    RemoveUnusedNodesPass()(program.model)
    ClearMetadataAndDocStringPass()(program.model)
    proto = program.model_proto
    for value in (*proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    proto.producer_name, proto.producer_version = "vaelib", ""
    proto.ir_version = lowest_ir_version(proto)
    return bytes(proto.SerializeToString(deterministic=True))


def lowest_ir_version(proto: onnx.ModelProto) -> int:
    """The oldest version of the file format that has the model's operator sets, for the sake of older runtimes."""
    return int(onnx.helper.find_min_ir_version_for(proto.opset_import))


def culprit(graph: Graph) -> str:
    """What to look at: the graph of the whole comes after the networks', and adds only the bound to them."""
    if "kl" not in graph.outputs:
        return f"this model's {graph.part}"
    model: Any = graph.module.model
    rate = f"{type(model.latent).__name__}.draw"
    if model.prior is not None:
        rate = f"{type(model.prior).__name__}.{'kl' if hasattr(model.prior, 'kl') else 'log_prob'}"
    return f"{type(model.likelihood).__name__}.log_prob or {rate}"


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """The same model with ``metadata_props``."""
    proto = onnx.load_model_from_string(content)
    onnx.helper.set_model_props(proto, dict(metadata))
    return bytes(proto.SerializeToString(deterministic=True))
