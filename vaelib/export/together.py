"""All graphs of a model as one, in which each network occurs once; and the graphs cut out of what torch makes of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, cast

import onnx_ir as ir
import torch
from onnx_ir.convenience import extract, replace_all_uses_with
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vaelib.export.graphs import Graph
from vaelib.export.parts import bound, decoded, encoded

__all__ = ["Together", "cut", "decodes_its_z", "together"]

_NETWORKS = ("encoder", "decoder", "vae")


class Together(nn.Module):
    """The modules of ``graphs``; the decoder takes the input ``z`` here, which stands for the draw in the whole."""

    def __init__(self, graphs: Mapping[str, Graph], names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        whole: Any = graphs["vae"].module
        self.view = whole.view
        self.others = [(graph.module, _inputs(graph)) for graph in graphs.values() if graph.part not in _NETWORKS]
        # Each module is registered once: where there are two ways to one, torch shows objects of another type.
        self.model = whole.model
        self.copies = nn.ModuleList(module for module, _ in self.others if module.model is not whole.model)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs of all graphs, one after the other."""
        given = dict(zip(self.names, tensors, strict=True))
        image, view = given["image"], self.view(given.get("condition"))
        features = view._run(view.encoder, image)
        answers = [*encoded(view, features)]
        draw = view.latent.draw(features, given.get("noise", image.new_zeros(image.shape[0], 0)))
        mean, recon_params = decoded(view, given["z"])
        answers += [mean, recon_params, *bound(view, image, draw, recon_params)]
        for module, inputs in self.others:
            answer = module(*(given[name] for name in inputs))
            answers += [answer] if isinstance(answer, Tensor) else answer
        return tuple(answers)


@torch.no_grad()
def decodes_its_z(whole: Graph) -> bool:
    """Whether all that the decoder is given of a draw is in z, and drawing leaves what the encoder gives as it is."""
    given = dict(zip(whole.inputs, whole.constant_inputs(0.5), strict=True))
    image, module = given["image"], cast(Any, whole.module)
    view = module.view(given.get("condition"))
    features = view._run(view.encoder, image)
    before = copy.deepcopy(features)
    draw = view.latent.draw(features, given.get("noise", image.new_zeros(len(image), 0)))
    same = map(torch.equal, tree_leaves(before), tree_leaves(features))
    return torch.equal(draw.hidden, view.latent.hidden(draw.z)) and all(same)


def together(graphs: Mapping[str, Graph]) -> Graph:
    """One graph with the inputs and outputs of all of ``graphs``."""
    inputs: dict[str, tuple[int, ...]] = {}
    outputs: dict[str, str] = {}
    choices: dict[str, int] = {}
    for graph in graphs.values():
        names = dict(zip(graph.inputs, _inputs(graph), strict=True))
        inputs |= {names[name]: shape for name, shape in graph.inputs.items()}
        choices |= {names[name]: count for name, count in graph.choices.items() if name in names}
        outputs |= dict(zip(_outputs(graph), graph.outputs.values(), strict=True))
    module = Together(graphs, tuple(inputs))
    return graphs["vae"]._replace(part="whole", module=module, inputs=inputs, outputs=outputs, choices=choices)


def cut(model: ir.Model, graphs: Mapping[str, Graph]) -> Iterator[tuple[str, ir.Model]]:
    """The graph of each part out of what torch made of :func:`together`, which is changed."""
    yield from ((part, _cut(model, graph)) for part, graph in graphs.items() if part != "vae")
    whole = graphs["vae"]
    _measure_own_inputs(model.graph, whole)
    z = next(value for value in model.graph.inputs if value.name == "z")
    draw = next(value for value in model.graph.outputs if value.name == "vae_z")
    copied: Any = draw.producer()
    replace_all_uses_with(z, copied.inputs[0] if copied.op_type == "Identity" else draw)
    model.graph.sort()
    yield "vae", _cut(model, whole)


def _cut(model: ir.Model, graph: Graph) -> ir.Model:
    _measure_own_inputs(model.graph, graph)
    found = extract(model.graph, _inputs(graph), _outputs(graph))
    for values, names in ((found.inputs, graph.inputs), (found.outputs, graph.outputs)):
        for value, name in zip(values, names, strict=True):
            value.name = name
    weights = sorted(found.initializers.items())  # extract has them in any order
    found.initializers.clear()
    found.initializers.update(weights)
    return ir.Model(found, ir_version=model.ir_version, functions=list(model.functions.values()))


def _measure_own_inputs(whole: ir.Graph, graph: Graph) -> None:
    """Read the batch size, which torch's export takes from any input, from an input of ``graph``."""
    own, *_ = inputs = [value for value in whole.inputs if value.name in _inputs(graph)]
    for value in whole.inputs:
        for node, _ in [] if value in inputs else list(value.uses()):
            if node.op_type == "Shape" and node.attributes.get_int("end", 0) == 1:
                node.replace_input_with(0, own)


def _inputs(graph: Graph) -> list[str]:
    """Their names in the graph of all: those of the networks are the same for each of them."""
    return [name if graph.part in _NETWORKS else f"{graph.part}_{name}" for name in graph.inputs]


def _outputs(graph: Graph) -> list[str]:
    names = {"vae_reconstruction": "decoder_mean"}
    return [names.get(name, name) for name in (f"{graph.part}_{output}" for output in graph.outputs)]
