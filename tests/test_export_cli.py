"""``vaelib export`` says and does what ``export_onnx`` does."""

import numpy as np
import pytest
import torch

import vaelib as vl
from vaelib.cli import main
from vaelib.export import precision, proof


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model directory without a record, and data for it."""
    root = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    vl.save(vl.conv_vae((1, 8, 8), 2, hidden_channels=(16,), norm="none"), root / "model")
    np.save(root / "images.npy", np.random.default_rng(0).integers(0, 256, (80, 8, 8), np.uint8))
    return root


def test_options_reach_the_card_and_findings_are_printed(places, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(proof, "_SECONDS_OF_A_SESSION", 0.0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "prior.onnx").write_bytes(b"mine")  # neither looked at nor removed
    options = ["--data", str(places / "images.npy"), "--split", "all", "--evaluate", "--speed", "--opset", "20"]
    assert main(["export", str(places / "model"), "--out", str(tmp_path / "b"), *options]) == 0
    output = capsys.readouterr().out
    assert "Not at onnxruntime's fastest: decoder: 1 ConvTranspose in plain order" in output
    assert (tmp_path / "b" / "prior.onnx").read_bytes() == b"mine"
    card = (tmp_path / "b" / "README.md").read_text()
    assert "opset 20" in card
    assert "data: images.npy, all" in card
    assert "num images: 80" in card
    assert str(places) not in card
    assert "images per second" in card
    expected = vl.evaluation.elbo(
        vl.load(places / "model"),
        vl.data.load(str(places / "images.npy"), "all"),
        generator=torch.Generator().manual_seed(0),
    )
    assert f"| elbo | {expected.elbo.value:.2f} | {expected.elbo.standard_error:.2f} | nats per image |" in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--strict"], "`strict` refuses what onnxruntime cannot run at", marks=pytest.mark.slow),
        (["--dynamic-size"], "`dynamic_size` needs a fully convolutional model"),
        (["--precision", "int8"], "`--data` must be given"),
        pytest.param(
            ["--precision", "int8", "--data", "IMAGES", "--max-loss", "0"],
            "`precision` 'int8' must lose at most 0 nats",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_refusals_are_told_and_write_nothing(places, tmp_path, capsys, options, message, monkeypatch):
    monkeypatch.setattr(precision, "images_per_second", lambda sessions, inputs: dict.fromkeys(sessions, 1.0))
    options = [str(places / "images.npy") if option == "IMAGES" else option for option in options]
    assert main(["export", str(places / "model"), "--out", str(tmp_path / "b"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def brought(tmp_path):
    """A small model as diffusers would have written it."""
    torch.manual_seed(0)
    vl.to_diffusers(
        vl.autoencoder_kl((3, 8, 8), 2, width=4, norm="group", groups=2, residual_blocks=1), tmp_path / "vae"
    )
    return tmp_path / "vae"


@pytest.mark.slow
def test_a_model_of_diffusers_is_exported(brought, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    assert main(["export", "--from-diffusers", str(brought), "--image-size", "16", "--out", str(bundle)]) == 0
    assert "decoder.onnx mean" in capsys.readouterr().out
    x = torch.rand(2, 3, 16, 16)
    expected = vl.from_diffusers(brought, image_size=16).reconstruct(x)
    found = torch.from_numpy(vl.runtime.OnnxVAE(bundle).reconstruct(x.numpy()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "`MODEL` must be given, or `--from-diffusers`"),
        (["MODEL", "--from-diffusers", "VAE"], "`MODEL` must not be given with `--from-diffusers`, got"),
        (["MODEL", "--image-size", "16"], "`--image-size` is for `--from-diffusers`"),
        (
            ["--from-diffusers", "MODEL"],
            "`_class_name` must be one of AutoencoderKL, VQModel, AutoencoderTiny, got None",
        ),
        (["--from-diffusers", "VAE", "--image-size", "7"], "`image_size` must be multiples of 2"),
        (["--from-diffusers", "VAE", "--evaluate"], "`--data` must be given"),
    ],
)
def test_one_model_is_named(places, brought, tmp_path, capsys, arguments, message):
    paths = {"MODEL": str(places / "model"), "VAE": str(brought)}
    assert main(["export", *(paths.get(word, word) for word in arguments), "--out", str(tmp_path / "b")]) != 0
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "b").exists()
