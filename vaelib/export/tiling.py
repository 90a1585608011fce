"""What a bundle says of tiles: the receptive field of encoder and decoder, or the layer without a bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vaelib._checks import ExportError
from vaelib._tiles import Axis, assembled, tiles_of
from vaelib.export.differences import Limit
from vaelib.export.graphs import Graph
from vaelib.runtime import OnnxVAE
from vaelib.runtime.protobuf import ProtobufError
from vaelib.runtime.sections import cut_out
from vaelib.tiling.field import Field, field_and_calls
from vaelib.tiling.passes import COLUMNS, ROWS, fields_of, sections_of
from vaelib.tiling.sizes import size_dependence

__all__ = ["prove_tiles", "sentence", "smooth_images", "tiling_of"]

_IMAGES = 2
_MOST = 5e-2
"""For int8, whose distance from torch has no limit."""
_SAME = 1e-4
"""Of the range: what the same value may differ by in torch and onnxruntime."""
_SIDE = 64
"""Pixels of the tiles that are blended for the stated error, or the side of the model's images if that is less."""


def tiling_of(graphs: Mapping[str, Graph], contents: Mapping[str, bytes]) -> dict[str, Any] | None:
    """By part, the axes of its receptive field, or the layer that has none and what blending costs.

    None where height and width are fixed. The graph of a part in ``contents`` is looked into for sections.

    Raises:
        ExportError: If a part computes in another way at another size, which a graph cannot.
    """
    multiple = graphs["encoder"].multiple
    if multiple is None:
        return None
    found = {}
    for part, name, scale in (("encoder", "image", multiple), ("decoder", "z", 1)):
        graph = graphs[part]
        sized = graph._replace(inputs={**graph.inputs, name: (graph.inputs[name][0], ROWS * scale, COLUMNS * scale)})
        module, examples = graph.module.eval(), [values[:1] for values in sized.constant_inputs(0.5)]
        sizes = [graph.for_proof().inputs[name][1:], (4 * ROWS * scale, 4 * COLUMNS * scale)]
        field, calls = field_and_calls(module, examples)
        changing = size_dependence(module, examples, sizes, calls)
        if changing is not None and changing.is_branch:
            raise ExportError(f"`dynamic_size` needs a model that computes the same at every size: {part} {changing}.")
        field = changing or field
        if isinstance(field, Field):
            found[part] = _axes(field)
            if part in contents and len(examples) == 1:
                found[part] |= _in_sections(graph, name, examples[0], contents[part])
        else:
            layer = field.layer.replace("`model.", "`").replace(f"`{part}.", "`")
            found[part] = {"layer": layer, "reason": field.reason, "blend": _blended(graphs, part, multiple)}
    return found


def _axes(field: Field) -> dict[str, Any]:
    return {name: axis._asdict() for name, axis in field._asdict().items()}


@torch.no_grad()
def _in_sections(graph: Graph, name: str, example: Tensor, content: bytes) -> dict[str, Any]:
    """The two sections of the network and the value of the graph that lies between them; nothing if there is none."""
    sections = sections_of(getattr(graph.module.model, graph.part), [example])
    if len(sections) != 2:
        return {}
    fields = fields_of(sections)
    given = torch.rand(1, *graph.for_proof().inputs[name], generator=torch.Generator().manual_seed(0))
    between = sections[0].network(given)
    value = _value_like(content, {name: given.numpy()}, between.numpy())
    if value is None:
        return {}
    cuts = zip((name, value), (given, between), fields, strict=True)
    return {"sections": [{"given": n, "channels": v.shape[1], **_axes(field)} for n, v, field in cuts]}


def _value_like(content: bytes, inputs: Mapping[str, Any], wanted: NDArray[np.float32]) -> str | None:
    """The name of the value of a graph that is closest to ``wanted``, if it is close and all outputs depend on it."""
    proto = onnx.load_model_from_string(content)
    outputs = [value.name for value in proto.graph.output]
    names = [name for node in proto.graph.node for name in node.output]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    apart = {
        name: np.abs(value - wanted).max()
        for name, value in zip(names, session.run(names, dict(inputs)), strict=True)
        if value.shape == wanted.shape
    }
    name = min(apart, key=apart.__getitem__, default=None)
    if name is None or not apart[name] <= _SAME * np.ptp(wanted):
        return None
    try:
        cut_out(content, name, outputs)
    except ProtobufError:  # they also depend on something else
        return None
    return name


