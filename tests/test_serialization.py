import json
import os

import pytest
import torch
from torch import nn

import vaelib as vl
from vaelib._weights import read_tensors, sealed, write_tensors
from vaelib.errors import ModelFileError
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
    with pytest.raises(ValueError, match="A class named 'VAE' is known already: vaelib.vae.model.VAE"):
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
    with pytest.raises(ModelFileError, match="must have at most 1048576 bytes, got"):
        vl.save(Odd("x" * 2**20), target)
    assert not target.exists()


def test_tied_weights_are_refused(tmp_path):
    @vl.register
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
            self.b.weight = self.a.weight

    with pytest.raises(ValueError, match=r"Weights that share memory cannot be saved: .*a\.weight"):
        vl.save(Tied(), tmp_path / "model")
    assert os.listdir(tmp_path) == []


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
    with pytest.raises(ModelFileError, match=r"model\.safetensors is torn or foreign: its SHA-256 is not that of"):
        vl.load(saved)
    as_version_0_1(saved)
    with pytest.raises(ModelFileError, match=r"model\.safetensors is torn or no safetensors file"):
        vl.load(saved)


def test_foreign_weights(saved, tmp_path, as_version_0_1):
    vl.save(vl.conv_vae((1, 8, 8), 5, hidden_channels=(4,)), tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(saved / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"model\.safetensors is torn or foreign"):
        vl.load(saved)
    as_version_0_1(saved)
    with pytest.raises(ModelFileError, match=r"(?s)does not fit config.json beside it: .*size mismatch"):
        vl.load(saved)
    vl.save(vl.AutoEncoder(vl.ConvEncoder((1, 8, 8), 2), vl.ConvDecoder(2, (1, 8, 8))), tmp_path / "third")
    (tmp_path / "third" / "model.safetensors").replace(saved / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"(?s)does not fit config.json beside it: .*(Missing|Unexpected) key"):
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
    with pytest.raises(ModelFileError, match=match):
        vl.load(saved)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", r"config\.json is no JSON"),
        ("[" * 10_000 + "]" * 10_000, "is no JSON: nested too deeply"),
        (" " * 2**21, "must have at most 1048576 bytes, got 2097152"),
        ("[]", "must hold a JSON object, got 'list'"),
        ('{"format": "vaelib-model-1", "model": 3}', "describes no model"),
    ],
)
def test_configs_that_are_no_model(saved, text, match):
    (saved / "config.json").write_text(text)
    with pytest.raises(ModelFileError, match=match):
        vl.load(saved)


SMALL = r"larger by far than the weights that are there for it"


@pytest.mark.parametrize(
    ("where", "value", "match"),
    [
        (("encoder", "hidden_channels"), [10**9], "A network may have"),
        (("encoder", "hidden_channels"), [10**6], SMALL),
        (("encoder", "hidden_channels"), [2] * 50_000, SMALL),
        (("encoder", "hidden_channels"), [1024] * 40, SMALL),
        (("encoder", "hidden_channels"), [10**18, 10**18], "does not describe a ConvEncoder"),
        (("encoder", "hidden_channels"), [10**400], "does not describe a ConvEncoder"),
        (("encoder", "hidden_channels"), "4", "`hidden_channels` must be a sequence of ints, got '4'"),
        (("encoder", "image_shape"), [1, 10**9, 10**9], "does not describe a ConvEncoder"),
        (("encoder", "residual_blocks"), 10**6, SMALL),
        (("encoder", "kernel_size"), 5_000, SMALL),
        (("encoder", "latent_dim"), 1e12, "`latent_dim` must be an int, got 1000000000000.0"),
        (("encoder", "dropout"), float("nan"), "`dropout` must be"),
        (("decoder", "stride"), 10**9, "does not fit config.json beside it: .*size mismatch"),
        (("prior",), {"class": "MixtureOfGaussians", "latent_shape": [3], "num_components": 10**12}, SMALL),
        (("prior",), {"class": "VampPrior", "image_shape": [1, 8, 8], "num_components": 10**9}, SMALL),
        (("likelihood",), [[[]]], "does not describe a VAE: `likelihood` must be an nn.Module"),
        (("encoder",), [1] * 10_000, r"`encoder` must be an nn.Module object, got \[1, 1.{5,600}$"),
        (("encoder", "hidden_channels"), [["deep"]], "does not describe a ConvEncoder"),
    ],
)
def test_absurd_sizes_are_refused_before_they_are_built(saved, where, value, match):
    """Not by memory that runs out, nor after minutes."""

    def change(config):
        part = config["model"]
        for key in where[:-1]:
            part = part[key]
        part[where[-1]] = value

    changed(saved, change)
    with pytest.raises(ModelFileError, match=f"(?s){match}"):
        vl.load(saved)


@pytest.mark.parametrize("latents", [3_000, 100_000])
def test_masks_of_a_flow_count(saved, latents):
    """They are as large as the square of the latents, which no weight is."""
    pytest.importorskip("zuko")
    flow = {"class": "FlowPosterior", "latent_shape": [latents], "num_transforms": 9, "hidden_features": [8]}
    changed(saved, lambda config: config["model"]["latent"].update(posterior=flow))
    with pytest.raises(ModelFileError, match=f"does not describe a FlowPosterior: .*{SMALL}"):
        vl.load(saved)


