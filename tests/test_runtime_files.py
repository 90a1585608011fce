"""What a bundle is refused for: each rule, broken on purpose, in a file that its manifest lists."""

import functools
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import hand_made
import numpy as np
import onnx
import pytest
import torch
from launching import PROGRAMS
from onnx import helper, numpy_helper
from torch import nn

import vaelib as vl
from vaelib.errors import ModelFileError
from vaelib.runtime import OnnxVAE, bundle as bundles, protobuf
from vaelib.runtime.protobuf import MAX_FIELDS, MODEL, ProtobufError, parse


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def changed(bundle, sign_bundle):
    """Changes the decoder, signs the bundle, and opens it."""

    def change(function):
        proto = onnx.load(bundle / "decoder.onnx")
        function(proto)
        (bundle / "decoder.onnx").write_bytes(proto.SerializeToString())
        sign_bundle(bundle)
        return OnnxVAE(bundle, threads=1)

    return change


def test_the_reader_reads_what_onnx_reads(tiny_bundle):
    for path in tiny_bundle.glob("*.onnx"):
        proto = onnx.load(path)
        found = parse(path.read_bytes(), MODEL)
        assert [node["op_type"] for node in found["graph"]["node"]] == [node.op_type for node in proto.graph.node]
        assert [list(node["input"]) for node in found["graph"]["node"]] == [list(n.input) for n in proto.graph.node]
        for tensor, expected in zip(found["graph"]["initializer"], proto.graph.initializer, strict=True):
            assert (tensor["name"], tensor["dims"]) == (expected.name, list(expected.dims))
            assert bytes(tensor["raw_data"]) == expected.raw_data
        for node, expected in zip(found["graph"]["node"], proto.graph.node, strict=True):
            for attribute, value in zip(node["attribute"], expected.attribute, strict=True):
                assert (attribute["i"], attribute["ints"]) == (value.i, list(value.ints))
                assert attribute["f"] == value.f


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x08", "a number does not end"),
        (b"\x08" + b"\xff" * 11, "a number does not end"),
        (b"\x9a\x06\x00", "field 99 is not allowed here"),
        (b"\xa2\x01\x00", "field 20 is not allowed here"),  # training_info
        (b"\xca\x01\x00", "field 25 is not allowed here"),  # functions
        (b"\x0d\x00\x00\x00\x00", "`ir_version` has wire type 5"),
        (b"\x0b", "`ir_version` has wire type 3"),
        (b"\x12\x05abc", "`producer_name` has wire type 2 or reaches beyond its message"),
        (b"\x12\x01\xff", "`producer_name` is not UTF-8"),
        (b"\x08\x01\x08\x01", "`ir_version` is given twice"),
        (b"\x3a\x00\x3a\x00", "`graph` is given twice"),
        (b"\x42\x00" * MAX_FIELDS, f"more than {MAX_FIELDS} fields"),
        (b"\x3a\x07\x2a\x05\x22\x03\x00\x00\x00", "`float_data` ends within a number"),
    ],
)
def test_broken_messages(data, match):
    with pytest.raises(ProtobufError, match=match):
        parse(data, MODEL)


def test_numbers_of_every_kind():
    tensor = helper.make_tensor("t", onnx.TensorProto.FLOAT, [2], [1.5, -2.0])
    whole = helper.make_tensor("i", onnx.TensorProto.INT64, [3], [-1, 2**40, 0])
    graph = onnx.GraphProto(initializer=[tensor, whole])
    found = parse(onnx.ModelProto(graph=graph).SerializeToString(), MODEL)["graph"]["initializer"]
    assert found[0]["float_data"] == [1.5, -2.0]
    assert found[1]["int64_data"] == [-1, 2**40, 0]
    assert parse(b"\x3a\x09\x2a\x07\x25" + struct.pack("<f", 3.0) + b"\x08\x05", MODEL)["graph"]["initializer"] == [
        {**parse(b"", protobuf.TENSOR), "float_data": [3.0], "dims": [5]}
    ]


def node_of(proto, operator):
    return next(node for node in proto.graph.node if node.op_type == operator)


def set_attribute(operator, name, value):
    def change(proto):
        node = node_of(proto, operator)
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def external(proto):
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def shape_of(proto):
    return next(tensor for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.INT64)


def set_shape(values):
    return lambda proto: shape_of(proto).CopyFrom(numpy_helper.from_array(np.int64(values), shape_of(proto).name))


def set_scales(proto):
    name = node_of(proto, "Resize").input[2]
    scales = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    scales.CopyFrom(numpy_helper.from_array(np.float32([1, 1, 1e6, 1e6]), name))


