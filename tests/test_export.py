import copy
import importlib
import itertools
import json
import os

import onnx
import onnxruntime
import pytest
import torch
from exporting import run, whole
from torch import nn

import vaelib as vl
from vaelib.errors import ExportError, MissingExtraError
from vaelib.export import conversion, differences, exporter, graphs, parts, proof
from vaelib.export.manifest import write_bundle
from vaelib.networks.blocks import ACTIVATIONS, NORMS, UPSAMPLES

IMAGE = (2, 13, 10)
MAP = (2, 4, 3)
# With the module's bundle, the other values of most arguments; the rest of the grid is slow.
SOME = ("group", "relu", "nearest", "map")
# Every pair of values of any two arguments.
GRID = [
    (norm, [*ACTIVATIONS][(i + shift) % len(ACTIVATIONS)], upsample, latent)
    for norm, shift in zip(NORMS, (0, 2, 4, 1), strict=True)
    for i, (upsample, latent) in enumerate(itertools.product(UPSAMPLES, ("vector", "map")))
]

IR_VERSIONS = {19: 9, 20: 9, 21: 10, 22: 10, 23: 11}


def test_the_grid_has_every_pair():
    values = (NORMS, ACTIVATIONS, UPSAMPLES, ("vector", "map"))
    for first, second in itertools.combinations(range(4), 2):
        assert {(c[first], c[second]) for c in GRID} == set(itertools.product(values[first], values[second]))


def build(norm, activation, upsample, latent, **more):
    torch.manual_seed(0)
    latents = {"latent_dim": 3} if latent == "vector" else {"latent_shape": MAP}
    options = {"hidden_channels": (8, 8), "residual_blocks": 1} | latents | more
    vae = vl.conv_vae(IMAGE, norm=norm, activation=activation, upsample=upsample, **options)
    for module in vae.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked.fill_(1)
    return vae


def whole_graph(model, opset=18):
    """The graph that has encoder, decoder and bound in it, once it is proved against torch."""
    graph = parts.graphs_of(model.eval())["vae"]
    content = conversion.to_bytes(graph, opset)
    proof.compare(content, graph)
    return onnx.load_model_from_string(content)


def check_files(model, directory):
    """Against torch's own methods, at batches that the exporter did not try itself."""
    graphs_written = {"encoder.onnx", "decoder.onnx", "vae.onnx"}
    assert set(os.listdir(directory)) == graphs_written | {"manifest.json", "README.md"}
    for name in graphs_written:
        assert "BatchNormalization" not in {node.op_type for node in onnx.load(directory / name).graph.node}
    for batch in (1, 5):
        x = differences.at_levels(torch.rand(batch, *model.image_shape))
        code = run(directory, "encoder", image=x)
        with vl.vae.eval_mode(model):
            if isinstance(model, vl.AutoEncoder):
                z, given = model.encode(x), {}
                posterior, expected = {"z": z}, {"reconstruction": model.reconstruct(x), "z": z}
            else:
                (mu, logvar), given = model.encode(x), {"noise": torch.randn(batch, *model.latent_shape)}
                posterior, expected = {"z": mu, "mu": mu, "logvar": logvar}, whole(model, x, **given)
        close(run(directory, "vae", image=x, **given), expected)
        close(code, posterior)
        close({"mean": run(directory, "decoder", z=code["z"])["mean"]}, {"mean": model.reconstruct(x)})


def close(got, expected):
    assert got.keys() == expected.keys()
    for name, values in got.items():
        torch.testing.assert_close(
            values, expected[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("choices", [c if c == SOME else pytest.param(c, marks=pytest.mark.slow) for c in GRID])
def test_parity_on_the_grid(choices):
    proto = whole_graph(build(*choices))
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}


@pytest.mark.parametrize("likelihood", [None, pytest.param(vl.Gaussian("per_pixel"), marks=pytest.mark.slow)], ids=str)
def test_parity_of_autoencoders(likelihood, tmp_path):
    channels = 2 if likelihood is None else likelihood.param_channels(2)
    encoder = vl.ConvEncoder(IMAGE, latent_shape=MAP, hidden_channels=(8, 8), norm="none")
    decoder = vl.ConvDecoder(
        None, IMAGE, latent_shape=MAP, hidden_channels=(8, 8), param_channels=channels, norm="none"
    )
    model = vl.AutoEncoder(encoder, decoder, likelihood=likelihood)
    before = torch.get_rng_state()
    vl.export_onnx(model, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)  # it draws nothing
    check_files(model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "ir_version"), IR_VERSIONS.items())
