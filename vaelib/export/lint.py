"""What keeps a graph from onnxruntime's fast layout on the CPU, and which argument would avoid it.

onnxruntime computes convolutions on blocks of channels (its domain ``com.microsoft.nchwc``). An operator that cannot
takes its input in plain order, and the values are copied out of the blocks and in again. This module reads the graph
that onnxruntime made of the exported one, so that it speaks of what happens, not of what ought to.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnxruntime

__all__ = ["Finding", "lint", "optimised"]

_BLOCKED = "com.microsoft.nchwc"
_ACTIVATIONS = {"QuickGelu": "silu", "Elu": "elu", "Erf": "gelu", "Gelu": "gelu", "Relu": "relu", "Tanh": "tanh"}


class Finding(NamedTuple):
    """One thing that slows a graph down."""

    part: str
    what: str
    """What onnxruntime does, and how often."""
    advice: str
    """The argument that would avoid it."""

    def __str__(self) -> str:
        return f"{self.part}: {self.what} {self.advice}"


def lint(files: Mapping[str, bytes]) -> list[Finding]:
    """Findings about encoder and decoder, as onnxruntime's CPU provider of this version runs them on this machine.

    Args:
        files: A bundle's, by name.

    Returns:
        Empty if nothing is known that would be faster.
    """
    return [
        Finding(part, what, advice)
        for part in ("encoder", "decoder")
        for what, advice in _findings(optimised(files[f"{part}.onnx"]).graph)
    ]


def optimised(content: bytes) -> onnx.ModelProto:
    """The graph after onnxruntime's own optimisation."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it warns that the file holds for this machine only, which is what is wanted
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return onnx.load(path)


def _findings(graph: Any) -> Iterator[tuple[str, str]]:
    nodes = list(graph.node)
    producers = {output: node for node in nodes for output in node.output}
    names = Counter(node.op_type for node in nodes)
    if names["ConvTranspose"]:
        yield (
            f"{names['ConvTranspose']} ConvTranspose in plain order, each with its activation as a pass of its own.",
            'upsample="nearest" (ConvDecoder) has convolutions in blocks instead; measure which is faster for you.',
        )
    if count := names["InstanceNormalization"] + names["GroupNormalization"]:
        yield (
            f"{count} normalisations in several passes over plain order.",
            'norm="batch" is folded into the convolutions and costs nothing.',
        )
    if names["DepthToSpace"]:
        yield (
            f"{names['DepthToSpace']} DepthToSpace in plain order.",
            'upsample="nearest" (ConvDecoder) stays in blocks.',
        )
    apart = [node.op_type for node in nodes if node.op_type in _ACTIVATIONS and _follows_convolution(node, producers)]
    if apart:
        yield (
            f"{len(apart)} activations ({', '.join(sorted({_ACTIVATIONS[name] for name in apart}))}) as passes of their"
            " own after a convolution.",
            'activation="relu", "leaky_relu" or "tanh" is computed inside it.',
        )
    if any(node.op_type == "Slice" and _passed(node, producers, "Upsample") for node in nodes):
        yield ("Maps are cropped in plain order.", "image_shape with sides that every stride divides needs no crop.")
    narrow = [n for n in nodes if _is_blocked(n, "Conv") and _is_blocked(producers.get(n.input[0]), "ReorderOutput")]
    if narrow:
        yield (
            f"{len(narrow)} convolutions read plain order, since the channels before them do not fill a block.",
            "hidden_channels in multiples of 16 fill the blocks of any CPU.",
        )
    copies = [node for node in nodes if node.op_type == "ReorderInput" and _passed(node, producers, "ReorderOutput")]
    if copies:
        yield (
            f"{len(copies)} copies of a map out of the blocks and in again.",
            "Whatever stands in plain order between two convolutions costs one.",
        )


def _is_blocked(node: Any, op_type: str) -> bool:
    return node is not None and node.domain == _BLOCKED and node.op_type == op_type


def _follows_convolution(node: Any, producers: dict[str, Any]) -> bool:
    """Directly, but for the copy between and the scaling that is a part of GELU."""
    before = producers.get(node.input[0])
    while before is not None and before.op_type in ("ReorderOutput", "Div", "Mul"):
        before = producers.get(before.input[0])
    return _is_blocked(before, "Conv")


def _passed(node: Any, producers: dict[str, Any], op_type: str) -> bool:
    """Whether a value that ``node`` reads has been through a blocked ``op_type``."""
    seen: set[str] = set()
    waiting = list(node.input)
    while waiting:
        name = waiting.pop()
        before = producers.get(name)
        if name in seen or before is None:
            continue
        if _is_blocked(before, op_type):
            return True
        seen.add(name)
        waiting += before.input
    return False
