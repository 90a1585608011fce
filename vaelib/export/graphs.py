"""The three graphs, from torch to ONNX bytes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import onnx
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from vaelib._checks import ExportError
from vaelib.vae import VAE

__all__ = ["Graph", "graph_of", "to_bytes", "with_metadata"]


class Graph(NamedTuple):
    """A torch module of flat tensors with the names that its ONNX graph bears."""

    module: nn.Module
    inputs: dict[str, tuple[int, ...]]
    """Input name to the shape of one item."""
    outputs: tuple[str, ...]
    pictures: tuple[str, ...]
    """Those outputs that are pictures."""


class _Encoder(nn.Module):
    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.vae.encode(image)


class _Decoder(nn.Module):
    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        recon_params = self.vae.decode(z)
        return self.vae.likelihood.mean(recon_params), recon_params.clone()


class _Whole(nn.Module):
    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.vae.encode(image)
        recon_params = self.vae.decode(mu + (0.5 * logvar).exp() * eps)
        return self.vae.likelihood.mean(recon_params), mu, logvar


def graph_of(part: str, vae: VAE) -> Graph:
    """The graph of ``"encoder"``, ``"decoder"`` or ``"vae"``."""
    image, latent = tuple(vae.image_shape), tuple(vae.latent_shape)
    graphs = {
        "encoder": Graph(_Encoder(vae), {"image": image}, ("mu", "logvar"), ()),
        "decoder": Graph(_Decoder(vae), {"z": latent}, ("mean", "recon_params"), ("mean",)),
        "vae": Graph(
            _Whole(vae),
            {"image": image, "eps": latent},
            ("reconstruction", "mu", "logvar"),
            ("reconstruction",),
        ),
    }
    graph = graphs[part]
    graph.module.eval()
    return graph


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
                graph.module,
                example,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=tuple({0: batch} for _ in example),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch wraps whatever went wrong in exporter errors of many kinds
        raise ExportError(f"torch could not export this model: {error}") from error
    ClearMetadataAndDocStringPass()(program.model)
    proto = program.model_proto
    for value in (*proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    proto.producer_name, proto.producer_version = "vaelib", ""
    return bytes(proto.SerializeToString(deterministic=True))


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """The same model with ``metadata_props``."""
    proto = onnx.load_model_from_string(content)
    onnx.helper.set_model_props(proto, dict(metadata))
    return bytes(proto.SerializeToString(deterministic=True))
