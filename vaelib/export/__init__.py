"""ONNX out: three graphs without a random operator, each proved against torch before it is kept."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from vaelib import __version__
from vaelib._checks import MissingExtraError, check_int
from vaelib._files import writable_directory, written_whole
from vaelib.serialization import describe
from vaelib.vae import VAE

__all__ = ["PARTS", "Parity", "export_onnx"]

PARTS = ("encoder", "decoder", "vae")
SCHEMA = "1"


class Parity(NamedTuple):
    """How far onnxruntime is from torch on one output, over all batches and optimisation levels."""

    max_abs: float
    """Largest absolute difference."""
    max_rel: float
    """The same, divided by the largest absolute value that torch gave; of a picture, by 1 at least."""


def export_onnx(model: VAE, directory: str | Path, *, opset: int = 18) -> dict[str, dict[str, Parity]]:
    """Write ``encoder.onnx``, ``decoder.onnx`` and ``vae.onnx``, or raise and write nothing.

    ========  ===================  ======================================================
    graph     inputs               outputs
    ========  ===================  ======================================================
    encoder   ``image``            ``mu``, ``logvar``
    decoder   ``z``                ``mean`` (pictures), ``recon_params`` (raw parameters)
    vae       ``image``, ``eps``   ``reconstruction`` (pictures), ``mu``, ``logvar``
    ========  ===================  ======================================================

    The batch axis is free. The noise ``eps`` is an input, so a file gives the same answer to the same question.
    Every graph is compared with torch at batches 1, 2, 3, 7 and 16, with onnxruntime's optimisations off and on; a
    model whose batch norm has seen no data is compared a second time with statistics that are not fresh, because
    fresh ones hide a faulty fold. Shapes, ranges, the config and the measured differences go into each file's
    ``metadata_props``.

    Args:
        model: A VAE on any device, in any mode; it is not changed.
        directory: Made if missing; files of the same names are replaced after all three are proved.
        opset: ONNX operator set, 18 to 23.

    Returns:
        Graph name to output name to :class:`Parity`.

    Raises:
        ExportError: A ``ValueError``: if a graph breaks its contract or differs by more than 1e-5 of the pictures'
            scale, or 1e-4 of an other output's.
        TypeError: If ``model`` is no VAE.
        MissingExtraError: If onnx, onnxscript or onnxruntime is not installed.
        OSError: If the directory cannot be written.
    """
    if not isinstance(model, VAE):
        raise TypeError(f"`model` must be a VAE, got {type(model).__name__}.")
    if check_int("opset", opset, minimum=18) > 23:
        raise ValueError(f"`opset` must be <= 23, got {opset}.")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("ONNX export", "onnx")
    from vaelib.export.graphs import graph_of, to_bytes, with_metadata
    from vaelib.export.validation import check_contract, compare

    path = writable_directory("directory", directory)
    exported = copy.deepcopy(model).cpu().float().eval()
    if _has_fresh_statistics(exported):
        worn = _with_worn_statistics(exported)
        for part in PARTS:
            graph = graph_of(part, worn)
            compare(to_bytes(graph, opset), graph)

    parity = {}
    with ExitStack() as files:
        for part in PARTS:
            graph = graph_of(part, exported)
            content = to_bytes(graph, opset)
            parity[part] = compare(content, graph)
            content = with_metadata(content, _metadata(part, exported, opset, parity[part]))
            check_contract(content, graph)
            files.enter_context(written_whole(path / f"{part}.onnx")).write_bytes(content)
    return parity


def _metadata(part: str, model: VAE, opset: int, parity: Mapping[str, Parity]) -> dict[str, str]:
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode() + tensor.numpy().tobytes())
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "version": __version__,
        "part": part,
        "image_shape": list(model.image_shape),
        "image_range": [0.0, 1.0],
        "latent_shape": list(model.latent_shape),
        "likelihood": type(model.likelihood).__name__,
        "prior": type(model.prior).__name__,
        "weights_sha256": weights.hexdigest(),
        "opset": opset,
        "validation": {name: values._asdict() for name, values in parity.items()},
    }
    try:
        facts["config"] = describe(model)
    except TypeError:  # a foreign encoder exports all the same; only its config has no words
        facts["config"] = None
    return {f"vaelib.{name}": value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}


def _batch_norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]


def _has_fresh_statistics(model: nn.Module) -> bool:
    return any(norm.num_batches_tracked == 0 for norm in _batch_norms(model))


def _with_worn_statistics(model: VAE) -> VAE:
    """A copy whose batch norms look as if they had been trained."""
    worn = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in _batch_norms(worn):
            norm.running_mean.normal_(0.0, 0.5, generator=generator)
            norm.running_var.uniform_(0.5, 2.0, generator=generator)
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5, generator=generator)
                norm.bias.normal_(0.0, 0.5, generator=generator)
    return worn
