"""Bundles on images of any size, tile by tile."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vaelib as vl
from vaelib._tiles import Axis
from vaelib.cli import main
from vaelib.errors import ExportError, ModelFileError
from vaelib.export import proof
from vaelib.export.tiling import prove_tiles, smooth_images
from vaelib.runtime import OnnxVAE, machine
from vaelib.runtime.protobuf import ProtobufError
from vaelib.runtime.sections import cut_out


def build(**options):
    torch.manual_seed(0)
    return vl.conv_vae(
        (1, 16, 16), latent_shape=(2, 4, 4), hidden_channels=(4, 4), upsample="nearest", **options
    ).eval()


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """A model with a bound and a condition, and its bundle."""
    vae = build(condition=vl.Labels(3))
    vae.scaling = vl.LatentScaling(0.5, 2.0)
    directory = tmp_path_factory.mktemp("exact") / "bundle"
    vl.export_onnx(vae, directory, dynamic_size=True)
    return vae, directory


@pytest.fixture(scope="module")
def unbounded(tmp_path_factory):
    """The bundle of a model with group normalisation."""
    directory = tmp_path_factory.mktemp("unbounded") / "bundle"
    vl.export_onnx(build(norm="group"), directory, dynamic_size=True)
    return directory


def images(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def apart(one, other):
    return np.abs(one - other).max() / np.ptp(one)


@pytest.mark.parametrize("size", [(64, 48), (20, 92)], ids=str)
@pytest.mark.parametrize("tile", [12, 33])
def test_tiles_of_a_bundle_are_the_whole(exact, size, tile):
    vae, directory = exact
    model = OnnxVAE(directory).given(labels=[2, 0, 1])
    x = images(3, 1, *size)
    z = model.embed(x)
    assert apart(z, model.embed(x, tile=tile)) <= 1e-6
    for one, other in zip(model.encode(x, scaled=True), model.encode(x, scaled=True, tile=tile), strict=True):
        assert apart(one, other) <= 1e-6
    assert apart(model.decode(z), model.decode(z, tile=tile)) <= 1e-6
    assert apart(model.decode_params(z), model.decode_params(z, tile=tile)) <= 1e-6
    scaled = model.embed(x, scaled=True, tile=tile)
    assert apart(model.decode(scaled, scaled=True), model.decode(scaled, scaled=True, tile=tile)) <= 1e-6
    of_torch = vae.reconstruct(torch.from_numpy(x), condition=[2, 0, 1], tile=100).numpy()
    np.testing.assert_allclose(model.reconstruct(x, tile=tile), of_torch, atol=1e-5)
    one = OnnxVAE(directory).reconstruct(x[1:2], condition=0, tile=tile)
    np.testing.assert_allclose(one, of_torch[1:2], atol=1e-5)


def test_sizes_that_are_no_multiple_are_reflected_and_cropped(exact):
    model = OnnxVAE(exact[1]).given(labels=1)
    x = images(1, 1, 17, 30)
    reflected = np.pad(x, ((0, 0), (0, 0), (0, 3), (0, 2)), "reflect")
    with pytest.warns(UserWarning, match="`images` of 17 x 30 are reflected at the bottom and on the right to 20 x 32"):
        z = model.embed(x, tile=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(z, model.embed(reflected), atol=1e-6)
        np.testing.assert_allclose(
            model.reconstruct(x, tile=16), model.reconstruct(reflected)[..., :17, :30], atol=1e-6
        )
        assert model.reconstruct(x[:0], tile=16).shape == x[:0].shape


@pytest.mark.slow
def test_a_layer_without_a_bound_is_refused_by_name_and_its_stated_error_is_a_fresh_one(unbounded):
    model = OnnxVAE(unbounded)
    for part, call, layer in (("encoder", model.embed, "stages.1"), ("decoder", model.decode, "stages.0")):
        stated = model.metadata["tiling"][part]
        assert stated["layer"] == f"`{layer}` (GroupNorm)"
        size, tile = stated["blend"]["size"], stated["blend"]["tile"]
        x = smooth_images(4, 1, size, torch.Generator().manual_seed(7)).numpy()
        values = x if part == "encoder" else model.embed(x)
        with pytest.raises(ValueError, match=rf"in the {part} `{layer}` \(GroupNorm\) takes mean and variance"):
            call(values, tile=tile)
        whole, tiled = call(values), call(values, tile=tile, blend=True)
        off = np.abs(tiled - whole).reshape(4, -1) / np.ptp(whole)
        for name, fresh in (("rms", np.sqrt((off**2).mean(1)).mean()), ("max", off.max(1).mean())):
            assert 0.5 <= stated["blend"][name] / fresh <= 2, (part, name)
    assert "only with `blend=True`, since `stages.0` (GroupNorm) takes mean" in (unbounded / "README.md").read_text()


def test_a_radius_that_is_too_small_is_no_bundle(exact, monkeypatch, tmp_path):
    model = OnnxVAE(exact[1])
    prove_tiles(model, dict.fromkeys(("encoder", "decoder"), proof.EXACT))
    model.metadata["tiling"]["decoder"]["columns"]["high"] -= 1
    with pytest.raises(ExportError, match=r"another result in tiles than for the whole: decoder\.onnx is off by"):
        prove_tiles(model, dict.fromkeys(("encoder", "decoder"), proof.EXACT))


def test_the_command_line_keeps_the_size_of_an_image(exact, tmp_path, capsys):
    vae, bundle = exact
    vl.save(vae, tmp_path / "model")
    vl.plots.save_grid(torch.rand(1, 1, 61, 50), tmp_path / "x.png")
    x = vl.data.read_images([tmp_path / "x.png"], channels=1).float() / 255
    expected = vae.reconstruct(x, condition=1, tile=100)
    for name, directory in (("model", tmp_path / "model"), ("bundle", bundle)):
        out = tmp_path / f"{name}.png"
        command = ["reconstruct", str(directory), str(tmp_path / "x.png"), "--condition", "1", "--tile", "24"]
        assert main([*command, "--out", str(out)]) == 0
        said = capsys.readouterr().out
        assert said.startswith("61 x 50 in tiles of 24 written to")
        assert "; reflected to 64 x 52 for it, and cropped. PSNR " in said
        found = vl.data.read_images([out], channels=1) / 255
        assert (found - expected).abs().max() <= 0.6 / 255
    assert main([*command, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["computed"] == [64, 52]
    for extra, words in (
        ([str(tmp_path / "x.png"), "--tile", "24"], "`--tile` is for one image file, which keeps its size"),
        (["--blend"], "`blend` must be False where `tile` is None"),
        (["--tile", "8"], "`tile` must be at least 12"),
    ):
        assert main([*command[:5], *extra, "--out", str(out)]) == 1
        assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_the_explorer_reconstructs_an_image_at_its_own_size(exact, unbounded):
    testclient = pytest.importorskip("starlette.testclient")
    from vaelib.explorer import server
    from vaelib.explorer.scene import Scene

    model, binary = OnnxVAE(exact[1]), {"content-type": "application/octet-stream"}
    x = images(1, 1, 33, 50)
    client = testclient.TestClient(server.application(model, Scene({}, {}), 8321), base_url="http://127.0.0.1:8321")
    assert client.get("/scene.json").json()["largest_image"] == 2**24
    answer = client.post("/large/33/50?label=1", content=x.tobytes(), headers=binary)
    expected = model.reconstruct(x, condition=1, tile=512)
    np.testing.assert_array_equal(np.frombuffer(answer.content, "<f4").reshape(1, 1, 33, 50), expected)
    for path, content, status, words in (
        ("/large/33/50?label=9", x.tobytes(), 422, "must be labels in"),
        ("/large/0/50", b"", 413, "An image must have 1 to 16777216 numbers"),
        ("/large/5000/5000", x.tobytes(), 413, "An image must have 1 to 16777216 numbers"),
        ("/large/33/49", x.tobytes(), 413, "at most 1 items"),
    ):
        answer = client.post(path, content=content, headers=binary)
        assert answer.status_code == status and words in answer.text, answer.text
    blended = server.application(OnnxVAE(unbounded), Scene({}, {}), 8321)
    client = testclient.TestClient(blended, base_url="http://127.0.0.1:8321")
    assert client.get("/scene.json").json()["largest_image"] == 0
    assert client.post("/large/33/50", content=x.tobytes(), headers=binary).status_code == 404


class Deep(nn.Module):
    """Convolutions at a low resolution and at a high one, with a cut between them."""

    def __init__(self, low, high):
        super().__init__()
        self.parts = nn.ModuleList([low, high])

    def sections(self):
        return tuple(self.parts)

    def forward(self, x):
        first, second = self.parts
        return second(first(x))


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """The bundle of networks in two sections."""
    torch.manual_seed(0)
    encoder = Deep(
        nn.Conv2d(1, 4, 8, 4, 2), nn.Sequential(nn.Conv2d(4, 4, 5, padding=2), nn.Conv2d(4, 2, 3, padding=1))
    )
    decoder = Deep(
        nn.Sequential(nn.Conv2d(2, 4, 5, padding=2), nn.SiLU(), nn.Conv2d(4, 4, 3, padding=1)),
        nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(4, 1, 3, padding=1)),
    )
    model = vl.AutoEncoder(encoder, decoder, image_shape=(1, 16, 16), latent_shape=(2, 4, 4)).eval()
    directory = tmp_path_factory.mktemp("deep") / "bundle"
    vl.export_onnx(model, directory, dynamic_size=True)
    return directory


def test_the_sections_of_a_bundle_are_tiled_one_after_the_other(deep, monkeypatch):
    model = OnnxVAE(deep)
    for part, radii in (("encoder", [1, 3]), ("decoder", [3, 1])):
        tiling = model.metadata["tiling"][part]
        assert [section["rows"]["low"] for section in tiling["sections"]] == radii
        assert tiling["rows"]["low"] == 4
    x = images(2, 1, 96, 60)
    z = model.embed(x)
    seen = []
    call = machine.Session.call
    monkeypatch.setattr(
        machine.Session,
        "call",
        lambda self, inputs, wanted: seen.append(next(iter(inputs.values())).shape[2:]) or call(self, inputs, wanted),
    )
    assert apart(z, model.embed(x, tile=24)) <= 1e-6
    assert {*seen} == {(24, 24), (12, 11)}
    seen.clear()
    assert apart(model.decode(z), model.decode(z, tile=16)) <= 1e-6
    assert {*seen[1:]} == {(12, 11), (4, 4)}
    assert apart(model.decode_params(z), model.decode_params(z, tile=16)) <= 1e-6
    with pytest.raises(
        ValueError, match=r"at least 12 for this network, whose outputs depend on 1 \+ 1 steps of 4 pix"
    ):
        model.decode(z, tile=8)
    with pytest.raises(ValueError, match="`z` must be finite"):
        model.decode(z * np.nan, tile=16)
    model.metadata["tiling"]["decoder"]["sections"][1]["given"] = "elsewhere"
    with pytest.raises(ModelFileError, match=r"decoder\.onnx has no such section: .* 'z': elsewhere is missing"):
        model.decode(z, tile=16)


def test_a_section_with_another_way_to_the_input_is_none(deep):
    content = (deep / "decoder.onnx").read_bytes()
    with pytest.raises(ProtobufError, match="recon_params cannot be had from 'mean': z is missing"):
        cut_out(content, "mean", ["recon_params"])


X, Z = images(1, 1, 64, 64), images(1, 2, 16, 16)
REFUSED = [
    (lambda m: m.decode(Z, tile=0), ValueError, "`tile` must be >= 1"),
    (lambda m: m.decode(Z, tile=2.0), TypeError, "`tile` must be an int"),
    (lambda m: m.decode(Z, blend=True), ValueError, "`blend` must be False where `tile` is None"),
    (lambda m: m.decode(Z, tile=64, blend=None), TypeError, "`blend` must be"),
    (
        lambda m: m.decode(Z, tile=8),
        ValueError,
        r"`tile` must be at least 12 for this network, whose outputs",
    ),
    (lambda m: m.decode(Z[:, :1], tile=64), ValueError, r"`z` must have shape \(B, 2, h, w\)"),
    (lambda m: m.decode(Z[:, :, :0], tile=64), ValueError, "`z` must have a height and a width of at least 1"),
    (lambda m: m.decode(Z * np.nan, tile=16), ValueError, "`z` must be finite"),
    (lambda m: m.embed(X[0], tile=64), ValueError, r"`images` must have shape \(B, 1, H, W\)"),
    (lambda m: m.embed(X + 1, tile=16), ValueError, r"`images` must"),
    (lambda m: m.embed([1.0], tile=64), TypeError, "`images` must be a numpy array"),
]


@pytest.mark.parametrize(("call", "error", "match"), REFUSED, ids=range(len(REFUSED)))
def test_arguments_that_are_refused(exact, call, error, match):
    with pytest.raises(error, match=match):
        call(OnnxVAE(exact[1]).given(labels=0))


def test_a_bundle_of_one_size_has_no_tiles(tiny_bundle):
    with pytest.raises(ValueError, match="`tile` must be None for a bundle of one image size, or of a vaelib without"):
        OnnxVAE(tiny_bundle).decode(np.zeros((1, 2), np.float32), tile=64)


AXIS = Axis(1, 4)._asdict()
REFUSAL = {"layer": "`1`", "reason": "is so"}
WRONG = [
    {},
    {"encoder": REFUSAL},
    {"encoder": REFUSAL, "decoder": {"layer": 1, "reason": "is so"}},
    {"encoder": REFUSAL, "decoder": {"rows": AXIS}},
    {"encoder": REFUSAL, "decoder": {"rows": AXIS, "columns": AXIS, "sections": {}}},
    {"encoder": REFUSAL, "decoder": {"rows": AXIS, "columns": AXIS, "sections": [{"given": "z"}]}},
    {"encoder": REFUSAL, "decoder": {"rows": AXIS, "columns": [1, 4]}},
    {"encoder": REFUSAL, "decoder": {"rows": AXIS, "columns": {**AXIS, "low": -1}}},
    {"encoder": REFUSAL, "decoder": {"rows": AXIS, "columns": {**AXIS, "step": 0}}},
    {"encoder": REFUSAL, "decoder": {"rows": AXIS, "columns": {**AXIS, "cells": 1.5}}},
    {"encoder": REFUSAL, "decoder": {"rows": AXIS, "columns": {"step": 1}}},
]


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_what_a_stranger_says_of_tiles_is_checked(tiny_bundle, tmp_path, wrong):
    directory = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["model"]["tiling"] = wrong
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelFileError, match="its `tiling` is"):
        OnnxVAE(directory)


def test_tiles_that_do_not_fit_the_latent_map_are_no_bundle(exact, tmp_path):
    directory = shutil.copytree(exact[1], tmp_path / "bundle")
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["model"]["tiling"]["decoder"]["rows"]["cells"] += 1
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelFileError, match="its `tiling` is of 1 to 5 cells in the decoder, with a `spatial_multip"):
        OnnxVAE(directory)


class Sized(nn.Module):
    """What it does depends on the size of the map."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        if self.kind == "gain":
            return x * (x.shape[-1] / 4)
        return F.avg_pool2d(x, 3, 1, 1) if x.shape[2] > 8 else x


