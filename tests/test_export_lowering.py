"""Rewrites of a graph, after which its function is the same; and advice on models whose graphs stay slow."""

import re

import onnx
import pytest
import torch
from exporting import Call
from torch import nn

import vaelib as vl
from vaelib.errors import ExportError
from vaelib.export import conversion, graphs, lowering, parts, proof
from vaelib.export.lint import lint, optimised
from vaelib.runtime import operators

SLOW = pytest.mark.slow  # an export each, of which the others of a table have the like


class ScaledByPixel(nn.Module):
    """The mean of channels, which torch names "mean" in a graph, and images of that name."""

    def forward(self, z):
        return z / z.square().mean(1, keepdim=True).add(1e-6).sqrt()


def exported(module, shape):
    """The operators of one module's graph, once it is proved against torch."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.5)
            part.running_var.uniform_(0.5, 2)
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    graph = graphs.Graph("encoder", module.eval(), {"image": shape}, {"mu": "raw"})
    content = conversion.to_bytes(graph, 18)
    proof.check_contract(content, graph)
    proof.compare(content, graph)
    return [node.op_type for node in onnx.load_model_from_string(content).graph.node]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        pytest.param(nn.Conv2d(3, 5, 4), (3, 4, 4), marks=SLOW),
        pytest.param(nn.Conv2d(3, 5, 3, 2, padding=1, bias=False), (3, 2, 3), marks=SLOW),
        (nn.Conv2d(3, 5, 2, dilation=2, padding=(1, 2)), (3, 2, 2)),
        pytest.param(nn.ConvTranspose2d(3, 5, 4, 2), (3, 1, 1), marks=SLOW),
        (nn.ConvTranspose2d(3, 5, 3, 2, 1, 1, bias=False), (3, 2, 2)),
        pytest.param(nn.ConvTranspose2d(3, 5, 3, 2, (1, 0), (1, 0)), (3, 1, 2), marks=SLOW),
    ],
    ids=str,
)
def test_small_maps_are_products(layer, shape):
    assert [name for name in exported(layer, shape) if name != "Reshape"] == ["Gemm"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 5, 3, padding=1), (3, 4, 4)),
        (nn.Conv2d(4, 6, 4, groups=2), (4, 4, 4)),
        (nn.ConvTranspose2d(3, 5, 4, 2, 1), (3, 4, 4)),
        (nn.ConvTranspose2d(300, 300, 3, 2, 1, 1), (300, 2, 2)),
        (nn.Conv2d(257, 1, 4), (257, 4, 4)),
        (nn.Conv2d(128, 128, 3, padding=1), (128, 3, 3)),
    ],
    ids=str,
)
def test_maps_that_a_convolution_does_faster_are_left(layer, shape):
    assert exported(layer, shape) == [type(layer).__name__.removesuffix("2d")]


@pytest.mark.slow
def test_lowering_is_not_done_where_a_size_is_free():
    vae = vl.conv_vae((1, 4, 4), latent_shape=(2, 1, 1), hidden_channels=(8, 8)).eval()
    graphs = {part: graph for part, graph in parts.graphs_of(vae, dynamic_size=True).items() if graph.has_file}
    for part, content in conversion.convert(graphs, 18).items():
        proof.compare(content, graphs[part])
        assert "Gemm" not in [node.op_type for node in onnx.load_model_from_string(content).graph.node]


class Behind(nn.Module):
    """A layer, a move of values, a batch norm; and another reader of what is between them, if asked for."""

    def __init__(self, layer, move, channels, *, read=False):
        super().__init__()
        self.layer, self.move, self.norm, self.read = layer, move, nn.BatchNorm2d(channels), read

    def forward(self, x):
        between = self.move(self.layer(x))
        return self.norm(between) + (between if self.read else 0)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (Behind(nn.Linear(6, 24), nn.Unflatten(1, (4, 3, 2)), 4), (6,)),
        (Behind(nn.Conv2d(3, 8, 3), nn.PixelShuffle(2), 2), (3, 9, 9)),
        (
            Behind(nn.Conv2d(3, 8, 3, bias=False), nn.Sequential(nn.PixelShuffle(2), vl.networks.blocks.Crop(3, 5)), 2),
            (3, 9, 9),
        ),
    ],
    ids=["linear", "pixel_shuffle", "crop"],
)
def test_batch_norms_are_folded_across_moves(module, shape):
    assert "BatchNormalization" not in exported(module, shape)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (Behind(nn.Linear(6, 24), nn.Unflatten(1, (4, 3, 2)), 4, read=True), (6,)),
        (Behind(nn.Conv2d(3, 8, 3), nn.ReLU(), 8), (3, 9, 9)),
        pytest.param(Behind(nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2), 8), (3, 9, 9), marks=SLOW),
        pytest.param(Behind(nn.Conv2d(3, 8, 3), Call(lambda x: x.flip(1)), 8), (3, 9, 9), marks=SLOW),
    ],
    ids=["read", "relu", "upsample", "flip"],
)
def test_batch_norms_stay_where_folding_would_be_wrong(module, shape):
    assert "BatchNormalization" in exported(module, shape)


class Heads(nn.Module):
    """A product that two others read, and perhaps the outside too."""

    def __init__(self, *, read=False):
        super().__init__()
        self.shared, self.first, self.second, self.read = nn.Linear(6, 12), nn.Linear(12, 4), nn.Linear(12, 3), read

    def forward(self, x):
        between = self.shared(x)
        return torch.cat([self.first(between), self.second(between)] + [between] * self.read, dim=1)


@pytest.mark.parametrize(
    ("module", "shape", "products"),
    [
        pytest.param(nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 4)), (6,), 1, marks=SLOW),
        (Heads(), (6,), 2),
        (Heads(read=True), (6,), 3),
        pytest.param(nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 6)), (6,), 2, marks=SLOW),
        (nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)), (6,), 2),
    ],
    ids=["chain", "heads", "read", "narrow", "relu"],
)
def test_products_are_merged_where_that_costs_less(module, shape, products):
    assert exported(module, shape).count("Gemm") == products


@pytest.mark.parametrize(
    ("module", "shape", "reshapes"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 4), nn.LeakyReLU(), nn.Flatten(), nn.Linear(8, 4)), (3, 4, 4), 1),
        (nn.Sequential(nn.Linear(6, 12), nn.Unflatten(1, (3, 2, 2)), nn.ReLU(), nn.Flatten()), (6,), 0),
        pytest.param(
            nn.Sequential(nn.Linear(6, 12), nn.Unflatten(1, (3, 2, 2)), nn.Softmax(1), nn.Flatten()),
            (6,),
            2,
            marks=SLOW,
        ),
        pytest.param(
            nn.Sequential(nn.Linear(6, 12), nn.Unflatten(1, (3, 2, 2)), nn.ReLU(), nn.Flatten(2)), (6,), 2, marks=SLOW
        ),
    ],
    ids=["conv", "linear", "softmax", "other"],
)
def test_maps_that_are_flattened_again_are_not_made(module, shape, reshapes):
    assert exported(module, shape).count("Reshape") == reshapes


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        pytest.param(lambda x: x[:, :0].sum(1), (6,), marks=SLOW),
        pytest.param(lambda x: torch.addmm(torch.ones(1), x, torch.ones(6, 3)) @ torch.ones(3, 2), (6,), marks=SLOW),
        (lambda x: nn.functional.batch_norm(x, torch.zeros(2), torch.ones(2), 0 * x.sum((0, 2, 3)) + 2), (2, 3, 3)),
        (lambda x: x.flip(1).sum(1).square() ** 2, (6,)),
    ],
    ids=["nothing", "addmm", "moving norm", "powers"],
)
def test_graphs_that_are_unlike_ours_are_left_right(function, shape):
    exported(Call(function), shape)


@pytest.mark.slow
def test_one_layer_may_be_rewritten_twice(tmp_path):
    vl.export_onnx(vl.conv_vae((1, 8, 8), 2, hidden_channels=(8, 8), upsample="pixel_shuffle"), tmp_path)


def test_a_fold_that_forgot_the_order_of_channels_would_be_refused(monkeypatch):
    import numpy as np

    monkeypatch.setattr(lowering.np, "repeat", lambda values, times: np.tile(values, times))
    with pytest.raises(ExportError, match="differs from torch"):
        exported(Behind(nn.Linear(6, 24), nn.Unflatten(1, (4, 3, 2)), 4), (6,))


def test_a_mean_of_channels_is_batch_invariant_and_may_be_named_as_an_output():
    graph = graphs.Graph("decoder", ScaledByPixel(), {"z": (4, 3, 3)}, {"mean": "raw"})
    content = conversion.to_bytes(graph, 18)
    proof.compare(content, graph)
    found = onnx.load_model_from_string(content).graph
    assert [output.name for output in found.output] == ["mean"]
    assert "Conv" in {node.op_type for node in found.node}
    assert {node.op_type for node in found.node} <= operators.BATCH_INVARIANT


FAST = {"activation": "relu", "upsample": "nearest", "norm": "batch", "hidden_channels": (16, 32)}


def files_of(image_shape=(1, 16, 16), **options):
    torch.manual_seed(0)
    vae = vl.conv_vae(image_shape, 8, **FAST | options).eval()
    written = {part: graph for part, graph in parts.graphs_of(vae).items() if graph.has_file}
    files = conversion.convert(written, 18)
    return {f"{part}.onnx": files[part] for part in ("encoder", "decoder")}


@pytest.mark.parametrize("activation", ["relu", *(pytest.param(name, marks=SLOW) for name in ("leaky_relu", "tanh"))])
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