@torch.no_grad()
def _blended(graphs: Mapping[str, Graph], part: str, multiple: int) -> dict[str, Any]:
    """The mean error of blended tiles, of smooth random images that nothing else has seen."""
    encoder, graph = graphs["encoder"], graphs[part]
    channels, *sides = encoder.inputs["image"]
    steps = max(4, min(_SIDE, *sides) // multiple)
    values = smooth_images(_IMAGES, channels, 2 * steps * multiple, torch.Generator().manual_seed(0))
    more = [given[:1].expand(_IMAGES, *given.shape[1:]) for given in encoder.constant_inputs(0.0)[1:]]
    axis = Axis(multiple, 1) if part == "encoder" else Axis(1, multiple)
    if part == "decoder":
        values = encoder.module(values, *more)[0]
    parts = tiles_of((axis, axis), values.shape[2:], steps * multiple, exact=False)
    whole = graph.module(values, *more)[0]
    (tiled,) = assembled(
        lambda cut: [graph.module(cut, *more)[0]],
        values,
        (axis, axis),
        parts,
        empty=lambda like, shape: like.new_zeros(shape),
        like=lambda like, numbers: like.new_tensor(numbers),
    )
    off = (tiled - whole).flatten(1) / (whole.amax() - whole.amin())
    rms, most = off.square().mean(1).sqrt().mean(), off.abs().amax(1).mean()
    return {
        "tile": steps * multiple,
        "size": 2 * steps * multiple,
        **{name: float(f"{value:.2g}") for name, value in (("rms", rms), ("max", most))},
    }


def sentence(tiling: Mapping[str, Any] | None) -> str:
    """What the card says of tiles."""
    if tiling is None:
        return ""
    words = ["\n\nOf images of any size, `tile=512` computes tiles of that many pixels, one after the other:"]
    for part, found in tiling.items():
        if "rows" in found:
            axes = [Axis(**found[name]) for name in ("rows", "columns")]
            around = " and ".join(f"{axis.low} + {axis.high}" for axis in axes)
            words.append(
                f"the {part} exactly, since it looks at {around} steps of {max(axes[0].step, axes[0].cells)} pixels"
                " around its own, along height and width;"
            )
        else:
            error = found["blend"]
            words.append(
                f"the {part} only with `blend=True`, since {found['layer']} {found['reason']}; the error is"
                f" {error['rms']:g} of the range of values (root mean square; {error['max']:g} at most) for images of"
                f" {error['size']} pixels in tiles of {error['tile']};"
            )
    return " ".join(words).removesuffix(";") + "."


def smooth_images(count: int, channels: int, side: int, generator: torch.Generator) -> Tensor:
    """Random images with large areas and fine grain, whose tiles differ from each other as those of photographs do."""
    coarse = torch.rand(count, channels, 5, 5, generator=generator)
    grain = torch.randn(count, channels, side, side, generator=generator)
    return (F.interpolate(coarse, size=(side, side), mode="bicubic") + 0.05 * grain).clamp(0, 1)


def prove_tiles(model: OnnxVAE, limits: Mapping[str, Mapping[str, Limit]]) -> None:
    """Strips of images and of latents, along each axis, must be the same in tiles as they are whole.

    Args:
        model: A bundle.
        limits: Allowed difference by part and kind of output, relative to the range of the values.
    """
    tiling, condition = model.metadata["tiling"] or {}, model.metadata["condition"]
    if condition is not None:
        model = model.given(condition=0 if condition["kind"] == "labels" else [0.0] * condition["size"])
    generator = np.random.default_rng(0)
    calls: list[tuple[str, str, Any, int]] = [
        ("encoder", "raw", model.embed, model.image_shape[0]),
        ("decoder", "image", model.decode, model.latent_shape[0]),
    ]
    for part, kind, call, channels in calls:
        if "rows" not in tiling.get(part, {}):
            continue
        axes = [Axis(**tiling[part][name]) for name in ("rows", "columns")]
        steps = max(_least(axis) for axis in axes)
        ends = [section[name] for section in tiling[part].get("sections", []) for name in ("rows", "columns")]
        tile = max(_least(Axis(**axis)) for axis in ends) if ends else steps
        for along in (0, 1):
            sizes = [axis.step * (steps + 3 if i == along else axis.least) for i, axis in enumerate(axes)]
            values = generator.random((1, channels, *sizes), np.float32)
            whole, tiled = call(values), call(values, tile=tile * max(axes[0].step, axes[0].cells))
            off = np.abs(tiled - whole).max() / max(np.ptp(whole), 1e-12)
            if not off <= min(limits[part][kind].tolerance, _MOST):
                raise ExportError(
                    f"vaelib.runtime gives another result in tiles than for the whole: {part}.onnx is off by {off:.1e}"
                    " of its range."
                )


def _least(axis: Axis) -> int:
    return max(axis.low + axis.high + 1, axis.least)
