"""The last proof: the bundle's own bytes, opened and run by ``OnnxVAE``, give what torch gives."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vaelib._checks import ExportError
from vaelib.export.comparison import session
from vaelib.export.differences import EXACT, Judge, Limit, answers_of_torch, drawn_inputs
from vaelib.export.graphs import Graph
from vaelib.export.manifest import write_bundle
from vaelib.export.ties import near_ties
from vaelib.runtime import OnnxVAE, Plan

__all__ = ["prove"]

_SAME = 5e-2
"""For int8, whose distance from torch is judged on images: how far the runtime may be from plain onnxruntime."""
_BATCHES = (1, 3, 16, 40)
"""One image, calls of several images, and a batch that is cut."""
_PLANS = (Plan(chunk=7, workers=2), Plan(chunk=16, workers=1))


class _Cut(OnnxVAE):
    """Cuts batches by plans that are given, so that nothing is measured."""

    def use(self, plan: Plan) -> None:
        for part, contract in self.contract.items():
            if contract.file is not None:
                self._graphs.engine(part).fix(plan)

    def answers(self, part: str, inputs: dict[str, Any], outputs: Sequence[str]) -> list[Any]:
        """By what is behind every method of the runtime."""
        given = {name: self._graphs.checked(part, name, values, name) for name, values in inputs.items()}
        return self._graphs.run(part, given, tuple(outputs), lambda _: None)


def prove(
    described: Mapping[str, Any],
    files: Mapping[str, bytes],
    graphs: Mapping[str, Graph],
    limits: Mapping[str, Mapping[str, Limit]],
) -> None:
    """Open ``files`` as a bundle and compare what ``OnnxVAE`` gives with torch, at several batch sizes and cuts.

    Args:
        described: The manifest but for its files.
        files: The bundle's files but its manifest, by name.
        graphs: By part.
        limits: By part and kind of output, what may differ; ``EXACT`` where there is no file.

    Raises:
        ExportError: A ``ValueError``: if the runtime refuses a file, or gives other values than torch.
    """
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "bundle"
        write_bundle(directory, described, files)
        try:
            model = _Cut(directory, threads=2)
            for plan in _PLANS:
                model.use(plan)
                for part, graph in graphs.items():
                    _compare(model, graph, files.get(f"{part}.onnx", b""), limits.get(part, EXACT), plan)
        except ExportError:
            raise
        except ValueError as error:  # of a file that is refused, or of values that are not finite
            raise ExportError(
                f"vaelib.runtime refuses the bundle: {str(error).replace(f'{directory}/', '')}"
            ) from error


def _compare(model: _Cut, graph: Graph, content: bytes, limits: Mapping[str, Limit], plan: Plan) -> None:
    specs = model.contract[graph.part].outputs
    names = [name for name in graph.outputs if "G" not in specs[name].shape]  # whose size the runtime does not know
    plain = session(content) if limits["image"].tolerance > _SAME else None
    judge = Judge(graph, limits)
    for batch in _BATCHES if plan == _PLANS[0] else _BATCHES[-1:]:
        inputs = drawn_inputs(graph, batch, torch.Generator().manual_seed(batch))
        arrays = {name: values.numpy() for name, values in inputs.items()}
        found = dict(zip(names, model.answers(graph.part, arrays, names), strict=True))
        if plain is None:
            expected = answers_of_torch(graph, inputs)
        else:
            expected = dict(zip(names, map(torch.from_numpy, plain.run(names, arrays)), strict=True))
        for name, parity in judge.apart(expected, found, near_ties(graph, inputs)).items():
            off = parity.max_rel
            if off <= _SAME if plain is not None else judge.accepts(name, parity):
                continue
            raise ExportError(
                f"vaelib.runtime gives another `{name}` than {'torch' if plain is None else 'onnxruntime'} for a batch"
                f" of {batch} in calls of at most {plan.chunk}: {graph.part}.onnx is off by {off:.1e} of its scale."
            )
