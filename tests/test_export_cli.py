"""``vaelib export`` says and does what ``export_onnx`` does."""

import numpy as np
import pytest
import torch

import vaelib as vl
from vaelib.cli import main
from vaelib.export import precision, speed


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model directory without a record, and data for it."""
    root = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    vl.save(vl.conv_vae((1, 8, 8), 2, hidden_channels=(16,), norm="none"), root / "model")
    np.save(root / "pictures.npy", np.random.default_rng(0).integers(0, 256, (80, 8, 8), np.uint8))
    return root


def test_options_reach_the_card_and_findings_are_printed(places, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "_SECONDS", 0.0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "prior.onnx").write_bytes(b"mine")  # neither looked at nor removed
    options = ["--data", str(places / "pictures.npy"), "--split", "all", "--evaluate", "--speed", "--opset", "20"]
    assert main(["export", str(places / "model"), "--out", str(tmp_path / "b"), *options]) == 0
    output = capsys.readouterr().out
    assert "Not at onnxruntime's fastest: decoder: 1 ConvTranspose in plain order" in output
    assert (tmp_path / "b" / "prior.onnx").read_bytes() == b"mine"
    card = (tmp_path / "b" / "README.md").read_text()
    assert "opset 20" in card
    assert "data: pictures.npy, all" in card
    assert "num images: 80" in card
    assert str(places) not in card
    assert "images per second" in card
    expected = vl.evaluation.elbo(
        vl.load(places / "model"),
        vl.data.load(str(places / "pictures.npy"), "all"),
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
            ["--precision", "int8", "--data", "PICTURES", "--max-loss", "0"],
            "`precision` 'int8' must lose at most 0 nats",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_refusals_are_told_and_write_nothing(places, tmp_path, capsys, options, message, monkeypatch):
    monkeypatch.setattr(precision, "images_per_second", lambda sessions, inputs: dict.fromkeys(sessions, 1.0))
    options = [str(places / "pictures.npy") if option == "PICTURES" else option for option in options]
    assert main(["export", str(places / "model"), "--out", str(tmp_path / "b"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