def set_first(**fields):
    def change(proto):
        for name, value in fields.items():
            if isinstance(value, list):
                del getattr(proto.graph.initializer[0], name)[:]
                getattr(proto.graph.initializer[0], name).extend(value)
            else:
                setattr(proto.graph.initializer[0], name, value)

    return change


def subgraph(proto):
    proto.graph.node[0].attribute.append(helper.make_attribute("body", onnx.GraphProto(name="inner")))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (external, "are external data, in another file"),
        (lambda p: setattr(p.graph.node[0], "domain", "evil.ops"), "needs operators of the domain 'evil.ops'"),
        (lambda p: p.opset_import.add(domain="com.microsoft", version=1), "needs operators of the domain"),
        (lambda p: p.functions.add(name="f", domain="d"), "field 25 is not allowed here"),
        (subgraph, "field 6 is not allowed here"),
        (
            lambda p: setattr(p.graph.node[0], "op_type", "Loop"),
            "its operator 'Loop' is not run by vaelib: it holds a graph",
        ),
        (lambda p: p.graph.sparse_initializer.add(), "field 15 is not allowed here"),
        (set_attribute("Conv", "strides", [0, 0]), r"`strides` of Conv must not be \[0, 0\]"),
        (set_attribute("Conv", "group", 0), "`group` of Conv must not be 0"),
        (set_attribute("Conv", "pads", [10**9] * 4), "`pads` of Conv must not be"),
        (set_attribute("Conv", "auto_pad", "SAME_UPPER"), "`auto_pad` of Conv must not be 'SAME_UPPER'"),
        (set_attribute("Conv", "surprise", 1), "`surprise` of Conv must not be 1"),
        (set_attribute("Gemm", "alpha", float("nan")), "`alpha` of Gemm must not be nan"),
        (set_attribute("Gemm", "beta", [1.0]), "`beta` of Gemm must not be"),
        (set_attribute("Conv", "names", ["a"]), r"`names` of Conv must not be \['a'\]"),
        (set_shape([2**40, 1, 1, 1]), "which is more than a shape of ours"),
        (set_shape([2**15, 2**15]), "which is more than a shape of ours"),
        (set_shape([1] * 100), "which is more than a shape of ours"),
        (set_scales, r"scales by .*, must be in \(0, 16\]"),
        (set_first(dims=[-1, 2]), r"has dimensions \[-1, 2\]"),
        (set_first(dims=[3]), r"has dimensions \[3\], but .* values"),
        (set_first(raw_data=b"12345"), "but 1.25 values"),
        (set_first(data_type=onnx.TensorProto.STRING), "has the data type 8"),
        (lambda p: p.graph.input.pop(), r"its inputs must be \['z'\], got \[\]"),
        (lambda p: setattr(p.graph.output[0], "name", "other"), r"its outputs must be \['mean', 'recon_params'\]"),
        (lambda p: setattr(p.graph.input[0].type.tensor_type, "elem_type", 11), "`z` must be a tensor of float32"),
        (
            lambda p: setattr(p.graph.output[0].type.tensor_type.shape.dim[3], "dim_value", 9),
            r"`mean` must have shape \[None, 1, 8, 8\], where None is free, got \[None, 1, 8, 9\]",
        ),
        (
            lambda p: setattr(p.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 1),
            r"`z` must have shape \[None, 2\], where None is free, got \[1, 2\]",
        ),
        (lambda p: node_of(p, "Conv").input.__setitem__(1, "nowhere"), "onnxruntime refuses decoder.onnx"),
    ],
)
def test_graphs_that_vaelib_does_not_export(changed, change, match):
    with pytest.raises(ModelFileError, match=match):
        changed(change)


def test_a_graph_that_fails_only_when_it_runs(changed):
    model = changed(set_shape([5, 4, 4, 4]))
    for size in (1, 40):
        with pytest.raises(ModelFileError, match=r"onnxruntime cannot run decoder\.onnx"):
            model.decode(np.zeros((size, 2), np.float32))


@pytest.fixture
def described(bundle):
    """Changes what the manifest says, and opens the bundle."""

    def change(place, value):
        path = bundle / "manifest.json"
        content = json.loads(path.read_text())
        *outer, last = place
        inner = functools.reduce(lambda found, name: found[name], outer, content)
        if value is None:
            del inner[last]
        else:
            inner[last] = value
        path.write_text(json.dumps(content))
        return OnnxVAE(bundle, threads=1)

    return change


