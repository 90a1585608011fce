"""The graphs of a bundle, from torch to ONNX bytes, and what each takes and gives."""

from __future__ import annotations

import copy
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
from vaelib.export.sizes import free_sizes
from vaelib.latents.base import first_tensor
from vaelib.runtime.contract import Contract, Spec
from vaelib.vae import VAE, image_of

__all__ = ["Graph", "contract_of", "culprit", "graphs_of", "lowest_ir_version", "to_bytes", "with_metadata"]


class Graph(NamedTuple):
    """A torch module of flat tensors with the names that its ONNX graph bears."""

    part: str
    module: nn.Module
    inputs: dict[str, tuple[int, ...]]
    """Input name to the shape of one item."""
    outputs: dict[str, str]
    """Output name to its kind, which has a tolerance: ``"image"``, ``"nats"`` or ``"raw"``."""
    multiple: int | None = None
    """Of which H and W must be multiples; None if they are fixed."""
    has_file: bool = True
    """False where the output is the input itself, so that nobody opens a session for nothing."""

    def larger(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the inputs at another size."""
        steps = {name: self.multiple or 0 if name == "image" else 1 for name in self.inputs}
        return {name: (c, h + steps[name], w + 2 * steps[name]) for name, (c, h, w) in self.inputs.items()}

    def free_axes(self) -> tuple[dict[int, Any], ...]:
        """The axes of each input that may have any length."""
        batch, rows, columns = (torch.export.Dim(name) for name in ("B", "h", "w"))
        if self.multiple is None:
            return tuple({0: batch} for _ in self.inputs)
        image = {0: batch, 2: self.multiple * rows, 3: self.multiple * columns}
        return tuple(image if name == "image" else {0: batch, 2: rows, 3: columns} for name in self.inputs)


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


class _Of(nn.Module):
    """What a graph is made of: the model, or its latent."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


class _Encoder(_Of):
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return (self.model.latent.point(self.model.encoder(image)).clone(),)


class _GaussianEncoder(_Of):
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self.model.encoder(image)
        return (self.model.latent.point(features).clone(), *self.model.latent.encoded(features))


class _Decoder(_Of):
    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        recon_params = self.model.decode_hidden(self.model.latent.hidden(z))
        return image_of(self.model.likelihood, recon_params), recon_params.clone()


class _Whole(_Of):
    def forward(self, image: Tensor, noise: Tensor | None = None) -> tuple[Tensor, ...]:
        model = self.model
        draw = model.latent.draw(model.encoder(image), image.new_zeros(image.shape[0], 0) if noise is None else noise)
        recon_params = model.decode_hidden(draw.hidden)
        found = image_of(model.likelihood, recon_params), draw.z.clone()
        if not model.latent.has_prior:
            return found
        return (*found, -model.likelihood.log_prob(image, recon_params), draw.kl.sum(1), draw.kl)


class _Prior(_Of):
    def forward(self, noise: Tensor) -> Tensor:
        z: Tensor = self.model.from_noise(noise)
        return z


def graphs_of(model: VAE, *, dynamic_size: bool = False) -> dict[str, Graph]:
    """By part: encoder, decoder, the whole, and the prior if there is one.

    With ``dynamic_size``, ``model`` is changed by :func:`free_sizes`.
    """
    image, latent = tuple(model.image_shape), tuple(model.latent_shape)
    is_gaussian, noise_size = _is_gaussian(model), model.latent.noise_size
    prior = {"prior": _prior_of(model)} if model.latent.has_prior else {}
    multiple = free_sizes(model) if dynamic_size else None
    whole = {"image": image} | ({"noise": latent if is_gaussian else (noise_size,)} if noise_size else {})
    encoder, posterior = (_GaussianEncoder, {"mu": "raw", "logvar": "raw"}) if is_gaussian else (_Encoder, {})
    bound = dict.fromkeys(("distortion", "kl", "kl_groups"), "nats") if model.latent.has_prior else {}
    graphs = [
        Graph("encoder", encoder(model), {"image": image}, {"z": "raw", **posterior}),
        Graph("decoder", _Decoder(model), {"z": latent}, {"mean": "image", "recon_params": "raw"}),
        Graph("vae", _Whole(model), whole, {"reconstruction": "image", "z": "raw", **bound}),
    ]
    return {graph.part: graph._replace(multiple=multiple) for graph in graphs} | prior


def _is_gaussian(model: VAE) -> bool:
    """Whether a draw has a mean and a variance; of a model that fails, which is reported when its graphs are run."""
    try:
        with torch.no_grad():
            features = model.encoder(torch.zeros(2, *model.image_shape))
            rows = first_tensor(features).shape[0]
            return model.latent.draw(features, torch.zeros(rows, model.latent.noise_size)).mu is not None
    except Exception:  # a part of a user's own may raise anything
        return False


def _prior_of(model: VAE) -> Graph:
    """From noise to latents of the size of the training; without a file if they are that noise, as of N(0, I)."""
    latent = copy.deepcopy(model.latent)  # whose shape stays
    noise = torch.zeros(2, latent.prior_noise_size)
    try:
        with torch.no_grad():
            is_noise = latent.from_noise(noise).data_ptr() == noise.data_ptr()
    except Exception:  # as above
        is_noise = False
    return Graph("prior", _Prior(latent), {"noise": noise.shape[1:]}, {"z": "raw"}, has_file=not is_noise)


def contract_of(graph: Graph) -> Contract:
    """What the graph takes and gives: the inputs' shapes, and those of what the module makes of them.

    An axis that is another at another size is free, and has the name of the input's that it follows.
    """
    runs = []
    for shapes in [graph.inputs] if graph.multiple is None else [graph.inputs, graph.larger()]:
        example = [torch.zeros(2, *shape) for shape in shapes.values()]
        with torch.no_grad():
            answers = graph.module(*example)
        runs.append([*example, *((answers,) if isinstance(answers, Tensor) else answers)])
    kinds = {**dict.fromkeys(graph.inputs, "raw"), "image": "image", **graph.outputs}
    names = [*graph.inputs, *graph.outputs]
    specs = [
        Spec("float32", ("B", *_axes(graph, kinds[name], list(zip(*(v.shape[1:] for v in values), strict=True)))))
        for name, values in zip(names, zip(*runs, strict=True), strict=True)
    ]
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
    shapes = graph.inputs if graph.multiple is None else graph.larger()
    example = tuple(torch.full((2, *shape), 0.5) for shape in shapes.values())
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
    rate = f"{type(model.latent).__name__}.draw" if model.prior is None else f"{type(model.prior).__name__}.kl"
    return f"{type(model.likelihood).__name__}.log_prob or {rate}"


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """The same model with ``metadata_props``."""
    proto = onnx.load_model_from_string(content)
    onnx.helper.set_model_props(proto, dict(metadata))
    return bytes(proto.SerializeToString(deterministic=True))
