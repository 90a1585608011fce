"""The three graphs, from torch to ONNX bytes."""

from __future__ import annotations

import math
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
from vaelib.priors import StandardNormal
from vaelib.vae import VAE, image_of

__all__ = ["Graph", "culprit", "graphs_of", "lowest_ir_version", "noise_of", "sampler_of", "to_bytes", "with_metadata"]


class Graph(NamedTuple):
    """A torch module of flat tensors with the names that its ONNX graph bears."""

    part: str
    module: nn.Module
    inputs: dict[str, tuple[int, ...]]
    """Input name to the shape of one item."""
    outputs: dict[str, str]
    """Output name to its kind, which has a tolerance: ``"picture"``, ``"nats"`` or ``"raw"``."""
    multiple: int | None = None
    """Of which H and W must be multiples; None if they are fixed."""

    def larger(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the inputs at another size."""
        steps = {name: self.multiple or 0 if name == "image" else 1 for name in self.inputs}
        return {name: (c, h + steps[name], w + 2 * steps[name]) for name, (c, h, w) in self.inputs.items()}

    def free_axes(self) -> tuple[dict[int, Any], ...]:
        """The axes of each input that may have any length."""
        batch, rows, columns = (torch.export.Dim(name) for name in ("batch", "rows", "columns"))
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


class _Encoder(nn.Module):
    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Any:
        return self.model.latent.encoded(self.model.encoder(image))


class _Decoder(nn.Module):
    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        recon_params = self.model.decode_hidden(self.model.latent.hidden(z))
        return image_of(self.model.likelihood, recon_params), recon_params.clone()


class _Whole(nn.Module):
    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor, eps: Tensor) -> tuple[Tensor, ...]:
        draw = self.vae.latent.draw(self.vae.encoder(image), eps)
        recon_params = self.vae.decode_hidden(draw.hidden)
        distortion = -self.vae.likelihood.log_prob(image, recon_params)
        return image_of(self.vae.likelihood, recon_params), draw.mu, draw.logvar, distortion, draw.kl.sum(1)


class _WholeAutoEncoder(nn.Module):
    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        z = self.model.latent.point(self.model.encoder(image))
        recon_params = self.model.decode_hidden(self.model.latent.hidden(z))
        return image_of(self.model.likelihood, recon_params), z.clone()


class _Sampler(nn.Module):
    def __init__(self, prior: Any) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, noise: Tensor) -> Tensor:
        z: Tensor = self.prior.from_noise(noise)
        return z


def graphs_of(model: VAE, *, dynamic_size: bool = False) -> tuple[Graph, Graph, Graph]:
    """Encoder, decoder and the whole; with ``dynamic_size``, ``model`` is changed by :func:`free_sizes`."""
    image, latent = {"image": tuple(model.image_shape)}, tuple(model.latent_shape)
    multiple = free_sizes(model) if dynamic_size else None
    decoded = {"mean": "picture", "recon_params": "raw"}
    decoder = Graph("decoder", _Decoder(model), {"z": latent}, decoded, multiple)
    if not model.latent.has_prior:
        whole = {"reconstruction": "picture", "z": "raw"}
        return (
            Graph("encoder", _Encoder(model), image, {"z": "raw"}, multiple),
            decoder,
            Graph("autoencoder", _WholeAutoEncoder(model), image, whole, multiple),
        )
    posterior = {"mu": "raw", "logvar": "raw"}
    bound = {"reconstruction": "picture", **posterior, "distortion": "nats", "kl": "nats"}
    return (
        Graph("encoder", _Encoder(model), image, posterior, multiple),
        decoder,
        Graph("vae", _Whole(model), {**image, "eps": latent}, bound, multiple),
    )


def sampler_of(model: VAE) -> Graph | None:
    """From noise to draws of the prior, if it can; None for N(0, I), of which noise is a draw."""
    size = noise_of(model)["noise_size"]
    return None if size is None else Graph("prior", _Sampler(model.prior), {"noise": (size,)}, {"z": "raw"})


def noise_of(model: VAE) -> dict[str, int | None]:
    """How many standard normal numbers the prior makes a draw from, and how many of them beside the latent's."""
    prior: Any = model.prior
    if prior is None or isinstance(prior, StandardNormal):
        return {"noise_size": None, "extra_noise": None}
    extra = int(getattr(prior, "extra_noise", 0))
    return {"noise_size": math.prod(model.latent_shape) + extra, "extra_noise": extra}


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
    """What to look at: the graph of a whole VAE comes last, and adds only the bound to what went well before."""
    if not isinstance(graph.module, _Whole):
        return f"this model's {graph.part}"
    vae = graph.module.vae
    return f"{type(vae.likelihood).__name__}.log_prob or {type(vae.prior).__name__}.kl"


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """The same model with ``metadata_props``."""
    proto = onnx.load_model_from_string(content)
    onnx.helper.set_model_props(proto, dict(metadata))
    return bytes(proto.SerializeToString(deterministic=True))