Z = ("graphs", "decoder", "inputs", "z")
IMAGE, OF_IMAGES = np.zeros((1, 1, 8, 8), np.float32), {"dtype": "float32", "shape": ["B", 1, 8, 8]}


def prior(size=2, dtype="float32", file=None):
    value = {"dtype": dtype, "shape": ["B", size]}
    return {"file": file, "inputs": {"noise": value}, "outputs": {"z": {"dtype": dtype, "shape": ["B", 2]}}}


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        (["model"], [], "must have a `model`"),
        (["model", "prior"], None, "was not exported by vaelib: no prior in its metadata"),
        (["model", "latent_shape"], [2, 2], r"its `latent_shape` is \[2, 2\]"),
        (["model", "latent_shape"], [3], r"`z` of the encoder must be float32 \('B', 3\) in a model of images .* got"),
        (["model", "latent_shape"], [True], r"its `latent_shape` is \[True\]"),
        (["model", "image_shape"], [65536] * 3, "its `image_shape` is"),
        (["model", "image_shape"], [8], r"its `image_shape` is \[8\]"),
        (["model", "image_range"], [0, 255], "its `image_range` is"),
        (["model", "spatial_multiple"], 0, "its `spatial_multiple` is 0"),
        (["model", "spatial_multiple"], 4, "only a latent map can have a `spatial_multiple`"),
        (["model", "opset"], "18", "its `opset` is '18'"),
        (["model", "validation"], [], r"its `validation` is \[\]"),
        (["model", "config"], 1, "its `config` is 1"),
        (["model", "kind"], ["VAE"], r"its `kind` is \['VAE'\]"),
        (["model", "weights_sha256"], "0" * 64, "belongs to another model than the one that the bundle describes"),
        (["graphs"], [], "must have `graphs`, encoder and decoder among them"),
        (["graphs", "encoder"], None, "must have `graphs`, encoder and decoder among them"),
        (["graphs", "../up"], {}, r"graph '../up' takes and gives: its name is none of a graph"),
        (["graphs", "prior"], [], "the graph 'prior' takes and gives: "),
        (["graphs", "prior"], {}, "the graph 'prior' takes and gives: 'file'"),
        (["graphs", "decoder", "file"], "../decoder.onnx", r"its file must be decoder.onnx, got '../decoder"),
        (["graphs", "decoder", "inputs"], {}, "it has 0 inputs and 2 outputs"),
        (["graphs", "decoder", "inputs", "a b"], {"dtype": "float32", "shape": ["B"]}, "'a b' is no name of an input"),
        ([*Z], "float32", "the graph 'decoder' takes and gives: "),
        ([*Z, "dtype"], "float16", "the dtype of `z` must be among float32, int64, got 'float16'"),
        ([*Z, "dtype"], "int64", "`z` of the decoder must be float32 .* got int64"),
        ([*Z, "dtype"], [], r"the dtype of `z` must be among float32, int64, got \[\]"),
        ([*Z, "shape"], "B2", "the shape of `z` must be 'B' and extents .* got 'B2'"),
        ([*Z, "shape"], [1, 2], r"the shape of `z` must be 'B' and extents .* got \[1, 2\]"),
        ([*Z, "shape"], ["B", 0], r"the shape of `z` must be 'B' and extents .* got \['B', 0\]"),
        ([*Z, "shape"], ["B", True], "the shape of `z` must be 'B' and extents"),
        ([*Z, "shape"], ["B", "N"], "or names among H, W, h, w, G"),
        ([*Z, "shape"], ["B", [2]], "or names among H, W, h, w, G"),
        ([*Z, "shape"], ["B", 2**20, 2**20], "extents of at most 268435456 in product"),
        ([*Z, "shape"], ["B", *[1] * 6], "the shape of `z` must be 'B' and extents"),
        ([*Z, "shape"], ["B", 3], r"`z` of the decoder must be float32 \('B', 2\) .* got float32 \('B', 3\)"),
        (["graphs", "vae", "outputs", "kl", "shape"], ["B", 1], r"`kl` of the vae must be float32 \('B',\)"),
        (["graphs", "decoder", "outputs", "recon_params", "shape"], ["B", 2, 8, 8], "`recon_params` must have shape"),
        (
            ["graphs", "decoder", "outputs", "recon_params", "dtype"],
            "int64",
            "`recon_params` must be a tensor of int64",
        ),
        (["graphs", "decoder", "outputs", "more"], {"dtype": "float32", "shape": ["B"]}, "its outputs must be"),
        (["graphs", "prior"], prior(3), "without a file its one output must be its one input"),
        (["graphs", "decoder", "file"], 1, "its file must be decoder.onnx, got 1"),
    ],
)
def test_the_contract_is_data(described, place, value, match):
    with pytest.raises(ModelFileError, match=match):
        described(place, value)