def test_opsets(opset, ir_version):
    proto = whole_graph(build("batch", "gelu", "transpose", "vector"), opset)
    assert (proto.opset_import[0].version, proto.ir_version) == (opset, ir_version)


def test_the_file_format_is_the_oldest_that_has_the_operators():
    """Of the table in ONNX's versioning document; onnxruntime 1.17 reads IR 9 at most, 1.16 and 1.15 IR 8 and 9."""
    for opset, ir_version in {18: 8, **IR_VERSIONS}.items():
        proto = onnx.ModelProto(opset_import=[onnx.helper.make_opsetid("", opset)])
        assert conversion.lowest_ir_version(proto) == ir_version


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bundle")
    vae = build("batch", "leaky_relu", "transpose", "vector", likelihood=vl.Gaussian("per_pixel"))
    vae.train()
    vl.export_onnx(vae, directory)
    return vae, directory


def test_the_graphs_have_their_contract(bundle):
    _, directory = bundle
    wanted = {
        "encoder": (["image"], ["z", "mu", "logvar"]),
        "decoder": (["z"], ["mean", "recon_params"]),
        "vae": (["image", "noise"], ["reconstruction", "z", "distortion", "kl", "kl_groups"]),
    }
    written = json.loads((directory / "manifest.json").read_text())["graphs"]
    assert written["prior"]["file"] is None  # noise is a draw of the standard normal
    for part, (inputs, outputs) in wanted.items():
        proto = onnx.load(directory / f"{part}.onnx")
        onnx.checker.check_model(proto, full_check=True)
        assert [value.name for value in proto.graph.input] == inputs
        assert [value.name for value in proto.graph.output] == outputs
        specs = {**written[part]["inputs"], **written[part]["outputs"]}
        assert list(specs) == inputs + outputs
        for value in (*proto.graph.input, *proto.graph.output):
            shape = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
            assert specs[value.name] == {"dtype": "float32", "shape": shape}
        operators = {node.op_type for node in proto.graph.node}
        assert not {op for op in operators if "Random" in op}
        assert "Dropout" not in operators
        assert (proto.opset_import[0].version, proto.ir_version) == (18, 8)


def test_parity_of_the_bundle(bundle):
    check_files(*bundle)


def test_the_files_hold_no_path_and_no_trace_of_this_machine(bundle):
    _, directory = bundle
    for part in ("encoder", "decoder", "vae"):
        content = (directory / f"{part}.onnx").read_bytes()
        for trace in (
            b"site-packages",
            b"stack_trace",
            b".py",
            os.fsencode(os.path.expanduser("~")),
            os.fsencode(directory),
        ):
            assert trace not in content


def test_metadata(bundle):
    vae, directory = bundle
    session = onnxruntime.InferenceSession(directory / "decoder.onnx")
    values = json.loads((directory / "manifest.json").read_text())["model"]
    weights = values.pop("weights_sha256")
    assert len(weights) == 64
    assert session.get_modelmeta().custom_metadata_map == {
        "vaelib.schema": "3",
        "vaelib.version": vl.__version__,
        "vaelib.part": "decoder",
        "vaelib.weights_sha256": weights,
    }
    validation = values.pop("validation")
    assert values == {
        "kind": "VAE",
        "image_shape": list(IMAGE),
        "image_range": [0.0, 1.0],
        "latent_shape": [3],
        "likelihood": "Gaussian",
        "prior": "StandardNormal",
        "parameters": sum(parameter.numel() for parameter in vae.parameters()),
        "opset": 18,
        "precision": "fp32",
        "config": vl.serialization.describe(vae),
        "condition": None,
        "codes": None,
        "scaling": None,
        "tiling": None,
        "spatial_multiple": None,
    }
    assert 0 <= validation["decoder"]["mean"]["max_rel"] <= 1e-5


def test_the_model_is_not_changed_by_its_export(bundle):
    vae, _ = bundle
    fresh = build("batch", "leaky_relu", "transpose", "vector", likelihood=vl.Gaussian("per_pixel"))
    assert all(torch.equal(a, b) for a, b in zip(vae.state_dict().values(), fresh.state_dict().values(), strict=True))


