"""Images are in [0, 1] whatever the likelihood, finite or an error, and of the shape that was promised."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import vaelib as vl
from vaelib.cli import main
from vaelib.data.dataset import to_float
from vaelib.errors import ModelFileError
from vaelib.explorer import Data, application, build_scene
from vaelib.runtime import OnnxVAE
from vaelib.vae import image_of

IMAGE = (1, 8, 8)
LIKELIHOODS = [
    vl.Bernoulli(),
    vl.ContinuousBernoulli(),
    vl.Gaussian(0.5),
    vl.Gaussian("per_pixel"),
    vl.Laplace("learned"),
    vl.DiscretizedLogistic(),
    None,
]


def network(likelihood, kind=vl.VAE):
    """Means beyond [0, 1] on both sides, if the likelihood allows them."""
    channels = 1 if likelihood is None else likelihood.param_channels(1)
    decoder = vl.ConvDecoder(3, IMAGE, hidden_channels=(4,), param_channels=channels, norm="none")
    with torch.no_grad():
        [layer for layer in decoder.modules() if isinstance(layer, nn.ConvTranspose2d | nn.Conv2d)][-1].weight.mul_(30)
    return kind(vl.ConvEncoder(IMAGE, 3, hidden_channels=(4,), norm="none"), decoder, likelihood=likelihood)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
def test_what_a_person_sees_is_in_range_and_can_be_given_back(likelihood):
    model = network(likelihood, vl.AutoEncoder if likelihood is None else vl.VAE)
    images = torch.rand(5, *IMAGE) if likelihood is None else model.sample(5)
    again = model.reconstruct(model.reconstruct(images))
    assert 0 <= again.min() <= again.max() <= 1
    with torch.no_grad():
        recon_params = model.eval().decode(torch.randn(50, 3))
    if likelihood is None or isinstance(likelihood, vl.Gaussian | vl.Laplace):
        mean = recon_params if likelihood is None else likelihood.mean(recon_params)
        assert mean.min() < 0
        assert mean.max() > 1  # which log p(x|z) takes as it is
        torch.testing.assert_close(image_of(likelihood, recon_params), mean.clamp(0, 1), rtol=0, atol=0)


def test_the_rounding_of_a_resize_is_no_error():
    x = torch.full((2, *IMAGE), 1.0000001)
    x[0] = -1e-7
    for likelihood in LIKELIHOODS[:-1]:
        vae = network(likelihood)
        vae.reconstruct(x)
        assert vae.likelihood.log_prob(x, vae(x).recon_params).isfinite().all()
    assert torch.equal(to_float(x, True, None)[:, 0, 0, 0], torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"`x` must have values in \[0, 1\], got"):
        vae.reconstruct(x * 1.001)


@pytest.fixture(scope="module", params=["Gaussian", pytest.param("AutoEncoder", marks=pytest.mark.slow)])
def exported(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported")
    model = network(None, vl.AutoEncoder) if request.param == "AutoEncoder" else network(vl.Gaussian("per_pixel"))
    vl.export_onnx(model, directory)
    return model, directory


def draws(model):
    return np.random.default_rng(0).standard_normal((40, 3), dtype=np.float32) * 3


def test_the_bundle_gives_the_same_images_and_takes_them_back(exported, tmp_path):
    model, directory = exported
    opened = OnnxVAE(directory, threads=1)
    z = draws(opened)
    images = opened.decode(z)
    assert images.min() == 0
    assert images.max() == 1
    with torch.no_grad():
        expected = image_of(model.likelihood, model.eval().decode(torch.from_numpy(z)))
    torch.testing.assert_close(torch.from_numpy(images), expected, rtol=0, atol=1e-5)
    opened.encode(images)
    if "prior" in opened.contract:
        opened.encode(opened.sample(5, seed=0))
        assert build_scene(directory, opened).arrays["z"].shape == (512, 3)
        assert np.isfinite(opened.score(images)).all()
        assert main(["explore", str(directory), "--static", str(tmp_path / "page")]) == 0


@pytest.fixture
def changed(exported, sign_bundle, tmp_path):
    """Changes a graph of a bundle, signs it, and opens it."""

    def change(function, part="decoder"):
        bundle = Path(shutil.copytree(exported[1], tmp_path / "bundle"))
        proto = onnx.load(bundle / f"{part}.onnx")
        function(proto)
        (bundle / f"{part}.onnx").write_bytes(proto.SerializeToString())
        sign_bundle(bundle)
        return OnnxVAE(bundle, threads=1)

    return change


def unclamp(proto):
    """As version 0.1 wrote it."""
    (clip,) = (node for node in proto.graph.node if node.op_type == "Clip")
    node = helper.make_node("Identity", clip.input[:1], clip.output)
    proto.graph.node.remove(clip)
    proto.graph.node.append(node)


def test_bundles_of_before_are_clamped_when_they_are_run(exported, changed):
    z = draws(exported[0])
    assert np.array_equal(changed(unclamp).decode(z), OnnxVAE(exported[1], threads=1).decode(z))


def break_weights(value):
    def change(proto):
        for tensor in proto.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
                broken = np.full(tensor.dims, value, np.float32)
                tensor.CopyFrom(numpy_helper.from_array(broken, tensor.name))

    return change


@pytest.mark.parametrize("value", [np.nan, 1e30])
@pytest.mark.parametrize(
    ("part", "call", "shape"),
    [("encoder", OnnxVAE.reconstruct, IMAGE), ("encoder", OnnxVAE.encode, IMAGE), ("decoder", OnnxVAE.decode, (3,))],
)
def test_values_that_are_not_finite_are_an_error_that_names_the_graph(changed, part, call, shape, value):
    model = changed(break_weights(value), part)
    for size in (1, 40):
        with pytest.raises(ValueError, match=rf"{part}\.onnx gives values that are not finite \(NaN or infinite\)"):
            call(model, np.full((size, *shape), 0.5, np.float32))


def test_the_explorer_never_answers_200_with_values_that_are_not_finite(exported, changed):
    testclient = pytest.importorskip("starlette.testclient", reason="starlette's test client needs httpx")
    data = Data("some", np.random.default_rng(0).random((8, *IMAGE), dtype=np.float32), None)
    scene = build_scene(exported[1], OnnxVAE(exported[1], threads=1), data)
    app = application(changed(break_weights(np.nan)), scene, 1)
    with testclient.TestClient(app, base_url="http://127.0.0.1:1") as client:
        bodies = {"encode": np.full(IMAGE, 0.5, np.float32), "decode": np.zeros(3, np.float32)}
        binary = {"content-type": "application/octet-stream"}
        encoded, decoded = (client.post(c, content=v.tobytes(), headers=binary) for c, v in bodies.items())
    assert (encoded.status_code, decoded.status_code) == (200, 422)
    assert decoded.text.startswith("decoder.onnx gives values that are not fin")


def repeated(proto):
    """Two images for each latent."""
    for output in list(proto.graph.output):
        for node in proto.graph.node:
            node.output[:] = [f"{name}_once" if name == output.name else name for name in node.output]
            node.input[:] = [f"{name}_once" if name == output.name else name for name in node.input]
        proto.graph.node.append(helper.make_node("Concat", [f"{output.name}_once"] * 2, [output.name], axis=0))


def one_for_all(proto):
    """One image for all latents, which numpy would spread over the batch."""
    proto.graph.initializer.append(numpy_helper.from_array(np.int64([0]), "first"))
    node = helper.make_node("Gather", ["z", "first"], ["z_first"], axis=0)
    for other in proto.graph.node:
        other.input[:] = ["z_first" if name == "z" else name for name in other.input]
    proto.graph.node.insert(0, node)


def one_by_one(change):
    def both(proto):
        change(proto)
        for node in [node for node in proto.graph.node if node.op_type == "Clip"]:
            proto.graph.node.append(helper.make_node("Softplus", [node.output[0]], ["unused"]))

    return both


@pytest.mark.parametrize("change", [repeated, one_for_all, one_by_one(repeated)], ids=["twice", "once", "one by one"])
@pytest.mark.parametrize("size", [2, 20, 200])
def test_outputs_have_their_shape_on_every_path(changed, change, size):
    with pytest.raises(ModelFileError, match=r"decoder\.onnx must give `mean` of shape|cannot run decoder\.onnx"):
        changed(change).decode(np.zeros((size, 3), np.float32))