def test_a_manifest_from_before_conditions_and_codes(described):
    for name in ("condition", "codes"):
        model = described(["model", name], None)
        assert model.metadata[name] is None
        assert model.decode(np.zeros((1, 2), np.float32)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("place", "value", "call", "error", "match"),
    [
        ("prior", prior(file="prior.onnx"), lambda m: m.sample(1), FileNotFoundError, r"there is no .*prior\.onnx"),
        (
            "prior",
            None,
            lambda m: m.sample(1),
            ValueError,
            "no prior that takes `noise`; the model's prior is Standard",
        ),
        ("vae outputs kl", None, lambda m: m.score(IMAGE), ValueError, "The ELBO needs a VAE"),
        ("encoder outputs z", None, lambda m: m.embed(IMAGE), ModelFileError, "its outputs must be"),
        ("encoder inputs", {"x": OF_IMAGES}, lambda m: m.encode(IMAGE), ValueError, "no encoder that takes `image`"),
    ],
)
def test_a_contract_that_lacks_what_is_asked_for(described, place, value, call, error, match):
    model = described(["graphs", *place.split()], value)
    with pytest.raises(error, match=match):
        call(model)


@pytest.fixture
def of_version_0_1(tmp_path, sign_bundle):
    """A bundle of version 0.1 whose decoder says something else of itself."""

    def change(key, value):
        old = Path(__file__).parent / "version_0_1" / "with_checksums" / "bundle"
        bundle = Path(shutil.copytree(old, tmp_path / "bundle", dirs_exist_ok=True))
        proto = onnx.load(bundle / "decoder.onnx")
        before = {entry.key: entry.value for entry in proto.metadata_props}
        before.pop(f"vaelib.{key}")
        helper.set_model_props(proto, before | ({} if value is None else {f"vaelib.{key}": value}))
        (bundle / "decoder.onnx").write_bytes(proto.SerializeToString())
        sign_bundle(bundle)
        return bundle

    return change


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("schema", "99", "has schema '99', known is '2'"),
        ("latent_shape", "{", "`latent_shape` of .* is no valid JSON"),
        ("latent_shape", "[" * 100_000, "`latent_shape` of .* is no valid JSON"),
        ("latent_shape", "[3]", "cannot be run by vaelib: `z` must have shape"),
        ("noise_size", "1000000", "its `noise_size` is 1000000, for a latent of 2 numbers"),
        ("noise_size", "1", "its `noise_size` is 1, for a latent of 2 numbers"),
        ("noise_size", '"3"', "its `noise_size` is '3', for a latent of 2 numbers"),
        ("prior", None, "was not exported by vaelib: no prior in its metadata"),
        ("part", "encoder", "must be the decoder of a model, but is the 'encoder'"),
    ],
)
def test_metadata_of_version_0_1_are_data(key, value, match, of_version_0_1):
    with pytest.raises(ModelFileError, match=match):
        OnnxVAE(of_version_0_1(key, value))


def test_a_prior_of_version_0_1_without_a_graph(of_version_0_1):
    assert OnnxVAE(of_version_0_1("noise_size", "5")).contract["prior"].inputs["noise"].shape == ("B", 5)
    model = OnnxVAE(of_version_0_1("noise_size", "null"))
    with pytest.raises(ValueError, match="has no prior that takes `noise`; the model's prior is MixtureOfGaussians"):
        model.sample(1)


@pytest.mark.parametrize(
    ("manifest", "match"),
    [
        (b"", r"manifest\.json is no valid JSON"),
        (b"\xff", r"manifest\.json is no valid JSON"),
        (b"[" * 100_000, r"manifest\.json is no valid JSON"),
        (b"[]", "has schema None, known are '3' and '2': export the model again"),
        (b'{"schema": "1"}', "has schema '1', known are '3' and '2': export the model again"),
        (b'{"schema": ["3"]}', r"has schema \['3'\], known are '3' and '2': export the model again"),
        (b'{"schema": "3", "model": {}, "graphs": {}, "files": []}', "must have `files`"),
        (b'{"schema": "3", "files": {}}', "must have a `model`"),
        (b'{"schema": "2", "kind": "VAE", "files": {}}', r"manifest\.json does not say what decoder\.onnx is"),
        (b" " * (2**20 + 1), r"manifest\.json must have at most 1048576 bytes, got 1048577"),
    ],
)
def test_broken_manifests(bundle, manifest, match):
    (bundle / "manifest.json").write_bytes(manifest)
    with pytest.raises(ModelFileError, match=match):
        OnnxVAE(bundle)


