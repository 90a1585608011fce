"""The files that backends open, written once, of a model or a bundle."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vaelib._checks import MissingExtraError
from vaelib.benchmark.backend import EXPORTING, OPERATIONS, Array, Subject, draw, functions_of, needs_packages
from vaelib.export import export_onnx
from vaelib.serialization import save
from vaelib.vae import VAE

__all__ = ["Source", "write_files"]

Source = VAE | Path
"""A model, or the directory of a bundle."""


def write_files(source: Source, directory: Path, needs: Collection[str]) -> Subject:
    """Fill ``directory`` with what backends need: ``model``, ``bundle``, ``graphs`` of each operation, in ``int8``."""
    if isinstance(source, Path):
        if needs_packages(*EXPORTING):
            raise MissingExtraError("a benchmark of a bundle", "onnx")
        from vaelib.benchmark.graphs import of_bundle

        return of_bundle(source, directory, needs)
    model = copy.deepcopy(source).cpu().float().eval()
    if "model" in needs:
        save(model, directory / "model")
    if {"bundle", "int8"} & set(needs):
        export_onnx(model, directory / "bundle")
    functions = functions_of(copy.deepcopy(model).double())

    def exact(operation: str, values: Array) -> NDArray[np.float64]:
        with torch.inference_mode():
            return torch.cat(
                [functions[operation](part.double()) for part in torch.from_numpy(values).split(64)]
            ).numpy()

    subject = Subject(directory, tuple(model.image_shape), tuple(model.latent_shape), exact, range, {}, 0.0)
    for operation in OPERATIONS:
        example = torch.from_numpy(draw(subject, operation, 2)[0])
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            functions_of(model)[operation](example[:1])
        subject.flops[operation] = counter.get_total_flops()
        if "graphs" in needs:
            _write_plain_graph(model, operation, example, directory)
    if "int8" in needs:
        from vaelib.benchmark.graphs import write_int8

        write_int8(subject)
    return subject


def _write_plain_graph(model: nn.Module, operation: str, example: torch.Tensor, directory: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Operation(model, operation),
            (example,),
            directory / f"{operation}.onnx",
            input_names=["x"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            dynamo=True,
            verbose=False,
        )


class _Operation(nn.Module):
    """One direction of a model, as one would export it by hand."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: Any) -> Any:
        return functions_of(self.model)[self.name](x)