def test_a_graph_that_differs_is_refused_and_leaves_no_file(tmp_path, monkeypatch):
    """An exporter that gets a batch norm wrong: refused, and the files of before are still there."""
    vae = build("batch", "relu", "transpose", "vector")
    write_bundle(tmp_path, {"schema": "3"}, {"encoder.onnx": b"before"})

    def faulty(graphs, opset):
        contents = conversion.convert(graphs, opset)
        for module in graphs["vae"].module.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean += 0.01
        return contents

    monkeypatch.setattr(exporter, "convert", faulty)
    with pytest.raises(
        ExportError,
        match=r"The encoder's graph differs from torch.*: `(z|mu|logvar)` at batch \d+, .*: .* > 1e-04\. That is the"
        r" largest of \d+ differences in `z`, `mu`, `logvar`, by optimisations off; .*onnx.reference",
    ):
        vl.export_onnx(vae, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["encoder.onnx", "manifest.json"]
    assert (tmp_path / "encoder.onnx").read_bytes() == b"before"


class Amplifying(nn.Module):
    """Logits of which the last bit of z is seen."""

    image_shape, latent_shape = IMAGE, (3,)

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 260)

    def forward(self, z):
        return 3000 * self.linear(z.tanh()).unflatten(1, IMAGE)


@pytest.mark.slow
def test_what_a_model_makes_of_rounding_is_no_fault_of_its_graph(tmp_path, monkeypatch):
    vae = vl.VAE(vl.ConvEncoder(IMAGE, 3, hidden_channels=(8, 8)), Amplifying())
    for layer in (layer for layer in vae.encoder.modules() if isinstance(layer, nn.Conv2d)):
        layer.weight.data *= 20
    parity = vl.export_onnx(vae, tmp_path / "right")["vae"]["reconstruction"].max_rel
    assert 1e-5 < parity < 1e-2

    def faulty(graphs, opset):
        changed = copy.deepcopy(graphs["vae"].module)
        for layer in (layer for layer in changed.modules() if isinstance(layer, nn.Conv2d)):
            layer.weight.data *= 1.001
        wrong = conversion.to_bytes(graphs["vae"]._replace(module=changed), opset)
        return conversion.convert(graphs, opset) | {"vae": wrong}

    monkeypatch.setattr(exporter, "convert", faulty)
    with pytest.raises(ExportError, match="The vae's graph differs from torch.* `reconstruction`"):
        vl.export_onnx(vae, tmp_path / "wrong")


def test_fresh_statistics_do_not_hide_a_faulty_fold(tmp_path, monkeypatch):
    """A fold that ignores the statistics is right on a model that has seen no data. It must be refused all the same."""
    vae = vl.conv_vae(IMAGE, 3, hidden_channels=(8,))

    def ignoring_statistics(graphs, opset):
        ignoring = {part: graph._replace(module=copy.deepcopy(graph.module)) for part, graph in graphs.items()}
        for graph in ignoring.values():
            for module in graph.module.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.reset_running_stats()
        return conversion.convert(ignoring, opset)

    monkeypatch.setattr(exporter, "convert", ignoring_statistics)
    with pytest.raises(ExportError, match="The vae's graph differs from torch"):
        vl.export_onnx(vae, tmp_path)
    assert os.listdir(tmp_path) == []


class Sampling(nn.Module):
    """A foreign encoder that bakes its draw into the graph."""

    image_shape, latent_shape = IMAGE, (3,)

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(260, 3)

    def forward(self, x):
        mu = self.linear(x.flatten(1))
        return mu + 1e-9 * torch.randn_like(mu), torch.zeros_like(mu)


def test_random_operators_are_refused(tmp_path):
    vae = vl.VAE(Sampling(), vl.ConvDecoder(3, IMAGE, norm="none"))
    with pytest.raises(
        ExportError,
        match="could not run this model's encoder: its operator 'RandomNormal\\w*' is not run by vaelib: it draws",
    ):
        vl.export_onnx(vae, tmp_path)
    assert os.listdir(tmp_path) == []


class Branching(Sampling):
    def forward(self, x):
        mu = self.linear(x.flatten(1))
        return (mu, mu) if mu.square().sum() >= 0 else (-mu, mu)


def test_what_torch_cannot_express_is_said(tmp_path):
    with pytest.raises(ExportError, match="torch could not export this model's encoder"):
        vl.export_onnx(vl.VAE(Branching(), vl.ConvDecoder(3, IMAGE, norm="none")), tmp_path)


