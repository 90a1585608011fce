"""The model card says what is in the bundle, and its code runs."""

import json
import re

import onnxruntime
import pytest

import vaelib as vl
from vaelib import _timing
from vaelib.export import proof

EVALUATION = {
    "elbo": {"value": -99.125, "standard_error": 0.25},
    "bits_per_dim": {"value": 0.5, "standard_error": None},
    "num_images": 10,
    "fid": 12.25,
    "data": "mnist, test",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("card")
    vae = vl.conv_vae((1, 8, 12), latent_shape=(2, 4, 6), hidden_channels=(8,))
    vl.export_onnx(vae, directory, dynamic_size=True, evaluation=EVALUATION, benchmark=True)
    return vae, directory, (directory / "README.md").read_text()


def blocks(card, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_what_is_known_and_measured_is_on_the_card(written):
    vae, directory, card = written
    assert "# VAE for images of 1 x 8 x 12" in card
    assert (
        "shape (B, 1, H, W), the batch of any length. H and W may be any multiples of 2, h and w are that much smaller."
        in card
    )
    assert (
        "| vae.onnx | image (B, 1, H, W), noise (B, 2, h, w) | reconstruction (B, 1, H, W), z (B, 2, h, w),"
        " distortion (B), kl (B), kl_groups (B, G) |"
    ) in card
    assert f"| parameters | {sum(p.numel() for p in vae.parameters()):,} |" in card
    assert "| elbo | -99.12 | 0.25 | nats per image |" in card
    assert "| bits_per_dim | 0.5000 | - | bits per dimension |" in card
    assert "num images: 10; fid: 12.25; data: mnist, test" in card
    assert json.loads(blocks(card, "json")[0]) == vl.serialization.describe(vae)
    assert re.search(r"^\| vae \| distortion \| 1e-0\d \| 1e-0[5-9] \|$", card, re.MULTILINE)
    assert f"onnxruntime {onnxruntime.__version__}; medians." in card
    for part in ("encoder", "decoder"):
        for batch in (1, 64):
            (figure,) = re.findall(rf"^\| {part} \| {batch} \| ([\d,]+) \|$", card, re.MULTILINE)
            assert int(figure.replace(",", "")) > 10
    metadata = onnxruntime.InferenceSession(directory / "vae.onnx").get_modelmeta().custom_metadata_map
    assert metadata["vaelib.weights_sha256"] in card


@pytest.mark.slow
def test_the_code_for_onnxruntime_alone_runs(written, monkeypatch):
    monkeypatch.chdir(written[1])
    names = {}
    exec(blocks(written[2], "python")[1], names)
    assert names["images"].shape == (16, 1, 8, 12)
    (script,) = blocks(written[2], "js")
    assert "new Float32Array(48), [1, 2, 4, 6]" in script


@pytest.mark.slow
def test_nothing_is_claimed_that_was_not_given(tmp_path):
    encoder, decoder = vl.ConvEncoder((1, 8, 8), 2, hidden_channels=(4,)), vl.ConvDecoder(2, (1, 8, 8))
    vl.export_onnx(vl.AutoEncoder(encoder, decoder), tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "# AutoEncoder for images" in card
    assert "Not given at export" in card
    assert "It has no prior" in card
    assert "Speed" not in card
    assert "model.sample" not in card


def test_speeds_are_measured_side_by_side():
    turns = []

    class Session:
        def __init__(self, name):
            self.name = name

        def run(self, outputs, inputs):
            turns.append(self.name)

    found = proof.images_per_second({"a": Session("a"), "b": Session("b")}, {"x": [0] * 8})
    assert found.keys() == {"a", "b"}
    assert turns[:6] == ["a", "b"] * 3
    assert len(turns) >= 16


def test_the_processor_is_named_where_there_is_no_cpuinfo(monkeypatch):
    monkeypatch.setattr(_timing, "Path", lambda path: type("Nowhere", (), {"is_file": lambda self: False})())
    assert _timing.hardware().endswith(f"onnxruntime {onnxruntime.__version__}")