def sized(kind):
    vae = build()
    vae.decoder.stages.insert(0, Sized(kind))
    return vae


@pytest.mark.slow
def test_a_branch_on_the_size_has_no_graph_of_any_size(tmp_path):
    with pytest.raises(ExportError, match=r"the same at every size: decoder `\S*stages\.0` \(Sized\) calls other"):
        vl.export_onnx(sized("branch"), tmp_path, dynamic_size=True)


@pytest.mark.slow
def test_a_number_made_of_the_size_has_no_tiles(tmp_path):
    vae = sized("gain")
    vl.export_onnx(vae, tmp_path, dynamic_size=True)
    model = OnnxVAE(tmp_path)
    z = np.random.default_rng(0).standard_normal((1, 2, 9, 11), np.float32)
    with torch.no_grad():
        whole = vae.decode_mean(torch.from_numpy(z), tile=999, blend=True)
    np.testing.assert_allclose(model.decode(z), whole, atol=1e-5)
    with pytest.raises(ValueError, match=r"`stages\.0` \(Sized\) has other numbers for maps of"):
        model.decode(z, tile=32)


@pytest.mark.slow
def test_blended_tiles_are_those_of_torch(unbounded):
    x = images(1, 1, 64, 48)
    found = OnnxVAE(unbounded).reconstruct(x, tile=32, blend=True)
    np.testing.assert_allclose(
        found, build(norm="group").reconstruct(torch.from_numpy(x), tile=32, blend=True), atol=1e-5
    )


@pytest.mark.slow
def test_the_residual_autoencoder_is_exact_in_tiles(tmp_path):
    vae = vl.autoencoder_kl((3, 32, 32), factor=4, channels=2, width=32, residual_blocks=1)
    vl.export_onnx(vae, tmp_path, dynamic_size=True)
    model = OnnxVAE(tmp_path)
    x = images(1, 3, 280, 221)
    assert apart(model.reconstruct(x, tile=300), model.reconstruct(x, tile=180)) <= 1e-6
