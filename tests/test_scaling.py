"""Scaled latents: in torch, through ``given``, saved, exported, and without torch."""

import json

import numpy as np
import pytest
import torch

import vaelib as vl
from vaelib.errors import ModelFileError
from vaelib.runtime import OnnxVAE
from vaelib.serialization.descriptions import of_today

IMAGE, LATENT = (1, 8, 8), (2, 4, 4)
SCALING = vl.LatentScaling((0.5, -1.0), (2.0, 0.25))


def images(count=5):
    return torch.rand(count, *IMAGE, generator=torch.Generator().manual_seed(0))


def small(**arguments):
    torch.manual_seed(0)
    return vl.conv_vae(IMAGE, hidden_channels=(4,), norm="group", **arguments).eval()


def by_hand(z):
    """With numbers written out."""
    shift, scale = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.25])
    shape = (1, 2, *[1] * (z.ndim - 2))
    return (z - shift.view(shape)) * scale.view(shape)


MODELS = {
    "map": (lambda: small(latent_shape=LATENT), None),
    "vector": (lambda: small(latent_dim=2), None),
    "condition": (lambda: small(latent_shape=LATENT, condition=vl.Labels(3)), 1),
    "codes": (lambda: small(latent=vl.FiniteScalarQuantizer(LATENT, (3, 3))), None),
    "autoencoder": (
        lambda: vl.AutoEncoder(
            vl.ConvEncoder(IMAGE, latent_shape=LATENT, hidden_channels=(4,)),
            vl.ConvDecoder(None, IMAGE, latent_shape=LATENT, hidden_channels=(4,)),
        ).eval(),
        None,
    ),
}


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_verbs_scale_where_they_are_asked(kind):
    build, condition = MODELS[kind]
    model, x = build(), images()
    plain = model if condition is None else model.given(condition)
    before = plain.embed(x), plain.encode(x), model.reconstruct(x, condition=condition)
    model.scaling = SCALING
    z = plain.embed(x)
    assert torch.equal(z, before[0])
    assert torch.equal(model.reconstruct(x, condition=condition), before[2])
    scaled = plain.embed(x, scaled=True)
    assert torch.equal(scaled, by_hand(z))
    assert torch.equal(scaled, model.embed(x, condition=condition, scaled=True))
    assert torch.allclose(plain.decode(scaled, scaled=True), plain.decode(z), atol=1e-5)
    assert torch.allclose(plain.decode_mean(scaled, scaled=True), before[2], atol=1e-5)
    if kind == "codes":
        with pytest.raises(ValueError, match="`scaled` must be False for codes, which have no scale: `embed` gives"):
            plain.encode(x, scaled=True)
        return
    found = plain.encode(x, scaled=True)
    if kind == "autoencoder":
        assert torch.equal(found, scaled)
        return
    mu, logvar = before[1]
    assert torch.equal(found[0], by_hand(mu))
    deviation = by_hand(mu + (logvar / 2).exp()) - by_hand(mu)
    assert torch.allclose((found[1] / 2).exp(), deviation, rtol=1e-4)


def test_one_number_serves_all_channels_as_diffusers_has_it():
    z = torch.randn(3, *LATENT)
    scaling = vl.LatentScaling(0.0609, 0.18215)
    assert torch.equal(scaling(z), (z - 0.0609) * 0.18215)
    assert torch.equal(scaling.inverse(z), z / 0.18215 + 0.0609)
    assert scaling.by_channel(2) == {"shift": [0.0609] * 2, "scale": [0.18215] * 2}
    assert not scaling.state_dict()


REFUSALS = [
    (lambda m: vl.LatentScaling("a", 1.0), TypeError, "`shift` must be a number, or a list of one .*, got 'a'"),
    (lambda m: vl.LatentScaling(torch.ones(2), 1.0), TypeError, "`shift` must be a number, or a list of one for each"),
    (lambda m: vl.LatentScaling((), 1.0), ValueError, r"`shift` must be a number, or one for each channel, got \(\)"),
    (lambda m: vl.LatentScaling(0.0, 0.0), ValueError, "`scale` must be >= 1e-30 and <= 1e\\+30, got 0.0"),
    (lambda m: vl.LatentScaling(0.0, (1.0, float("nan"))), ValueError, r"`scale\[1\]` must be >= 1e-30"),
    (
        lambda m: vl.LatentScaling((0.0, 1.0), (1.0, 1.0, 1.0)),
        ValueError,
        r"`shift` and `scale` must have as many entries, got \(0.0, 1.0\) and \(1.0, 1.0, 1.0\)",
    ),
    (lambda m: SCALING(torch.zeros(1, 3, 4, 4)), ValueError, r"`z` must have 2 channels, got the shape \(1, 3, 4, 4\)"),
    (lambda m: SCALING.inverse([0.0]), TypeError, r"`z` must be a torch.Tensor, got \[0.0\]"),
    (lambda m: setattr(m, "scaling", 0.18), TypeError, "`scaling` must be a LatentScaling or None, got 0.18"),
    (
        lambda m: setattr(m, "scaling", vl.LatentScaling((0.0,) * 3, 1.0)),
        ValueError,
        "`scaling` must have one number, or one for each channel of the latent, 2, got 3",
    ),
    (
        lambda m: vl.VAE(m.encoder, m.decoder, scaling=vl.LatentScaling((0.0,) * 3, 1.0)),
        ValueError,
        "`scaling` must have one number, or one for each channel of the latent, 2, got 3",
    ),
    (
        lambda m: m.embed(images(), scaled=True),
        ValueError,
        "`scaled` must be False for a model without a scaling: measure one, model.scaling = ",
    ),
    (lambda m: m.encode(images(), scaled=True), ValueError, "`scaled` must be False for a model without a scaling"),
    (lambda m: m.decode(torch.zeros(1, *LATENT), scaled=True), ValueError, "`scaled` must be False for a model"),
    (lambda m: m.decode(torch.zeros(1, *LATENT), scaled=1), TypeError, "`scaled` must be True or False, got 1"),
]