def identity(inputs=("image",), outputs=("mu",), batch="batch", op="Identity", external=False):
    from onnx import TensorProto, helper

    def value(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 4])

    node = helper.make_node(op, [inputs[0]], [outputs[0]])
    graph = helper.make_graph([node], "g", [value(n) for n in inputs], [value(n) for n in outputs])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (identity(inputs=("x",)), r"its inputs must be \['image'\], got \['x'\]"),
        (identity(outputs=("y",)), r"its outputs must be \['mu'\], got \['y'\]"),
        (identity(batch=2), "The batch axis of 'image' must be free, got a fixed one"),
        (
            identity(op="RandomNormalLike"),
            "its operator 'RandomNormalLike' is not run by vaelib: it draws random numbers",
        ),
        (identity(op="NoSuchOperator"), "onnx.checker refuses the graph"),
    ],
)
def test_the_contract(content, match):
    with pytest.raises(ExportError, match=match):
        proof.check_contract(content, graphs.Graph("encoder", nn.Identity(), {"image": (4,)}, {"mu": "raw"}))


def test_nan_counts_as_a_difference():
    parity = differences.difference(torch.zeros(2, 2), torch.tensor([[0.0, float("nan")], [0.0, 0.0]]), least_scale=1.0)
    assert parity.max_rel == float("inf")
    assert differences.difference(torch.zeros(2, 2), torch.zeros(2, 3), least_scale=1.0).max_abs == float("inf")


TINY = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,))
IMAGES = torch.rand(64, 1, 8, 8)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"model": TINY.encoder}, TypeError, "`model` must be a VAE or an AutoEncoder, got ConvEncoder"),
        ({"opset": 17}, ValueError, "`opset` must be >= 18, got 17"),
        ({"opset": 99}, ValueError, "`opset` must be <= 23, got 99"),
        ({"directory": "file/bundle"}, OSError, "`directory` must be a directory that can be written"),
        ({"directory": ""}, ValueError, "`directory` must be the path of a file or directory, got ''"),
        ({"directory": None}, TypeError, "`directory` must be a str or a Path, got None"),
        ({"precision": "int4"}, ValueError, "`precision` must be one of 'fp32', 'fp16', 'int8', got 'int4'"),
        ({"max_loss": -1}, ValueError, "`max_loss` must be >= 0, got -1"),
        ({"calibration": None}, ValueError, "`calibration` must hold at least 64 images for 'int8', got none"),
        (
            {"calibration": IMAGES[:0], "precision": "fp16"},
            ValueError,
            "`calibration` must hold at least one image for 'fp16', got 0",
        ),
        ({"calibration": IMAGES.numpy()}, TypeError, "`calibration` must be a tensor, got ndarray"),
        ({"calibration": IMAGES[:3]}, ValueError, "`calibration` must hold at least 64 images for 'int8', got 3"),
        ({"calibration": IMAGES[..., :7]}, ValueError, r"must have shape \(B, 1, 8, 8\), got \(64, 1, 8, 7\)"),
        ({"calibration": 2 + IMAGES}, ValueError, r"`calibration` must have values in \[0, 1\]"),
        (
            {"calibration": IMAGES, "model": vl.AutoEncoder(TINY.encoder, TINY.decoder)},
            TypeError,
            "'int8' is judged by the ELBO, which a VAE has, got AutoEncoder",
        ),
        ({"evaluation": {"elbo": {"value": -1.0}}}, ValueError, "`evaluation` must hold words, .*, got 'elbo': "),
        ({"evaluation": {"elbo": [1.0]}}, ValueError, "`evaluation` must hold words, numbers, .*, got 'elbo': "),
        ({"evaluation": {"elbo": None}}, ValueError, "`evaluation` must hold words, numbers, .*, got 'elbo': "),
    ],
)
def test_wrong_arguments(options, error, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    if "calibration" in options:
        options = {"precision": "int8", **options}
    with pytest.raises(error, match=match):
        vl.export_onnx(**{"model": TINY, "directory": tmp_path / "bundle", **options})
    assert os.listdir() == ["file"]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    package = importlib.import_module("vaelib.export")
    with monkeypatch.context() as without:
        without.setattr(importlib.util, "find_spec", lambda name: None)
        importlib.reload(package)
    refused = package.export_onnx
    importlib.reload(package)
    with pytest.raises(
        MissingExtraError, match=r"ONNX export needs an optional dependency: pip install 'vaelib\[onnx\]'"
    ):
        refused(vl.conv_vae((1, 8, 8), 2), tmp_path)
    assert package.export_onnx is exporter.export_onnx
