import json
import os

import pytest
import torch
from torch import nn

import vaelib as vl
from vaelib._weights import sealed
from vaelib.serialization import describe


@pytest.fixture
def saved(tmp_path):
    vl.save(vl.conv_vae((1, 8, 8), 3, hidden_channels=(4,)), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_of_the_weights_comes_back(dtype, tmp_path):
    model = vl.conv_vae((1, 8, 8), 3, hidden_channels=(4,), likelihood=vl.Gaussian(0.6)).to(dtype)
    vl.save(model, tmp_path)
    loaded = vl.load(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert all(p.requires_grad for p in loaded.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_an_own_class_is_saved_by_its_arguments(tmp_path):
    @vl.register
    class Flat(nn.Module):
        image_shape = (1, 4, 4)

        def __init__(self, width, *, extra=None, scales=(1.0, 2.0)):
            super().__init__()
            self.width, self.extra, self.scales = width, extra, scales
            self.latent_shape = (width,)
            self.linear = nn.Linear(16, 2 * width)

        def forward(self, x):
            return self.linear(x.flatten(1)).chunk(2, dim=1)

    model = vl.VAE(Flat(3, extra={"a": [1, None, True, "b"]}), vl.ConvDecoder(3, (1, 4, 4)))
    vl.save(model, tmp_path)
    loaded = vl.load(tmp_path)
    assert loaded.encoder.extra == {"a": [1, None, True, "b"]}
    assert torch.equal(loaded.encoder.linear.weight, model.encoder.linear.weight)
    assert vl.register(Flat) is Flat
    with pytest.raises(ValueError, match="A class named 'VAE' is known already: vaelib.vae.VAE"):
        vl.register(type("VAE", (nn.Module,), {}))


def test_models_that_cannot_be_saved_write_nothing(tmp_path):
    class Stranger(nn.Module):
        image_shape, latent_shape = (1, 4, 4), (2,)

    target = tmp_path / "model"
    with pytest.raises(TypeError, match=r"'Stranger' is not known to vaelib: decorate it with @vaelib.register"):
        vl.save(vl.VAE(Stranger(), vl.ConvDecoder(2, (1, 4, 4))), target)

    @vl.register
    class Forgetful(nn.Module):
        def __init__(self, width):
            super().__init__()

    with pytest.raises(TypeError, match="Forgetful must keep its argument `width` as an attribute"):
        describe(Forgetful(3))

    @vl.register
    class Odd(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.width = width

    with pytest.raises(TypeError, match="`Odd.width` must be a number, string, boolean, None or module"):
        describe(Odd(object()))
    assert not target.exists()


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="`directory` must be a directory that can be written"):
        vl.save(vl.conv_vae((1, 8, 8), 2), tmp_path / "file" / "model")


def test_nothing_to_load(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"`directory` must hold config.json and model.safetensors; there is no"
    ):
        vl.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="there is no .*model.safetensors"):
        vl.load(tmp_path)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_torn_weights(saved, length, as_version_0_1):
    content = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(content[:length])
    with pytest.raises(vl.ModelFileError, match=r"model\.safetensors is torn or foreign: its SHA-256 is not that of"):
        vl.load(saved)
    as_version_0_1(saved)
    with pytest.raises(vl.ModelFileError, match=r"model\.safetensors is torn or no safetensors file"):
        vl.load(saved)


def test_foreign_weights(saved, tmp_path, as_version_0_1):
    vl.save(vl.conv_vae((1, 8, 8), 5, hidden_channels=(4,)), tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(saved / "model.safetensors")
    with pytest.raises(vl.ModelFileError, match=r"model\.safetensors is torn or foreign"):
        vl.load(saved)
    as_version_0_1(saved)
    with pytest.raises(vl.ModelFileError, match=r"(?s)does not fit config.json beside it: .*size mismatch"):
        vl.load(saved)
    vl.save(vl.AutoEncoder(vl.ConvEncoder((1, 8, 8), 2), vl.ConvDecoder(2, (1, 8, 8))), tmp_path / "third")
    (tmp_path / "third" / "model.safetensors").replace(saved / "model.safetensors")
    with pytest.raises(vl.ModelFileError, match=r"(?s)does not fit config.json beside it: .*(Missing|Unexpected) key"):
        vl.load(saved)


def changed(directory, change):
    """The config as somebody writes it who knows how its checksum is made."""
    config = json.loads((directory / "config.json").read_text())
    del config["sha256"]
    change(config)
    (directory / "config.json").write_text(sealed(config))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda c: c["model"].update({"class": "Evil"}),
            "names the class 'Evil', which is not one of.*ConvEncoder",
        ),
        (
            lambda c: c["model"]["encoder"].update(norm="bath"),
            "does not describe a ConvEncoder: `norm` must be one of",
        ),
        (
            lambda c: c["model"]["encoder"].update(colour="red"),
            "does not describe a ConvEncoder: .*unexpected keyword",
        ),
        (lambda c: c["model"].pop("encoder"), "does not describe a VAE: its `encoder` is missing"),
        (
            lambda c: c["model"].update(encoder=3),
            "does not describe a VAE: `encoder` must be an nn.Module object, got 3",
        ),
        (lambda c: c["model"].update(likelihood="foo"), "does not describe a VAE: `likelihood` must be an nn.Module"),
        (lambda c: c["model"].update({"class": ["VAE"]}), r"names the class \['VAE'\], which is not one of"),
        (
            lambda c: c.update(format="vaelib-model-9"),
            "must have the format 'vaelib-model-2', got 'vaelib-model-9'",
        ),
        (lambda c: c.clear(), "must have the format 'vaelib-model-2', got None"),
        (lambda c: c.pop("weights_sha256"), "was changed after it was saved: its checksum does not fit"),
        (lambda c: c.pop("model"), "describes no model, but None"),
        (lambda c: c["model"].pop("likelihood"), "does not describe a VAE: its `likelihood` is missing"),
        (
            lambda c: [c["model"]["encoder"].pop(name) for name in ("norm", "stride")],
            "does not describe a ConvEncoder: its `stride`, `norm` is missing",
        ),
    ],
)
def test_foreign_configs(saved, change, match):
    changed(saved, change)
    with pytest.raises(vl.ModelFileError, match=match):
        vl.load(saved)


def test_configs_that_are_no_json(saved):
    (saved / "config.json").write_text("{")
    with pytest.raises(vl.ModelFileError, match=r"config\.json is no JSON"):
        vl.load(saved)
    (saved / "config.json").write_text("[]")
    with pytest.raises(vl.ModelFileError, match="must hold a JSON object, got 'list'"):
        vl.load(saved)
    (saved / "config.json").write_text('{"format": "vaelib-model-1", "model": 3}')
    with pytest.raises(vl.ModelFileError, match="describes no model"):
        vl.load(saved)


def test_a_failed_save_leaves_the_old_model(saved, monkeypatch):
    before = vl.load(saved).state_dict()

    def torn(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vaelib._weights.save_file", torn)
    with pytest.raises(OSError, match="No space left"):
        vl.save(vl.conv_vae((1, 8, 8), 3, hidden_channels=(4,)), saved)
    after = vl.load(saved).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sorted(os.listdir(saved)) == ["config.json", "model.safetensors"]
