"""A graph of a bundle: its torch module, what it takes and gives, at one size or at any."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaelib._checks import ExportError
from vaelib.runtime.contract import Contract, Spec
from vaelib.tiling.passes import free_axes, multiple_of
from vaelib.vae import VAE
from vaelib.vae.verbs import Given

__all__ = ["MOST", "Graph", "contract_of", "culprit", "free_sizes", "reason_of"]

_MOST_CHARACTERS = 200
_SMALL = 4
"""Height and width of the latent map at which graphs of any size are proved: a large one has the same nodes."""
_HINTS = {
    "data-dependent": " The code branches on a tensor's values; torch.where does not.",
    "No ONNX function": " ONNX has no such operator; take other ones.",
}
MOST = 64
"""The largest batch of a proof of a small network."""
_USUAL = 16
"""A batch that proofs of a small network have."""


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
    proof: tuple[int, int] | None = None
    """Height and width of the latent map at which a graph of any size is proved; None for its own."""
    most: int = MOST
    """The largest batch of a proof."""

    def at(self, rows: int, columns: int) -> Graph:
        """The graph with the shapes of its inputs for another latent map; of fixed sizes the graph itself."""
        if self.multiple is None:
            return self
        steps = {name: self.multiple if name == "image" else 1 for name in self.inputs}
        sized = {
            name: (shape[0], rows * steps[name], columns * steps[name]) if len(shape) == 3 else shape
            for name, shape in self.inputs.items()
        }
        return self._replace(inputs=sized)

    @property
    def is_large(self) -> bool:
        """Whether the network is so large that its proofs have smaller batches."""
        return self.most < _USUAL

    def for_proof(self) -> Graph:
        """The graph with the shapes of its inputs as they are in proofs."""
        return self if self.proof is None else self.at(*self.proof)

    def larger(self) -> Graph:
        """The graph with the shapes of its inputs at another size."""
        name, shape = next(iter(self.inputs.items()))
        if self.multiple is None:
            return self
        step = self.multiple if name == "image" else 1
        return self.at(shape[1] // step + 1, shape[2] // step + 2)

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
        return tuple(
            {0: batch} if len(shape) != 3 else image if name == "image" else latent
            for name, shape in self.inputs.items()
        )


def contract_of(graph: Graph) -> Contract:
    """What the graph takes and gives: the inputs' shapes, and those of what the module makes of them.

    An axis that is another at another size is free, and has the name of the input's that it follows.
    """
    runs = []
    for sized in [graph] if graph.multiple is None else [graph, graph.larger()]:
        example = tuple(values[:1] for values in sized.constant_inputs(0.0))
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


def culprit(graph: Graph) -> str:
    """What to look at: the graph of the whole comes after the networks', and adds only the bound to them."""
    if "kl" not in graph.outputs:
        return f"this model's {graph.part}"
    model: Any = graph.module.model
    rate = f"{type(model.latent).__name__}.draw"
    if model.prior is not None:
        rate = f"{type(model.prior).__name__}.{'kl' if hasattr(model.prior, 'kl') else 'log_prob'}"
    return f"{type(model.likelihood).__name__}.log_prob or {rate}"


def reason_of(error: BaseException) -> str:
    """The first line of the error at the root, cut to 200 characters, for an error that keeps the rest as its cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in str(error).splitlines()]
    line = next(filter(None, lines), type(error).__name__)
    short = line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}..."
    hint = next((hint for words, hint in _HINTS.items() if words in line), "")
    return f"{short.rstrip('.')}.{hint}"


def free_sizes(model: VAE) -> tuple[int, tuple[int, int]]:
    """Let ``model``, a copy that is about to be exported, take other sizes than its own.

    Returns:
        The spatial multiple: H and W must be multiples of it, and the latent map is that much smaller. And height and
        width of the latent map at which to prove the graphs: small, or those of the training if the model fails there.
    """
    if len(model.latent_shape) != 3:
        raise ExportError(
            "`dynamic_size` needs a fully convolutional model with a latent map, latent_shape=(C, h, w); "
            f"got the vector {tuple(model.latent_shape)}."
        )
    (_, height, width), (_, rows, columns) = model.image_shape, model.latent_shape
    multiple = multiple_of(model)
    if multiple is None:
        raise ExportError(
            "`dynamic_size` needs images whose height and width are the same multiple of the latent map's, got"
            f" {height} x {width} and {rows} x {columns}: train with sides that every stride divides."
        )
    free_axes(model)
    small = min(rows, _SMALL), min(columns, _SMALL)
    if small != (rows, columns):
        with contextlib.suppress(ExportError):  # such as a padding by reflection that is wider than the map
            _check_at(model, multiple, *small)
            _check_at(model, multiple, small[0] + 1, small[1] + 2)
            return multiple, small
    _check_at(model, multiple, rows + 1, columns + 2)
    return multiple, (rows, columns)


def _check_at(model: VAE, multiple: int, rows: int, columns: int) -> None:
    size = (multiple * rows, multiple * columns)
    view: Any = model if model.condition is None else Given(model, torch.zeros(1, model.condition.embedding_size))
    try:
        with torch.no_grad():
            z = view.embed(torch.full((1, model.image_shape[0], *size), 0.5))
            image = view.decode(z)
    except (RuntimeError, ValueError) as error:
        raise ExportError(
            f"`dynamic_size` needs a model for every size, this one fails at {size}: {reason_of(error)}"
        ) from error
    if z.shape[2:] != (rows, columns) or image.shape[2:] != size:
        raise ExportError(
            f"`dynamic_size` needs a model for every size, but images of {size} give a latent map of"
            f" {tuple(z.shape[2:])} and images of {tuple(image.shape[2:])}:"
            " train with sides that every stride divides."
        )
