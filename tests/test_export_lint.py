"""The lint says what onnxruntime does, and its advice is followed by silence."""

import re

import pytest
import torch

import vaelib as vl
from vaelib.export import conversion, parts
from vaelib.export.lint import lint, optimised

FAST = {"activation": "relu", "upsample": "nearest", "norm": "batch", "hidden_channels": (16, 32)}


def files_of(image_shape=(1, 16, 16), **options):
    torch.manual_seed(0)
    vae = vl.conv_vae(image_shape, 8, **FAST | options).eval()
    return {f"{graph.part}.onnx": conversion.to_bytes(graph, 18) for graph in list(parts.graphs_of(vae).values())[:2]}


@pytest.mark.parametrize(
    "activation", ["relu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("leaky_relu", "tanh"))]
)
def test_the_advised_model_has_no_finding(activation):
    files = files_of(activation=activation)
    assert lint(files) == []
    operators = [node.op_type for node in optimised(files["decoder.onnx"]).graph.node]
    assert operators.count("ReorderInput") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "part", "what", "advice"),
    [
        ({"upsample": "transpose"}, "decoder", "2 ConvTranspose in plain order", 'upsample="nearest"'),
        ({"upsample": "pixel_shuffle"}, "decoder", "2 DepthToSpace in plain order", 'upsample="nearest"'),
        ({"norm": "group"}, "encoder", "2 normalisations in several passes", 'norm="batch"'),
        ({"norm": "layer"}, "decoder", "2 normalisations in several passes", 'norm="batch"'),
        ({"activation": "silu"}, "encoder", r"2 activations \(silu\) as passes", 'activation="relu"'),
        ({"activation": "elu"}, "encoder", r"2 activations \(elu\) as passes", 'activation="relu"'),
        ({"activation": "gelu"}, "decoder", r"1 activations \(gelu\) as passes", 'activation="relu"'),
        ({"activation": "elu"}, "decoder", "1 copies of a map", "between two convolutions"),
        ({"hidden_channels": (6, 12)}, "encoder", "1 convolutions read plain order", "multiples of 16"),
        ({"image_shape": (1, 15, 15)}, "decoder", "Maps are cropped", "sides that every stride divides"),
    ],
)
def test_findings(options, part, what, advice):
    found = [f for f in lint(files_of(**options)) if f.part == part and re.match(what, f.what)]
    assert len(found) == 1
    assert advice in found[0].advice


@pytest.mark.slow
def test_strict_takes_the_advised_model(tmp_path):
    vl.export_onnx(vl.conv_vae((1, 16, 16), 2, **FAST), tmp_path / "bundle", strict=True)
    assert (tmp_path / "bundle" / "manifest.json").exists()
