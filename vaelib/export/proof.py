"""The last proof: the bundle's own bytes, opened and run by ``OnnxVAE``, give what torch gives."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vaelib._checks import ExportError
from vaelib.export.bundle import write_bundle
from vaelib.export.graphs import Graph
from vaelib.export.validation import Limit, allowed_differences, answers_of_torch, difference, drawn_inputs, session
from vaelib.runtime import OnnxVAE, Plan
from vaelib.runtime.bundle import Bundle

__all__ = ["prove"]

_SAME = 5e-2
"""For int8, whose distance from torch is judged on images: how far the runtime may be from plain onnxruntime."""

_BATCHES = (1, 3, 16, 40)
"""One image, calls of several images, and a batch that is cut."""
_PLANS = (Plan(chunk=7, workers=2), Plan(chunk=16, workers=1))
_CALLS: dict[str, tuple[tuple[str, ...], Callable[..., Any]]] = {
    "encoder": (("mu", "logvar", "z"), OnnxVAE.encode),
    "decoder": (("mean",), OnnxVAE.decode),
    "vae": (("distortion", "kl"), OnnxVAE.elbo_terms),
    "autoencoder": (("reconstruction",), OnnxVAE.reconstruct),
    "prior": (("z",), OnnxVAE.from_noise),
}
"""By part: the outputs that the runtime gives, and the method that gives them."""


class _Cut(OnnxVAE):
    """Cuts batches by plans that are given, so that nothing is measured."""

    def use(self, plan: Plan) -> None:
        parts = ["encoder", "decoder", *["vae"][: self.metadata["kind"] == "VAE"]]
        for part in parts if self.metadata["noise_size"] is None else [*parts, "prior"]:
            self._graphs.engine(part).fix(plan)


def prove(
    kind: str, files: Mapping[str, bytes], graphs: Sequence[Graph], limits: Mapping[str, Mapping[str, Limit]]
) -> None:
    """Open ``files`` as a bundle and compare what ``OnnxVAE`` gives with torch, at several batch sizes and cuts.

    Args:
        kind: ``"VAE"`` or ``"AutoEncoder"``.
        files: The bundle's files but its manifest, by name.
        graphs: The graphs among them.
        limits: By part and kind of output, what may differ.

    Raises:
        ExportError: A ``ValueError``: if the runtime refuses a file, or gives other values than torch.
    """
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "bundle"
        write_bundle(directory, kind, files)
        try:
            opened = Bundle(directory)
            for graph in graphs:
                opened.read(graph.part)
            model = _Cut(directory, threads=2)
            for plan in _PLANS:
                model.use(plan)
                for graph in graphs:
                    _compare(model, graph, files[f"{graph.part}.onnx"], limits[graph.part], plan)
        except ExportError:
            raise
        except ValueError as error:  # of a file that is refused, or of values that are not finite
            raise ExportError(
                f"vaelib.runtime refuses the bundle: {str(error).replace(f'{directory}/', '')}"
            ) from error


def _compare(model: OnnxVAE, graph: Graph, content: bytes, limits: Mapping[str, Limit], plan: Plan) -> None:
    names, call = _CALLS[graph.part]
    names = tuple(name for name in names if name in graph.outputs)
    is_loose = any(limit.tolerance > _SAME for limit in limits.values())
    plain = session(content) if is_loose else None
    for batch in _BATCHES if plan == _PLANS[0] else _BATCHES[-1:]:
        inputs = drawn_inputs(graph.inputs, batch, torch.Generator().manual_seed(batch))
        arrays = {name: values.numpy() for name, values in inputs.items()}
        answers = call(model, *arrays.values())
        found = answers if isinstance(answers, tuple) else (answers,)
        if plain is None:
            expected = dict(zip(graph.outputs, answers_of_torch(graph, inputs), strict=True))
        else:
            expected = dict(zip(names, map(torch.from_numpy, plain.run(list(names), arrays)), strict=True))
        for name, values in zip(names, found, strict=True):
            limit = limits[graph.outputs[name]]
            given = torch.from_numpy(np.ascontiguousarray(values))
            off = difference(expected[name], given, least_scale=limit.least_scale).max_rel
            if off <= min(limit.tolerance, _SAME) or (
                plain is None and off <= allowed_differences(graph, limits)[name]
            ):
                continue
            raise ExportError(
                f"vaelib.runtime gives another `{name}` than {'torch' if plain is None else 'onnxruntime'} for a batch"
                f" of {batch} in calls of at most {plan.chunk}: {graph.part}.onnx is off by {off:.1e} of its scale."
            )
