"""The three graphs, from torch to ONNX bytes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import onnx
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from onnxscript import opset18 as op
from torch import Tensor, nn

from vaelib._checks import ExportError
from vaelib.export.lowering import lower
from vaelib.vae import VAE, AutoEncoder

__all__ = ["Graph", "graph_of", "parts_of", "to_bytes", "with_metadata"]


class Graph(NamedTuple):
    """A torch module of flat tensors with the names that its ONNX graph bears."""

    part: str
    module: nn.Module
    inputs: dict[str, tuple[int, ...]]
    """Input name to the shape of one item."""
    outputs: dict[str, str]
    """Output name to its kind, which has a tolerance: ``"picture"``, ``"nats"`` or ``"raw"``."""


def _log_sigmoid(x: Any) -> Any:
    return op.Sub(op.Min(x, 0.0), op.Log(op.Add(op.Exp(op.Neg(op.Abs(x))), 1.0)))


def _expm1(x: Any) -> Any:
    return op.Mul(op.Tanh(op.Mul(x, 0.5)), op.Add(op.Exp(x), 1.0))


# torch writes Log(Sigmoid(x)), infinite for the logits of any sure decoder, and Exp(x) - 1, which cancels near zero.
_TRANSLATIONS: dict[Any, Any] = {torch.ops.aten.log_sigmoid.default: _log_sigmoid, torch.ops.aten.expm1.default: _expm1}


class _Encoder(nn.Module):
    def __init__(self, model: VAE | AutoEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.model.encode(image)


class _Decoder(nn.Module):
    def __init__(self, model: VAE | AutoEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        recon_params = self.model.decode(z)
        return _picture(self.model, recon_params), recon_params.clone()


class _Whole(nn.Module):
    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor, eps: Tensor) -> tuple[Tensor, ...]:
        mu, logvar = self.vae.encode(image)
        z = mu + (0.5 * logvar).exp() * eps
        recon_params = self.vae.decode(z)
        distortion = -self.vae.likelihood.log_prob(image, recon_params)
        kl = self.vae.prior.kl(mu, logvar, z).sum(1)
        return _picture(self.vae, recon_params), mu, logvar, distortion, kl


class _WholeAutoEncoder(nn.Module):
    def __init__(self, model: AutoEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        z = self.model.encode(image)
        return _picture(self.model, self.model.decode(z)), z.clone()


def _picture(model: VAE | AutoEncoder, recon_params: Tensor) -> Tensor:
    return recon_params if model.likelihood is None else model.likelihood.mean(recon_params)


def parts_of(model: VAE | AutoEncoder) -> tuple[str, str, str]:
    """The names of the model's graphs, the smaller ones first."""
    return ("encoder", "decoder", "vae" if isinstance(model, VAE) else "autoencoder")


def graph_of(part: str, model: VAE | AutoEncoder) -> Graph:
    """One of the graphs that :func:`parts_of` names."""
    image, latent = {"image": tuple(model.image_shape)}, tuple(model.latent_shape)
    if part == "decoder":
        return Graph(part, _Decoder(model), {"z": latent}, {"mean": "picture", "recon_params": "raw"})
    if isinstance(model, AutoEncoder):
        if part == "encoder":
            return Graph(part, _Encoder(model), image, {"z": "raw"})
        return Graph(part, _WholeAutoEncoder(model), image, {"reconstruction": "picture", "z": "raw"})
    posterior = {"mu": "raw", "logvar": "raw"}
    if part == "encoder":
        return Graph(part, _Encoder(model), image, posterior)
    outputs = {"reconstruction": "picture", **posterior, "distortion": "nats", "kl": "nats"}
    return Graph(part, _Whole(model), image | {"eps": latent}, outputs)


def to_bytes(graph: Graph, opset: int) -> bytes:
    """One ONNX file with a free batch axis and no trace of this machine.

    Raises:
        ExportError: A ``ValueError``: if torch cannot express the graph.
    """
    example = tuple(torch.full((2, *shape), 0.5) for shape in graph.inputs.values())
    batch = torch.export.Dim("batch")
    try:
        with warnings.catch_warnings():
            # Of what the exporter says of itself nothing concerns the graph, which is checked as a whole afterwards.
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                graph.module.eval(),
                example,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=tuple({0: batch} for _ in example),
                opset_version=opset,
                dynamo=True,
                custom_translation_table=_TRANSLATIONS,
                verbose=False,
            )
    except Exception as error:  # torch wraps whatever went wrong in exporter errors of many kinds
        raise ExportError(f"torch could not export {_culprit(graph)}: {error}") from error
    lower(program.model)
    RemoveUnusedNodesPass()(program.model)
    ClearMetadataAndDocStringPass()(program.model)
    proto = program.model_proto
    for value in (*proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    proto.producer_name, proto.producer_version = "vaelib", ""
    return bytes(proto.SerializeToString(deterministic=True))


def _culprit(graph: Graph) -> str:
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