def test_files_that_are_not_the_manifests(bundle, sign_bundle, monkeypatch):
    content = (bundle / "decoder.onnx").read_bytes()
    for torn in (b"", content[:10], content[:-1] + b"\x00", content + b"\x00"):
        (bundle / "decoder.onnx").write_bytes(torn)
        with pytest.raises(ModelFileError, match=r"decoder\.onnx is not the file that manifest\.json describes"):
            OnnxVAE(bundle)
    (bundle / "decoder.onnx").write_bytes(content)
    model = OnnxVAE(bundle)
    (bundle / "encoder.onnx").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"encoder\.onnx is not the file that manifest\.json describes"):
        model.encode(IMAGE)
    (bundle / "encoder.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*encoder\.onnx"):
        model.encode(IMAGE)
    monkeypatch.setattr(bundles, "MAX_FILE_BYTES", 1000)
    with pytest.raises(ModelFileError, match=r"decoder\.onnx must have at most 1000 bytes, got"):
        OnnxVAE(bundle)


def test_graphs_of_two_models(bundle, sign_bundle):
    proto = onnx.load(bundle / "encoder.onnx")
    next(entry for entry in proto.metadata_props if entry.key == "vaelib.weights_sha256").value = 64 * "0"
    onnx.save(proto, bundle / "encoder.onnx")
    sign_bundle(bundle)
    with pytest.raises(ModelFileError, match=r"encoder\.onnx belongs to another model than the one"):
        OnnxVAE(bundle).encode(IMAGE)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status")
def test_memory_is_flat_over_10_000_calls_of_changing_size(tiny_bundle):
    result = subprocess.run(
        [sys.executable, PROGRAMS / "flat_memory.py", tiny_bundle], capture_output=True, text=True, check=True
    )
    grown = float(result.stdout)
    print(f"grown by {grown:.1f} MiB over 10,000 rounds of calls")
    assert grown < 8


class RecurrentEncoder(nn.Module):
    """With operators that the runtime took in when it began to run all of the standard domain."""

    image_shape, latent_shape = (1, 8, 8), (2,)

    def __init__(self):
        super().__init__()
        self.lstm, self.linear = nn.LSTM(8, 3, batch_first=True, bidirectional=True), nn.Linear(6, 4)

    def forward(self, x):
        rows = torch.einsum("bij,bkj->bik", x.squeeze(1), (8 * x).floor().squeeze(1))
        patches = nn.functional.fold(nn.functional.unfold(x, 2, stride=2), (8, 8), 2, stride=2).squeeze(1)
        found = self.linear(self.lstm(rows + patches)[0]).topk(2, 1).values.mean(1)
        return found.chunk(2, 1)


@pytest.fixture
def mutable(request, tmp_path):
    if request.param == "tiny":
        return shutil.copytree(request.getfixturevalue("tiny_bundle"), tmp_path / "bundle")
    if request.param != "recurrent":
        return getattr(hand_made, request.param)(tmp_path / "bundle")
    decoder = vl.ConvDecoder(2, (1, 8, 8), hidden_channels=(4,))
    vl.export_onnx(vl.VAE(RecurrentEncoder(), decoder), tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.mark.parametrize(
    ("mutable", "first", "last"),
    [
        ("tiny", 0, 40),
        ("conditional", 0, 100),
        ("quantised", 0, 100),
        pytest.param("tiny", 40, 540, marks=pytest.mark.slow),
        pytest.param("recurrent", 0, 500, marks=pytest.mark.slow),
        pytest.param("quantised", 100, 400, marks=pytest.mark.slow),
    ],
    indirect=["mutable"],
)
def test_mutations(mutable, first, last):
    """Flipped, cut, added and zeroed bytes: a ValueError each or a model that runs; no crash, no hang.

    In a process of their own, because what is feared is the end of the interpreter.
    """
    result = subprocess.run(
        [sys.executable, PROGRAMS / "mutated_bundles.py", mutable, str(first), str(last)],
        capture_output=True,
        text=True,
        timeout=170,
    )
    lines = result.stdout.splitlines()
    assert result.returncode == 0, f"exit code {result.returncode} after {lines[-1:]}: {result.stderr[-2000:]}"
    outcomes = [json.loads(line) for line in lines[1::2]]
    assert len(outcomes) == last - first
    assert outcomes.count("refused") > 0.5 * len(outcomes)
    assert outcomes.count("loaded") > 0