def test_a_flow_of_many_latents_is_loaded(tmp_path):
    flow = pytest.importorskip("zuko") and vl.FlowPosterior((300,), 2, (4,))
    vl.save(flow, tmp_path)
    assert all(
        torch.equal(a, b)
        for a, b in zip(flow.state_dict().values(), vl.load(tmp_path).state_dict().values(), strict=True)
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs fifos")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_is_no_regular_file_is_not_opened(saved, name):
    (saved / name).unlink()
    os.mkfifo(saved / name)
    with pytest.raises(ModelFileError, match=f"{name} must be a regular file"):
        vl.load(saved)
    (saved / name).unlink()
    (saved / name).symlink_to("/dev/zero")
    with pytest.raises(ModelFileError, match=f"{name} must be a regular file"):
        vl.load(saved)


def test_links_to_files_are_read(saved):
    """As caches of models have them."""
    for name in ("config.json", "model.safetensors"):
        (saved / name).rename(saved / f"blob of {name}")
        (saved / name).symlink_to(saved / f"blob of {name}")
    assert isinstance(vl.load(saved), vl.VAE)


def test_a_config_that_is_reformatted_is_the_same_and_one_that_is_edited_is_refused(saved):
    path = saved / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config, indent=8, sort_keys=True))
    assert vl.load(saved).encoder.dropout == 0.0
    config["model"]["encoder"]["dropout"] = 0.5
    path.write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match="was changed after it was saved: its checksum does not fit. Save the"):
        vl.load(saved)


def test_version_0_1_is_loaded(saved, as_version_0_1):
    expected = vl.load(saved)
    as_version_0_1(saved)
    config = json.loads((saved / "config.json").read_text())
    config["model"]["prior"] = config["model"].pop("latent")["prior"]  # and no posterior, in the first files
    (saved / "config.json").write_text(json.dumps(config))
    loaded = vl.load(saved)
    assert describe(loaded) == describe(expected)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), expected.parameters(), strict=True))
    del config["model"]["likelihood"]
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match="does not describe a VAE: its `likelihood` is missing"):
        vl.load(saved)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"encoder.head.1.bias": torch.float16},
            "must have weights of one dtype among .*, got torch.float16, torch.flo",
        ),
        ({"encoder.head.1.bias": torch.int32}, "must hold `encoder.head.1.bias` as torch.float32, got torch.int32"),
        ({"encoder.stages.1.num_batches_tracked": torch.float32}, "num_batches_tracked` as torch.int64, got torch.flo"),
        ({"*": torch.float8_e4m3fn}, "must have weights of one dtype among torch.float32, .*, got torch.float8_e4m3fn"),
    ],
)
def test_weights_of_another_dtype_are_refused_at_the_door(saved, changes, match, as_version_0_1):
    """Of files without a checksum; with one, they are what was saved."""
    as_version_0_1(saved)
    path = saved / "model.safetensors"
    tensors = read_tensors(path, None)
    whole = changes.pop("*", None)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() or name in changes:
            tensors[name] = tensor.to(changes.get(name, whole or tensor.dtype))
    write_tensors(path, tensors)
    with pytest.raises(ModelFileError, match=match):
        vl.load(saved)


def test_a_half_model_is_half_again_and_says_what_it_wants(tmp_path):
    vl.save(vl.conv_vae((1, 8, 8), 3, hidden_channels=(4,)).half(), tmp_path)
    loaded = vl.load(tmp_path)
    with pytest.raises(
        TypeError, match="`x` must have the dtype of the model's weights, torch.float16, got torch.float32"
    ):
        loaded.reconstruct(torch.rand(2, 1, 8, 8))
    assert loaded.float().reconstruct(torch.rand(2, 1, 8, 8)).dtype == torch.float32


def test_a_class_of_ones_own_has_its_defaults_where_an_older_file_lacks_an_argument(tmp_path):
    @vl.register
    class Grown(nn.Module):
        def __init__(self, width, depth=2):
            super().__init__()
            self.width, self.depth = width, depth

    vl.save(Grown(3, 5), tmp_path)
    changed(tmp_path, lambda config: config["model"].pop("depth"))
    assert vl.load(tmp_path).depth == 2
    changed(tmp_path, lambda config: config["model"].pop("width"))
    with pytest.raises(ModelFileError, match="does not describe a Grown: .*missing.*'width'"):
        vl.load(tmp_path)


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


def test_a_directory_that_is_a_run_and_holds_a_model_or_a_config_of_ones_own(tmp_path):
    run, own = (vl.conv_vae((1, 8, 8), latent_dim, hidden_channels=(4,)) for latent_dim in (2, 3))
    vl.save(run, tmp_path / "best")
    (tmp_path / "config.json").write_text('{"learning_rate": 1}')
    assert vl.load(tmp_path).latent_shape == (2,)
    (tmp_path / "config.json").unlink()
    vl.save(own, tmp_path)
    with pytest.warns(UserWarning, match="a model of its own, which is loaded, and a run, whose model is .*best"):
        assert vl.load(tmp_path).latent_shape == (3,)