@pytest.mark.parametrize(("call", "error", "match"), REFUSALS)
def test_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call(small(latent_shape=LATENT))


def test_a_draw_is_never_scaled():
    model = small(latent_shape=LATENT)
    model.scaling = SCALING
    with pytest.raises(ValueError, match="`scaled` must be False for a Draw, whose z is not scaled"):
        model.decode(model.draw(model.observe(images())), scaled=True)


def test_it_is_saved_and_loaded(tmp_path):
    model = small(latent_shape=LATENT)
    vl.save(model, tmp_path)
    assert vl.load(tmp_path).scaling is None
    model.scaling = SCALING
    vl.save(model, tmp_path)
    loaded = vl.load(tmp_path)
    assert (loaded.scaling.shift, loaded.scaling.scale) == (SCALING.shift, SCALING.scale)
    assert torch.equal(loaded.embed(images(), scaled=True), model.embed(images(), scaled=True))
    loaded.scaling = None
    assert loaded.scaling is None
    made = vl.AutoEncoder(model.encoder, model.decoder, scaling=vl.LatentScaling(0.0, 0.5))
    vl.save(made, tmp_path)
    assert vl.load(tmp_path).scaling.scale == 0.5


def test_models_saved_before_there_was_a_scaling_have_none():
    for kind in ("VAE", "AutoEncoder"):
        assert of_today({"class": kind})["scaling"] is None


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    model = small(latent_shape=LATENT, condition=vl.Labels(3))
    model.scaling = SCALING
    directory = tmp_path_factory.mktemp("scaled")
    vl.export_onnx(model, directory)
    return model, directory


@torch.no_grad()
def test_a_bundle_scales_as_torch_does(bundle):
    model, directory = bundle
    x, view = images(), model.given(2)
    opened = OnnxVAE(directory)
    assert opened.metadata["scaling"] == {"shift": [0.5, -1.0], "scale": [2.0, 0.25]}
    runtime = opened.given(labels=2)
    scaled = view.embed(x, scaled=True)
    for found, expected in (
        (runtime.embed(x.numpy(), scaled=True), scaled),
        (opened.embed(x.numpy(), condition=2, scaled=True), scaled),
        (runtime.encode(x.numpy(), scaled=True)[0], view.encode(x, scaled=True)[0]),
        (runtime.encode(x.numpy(), scaled=True)[1], view.encode(x, scaled=True)[1]),
        (runtime.decode(scaled.numpy(), scaled=True), view.decode_mean(scaled, scaled=True)),
        (runtime.decode_params(scaled.numpy(), scaled=True), view.decode(scaled, scaled=True)),
        (runtime.decode(view.embed(x).numpy()), view.reconstruct(x)),
    ):
        assert found.dtype == np.float32
        assert np.abs(found - expected.numpy()).max() < 1e-5
    with pytest.raises(ValueError, match="`z` must be finite"):
        runtime.decode(np.full((1, *LATENT), np.nan, np.float32), scaled=True)
    with pytest.raises(TypeError, match="`scaled` must be True or False, got 'yes'"):
        runtime.embed(x.numpy(), scaled="yes")


def test_the_card_says_it(bundle):
    card = (bundle[1] / "README.md").read_text()
    assert "| scaling | (z - shift) * scale by channel: shift 0.5, -1; scale 2, 0.25 |" in card
    assert "scaled = model.embed(images, scaled=True)\nimages = model.decode(scaled, scaled=True)\n" in card


@pytest.mark.parametrize(
    ("scaling", "match"),
    [
        ({"shift": [0.0], "scale": [1.0]}, r"a `scaling` of 1 channels for \[2, 4, 4\]"),
        ({"shift": [0.0, 0.0], "scale": [1.0, 0.0]}, "its `scaling` is {'shift': "),
        ({"shift": [0.0, 0.0], "scale": [1.0]}, "its `scaling` is {'shift': "),
        ({"shift": [0.0, float("nan")], "scale": [1.0, 1.0]}, "its `scaling` is {'shift': "),
        ({"shift": [0.0, "1"], "scale": [1.0, 1.0]}, "its `scaling` is {'shift': "),
        ([1.0], r"its `scaling` is \[1.0\]"),
        (None, None),
        ("missing", None),
    ],
)
def test_manifests(bundle, tmp_path, scaling, match):
    """One that is not vaelib's is refused; one of a bundle without a scaling opens, and says so where it is asked."""
    for path in bundle[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["model"]["scaling"] = scaling
    if scaling == "missing":
        del manifest["model"]["scaling"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    if match is not None:
        with pytest.raises(ModelFileError, match=match):
            OnnxVAE(tmp_path)
        return
    with pytest.raises(
        ValueError, match="`scaled` must be False: the bundle's model has no scaling. Set model.scaling"
    ):
        OnnxVAE(tmp_path).given(labels=0).embed(images().numpy(), scaled=True)
