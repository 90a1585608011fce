"""examples/node, where there is node and a registry; VAELIB_REQUIRE_NODE makes their absence a failure."""

import json
import subprocess

import hand_made
import numpy as np
import pytest

import vaelib as vl
from vaelib.runtime import OnnxVAE


@pytest.fixture
def decoded(node_packages, tmp_path):
    """What the example prints, or its error."""

    def decode(bundle, numbers, *label):
        (tmp_path / "numbers.json").write_text(json.dumps(numbers.tolist()))
        command = ["node", "decode.mjs", bundle, tmp_path / "numbers.json", *label]
        result = subprocess.run(command, cwd=node_packages, capture_output=True, text=True, timeout=60)
        if result.returncode != 0:
            return result.stderr
        answer = json.loads(result.stdout)
        return np.reshape(answer["values"], answer["shape"])

    return decode


def test_javascript_decodes_what_python_decodes(decoded, tiny_bundle):
    model = OnnxVAE(tiny_bundle)
    z = np.random.default_rng(0).standard_normal((5, *model.latent_shape), dtype=np.float32)
    expected = model.decode(z)
    np.testing.assert_allclose(decoded(tiny_bundle, z), expected, atol=1e-5)
    assert np.ptp(expected) > 1e-2
    assert "must have shape (B,2), where a letter is free, got (5,1)" in decoded(tiny_bundle, z[:, :1])
    assert "The model takes no condition, got the label 1" in decoded(tiny_bundle, z, "1")


@pytest.mark.slow
def test_javascript_decodes_latent_maps_and_colours(decoded, tmp_path):
    vl.export_onnx(vl.conv_vae((3, 8, 8), latent_shape=(2, 4, 4), hidden_channels=(8,)), tmp_path / "bundle")
    z = np.random.default_rng(0).standard_normal((5, 2, 4, 4), dtype=np.float32)
    np.testing.assert_allclose(decoded(tmp_path / "bundle", z), OnnxVAE(tmp_path / "bundle").decode(z), atol=1e-5)


def test_javascript_is_given_a_class(decoded, tmp_path):
    bundle = hand_made.conditional(tmp_path / "bundle")
    z = np.random.default_rng(0).standard_normal((3, 2), dtype=np.float32)
    expected = OnnxVAE(bundle).decode(z, condition="owl")
    for label in ("2", "owl"):
        np.testing.assert_allclose(decoded(bundle, z, label), expected, atol=1e-5)
    for wrong in ("3", "cow"):
        assert f"LABEL must be in 0 .. 2 or among cat, dog, owl, got {wrong}" in decoded(bundle, z, wrong)
    assert "LABEL must be in 0 .. 2 or among cat, dog, owl, got undefined" in decoded(bundle, z)
    assert "the model's condition is a vector" in decoded(hand_made.of_a_vector(tmp_path / "vector"), z, "1")


def test_javascript_decodes_codes(decoded, tmp_path):
    bundle = hand_made.quantised(tmp_path / "bundle")
    codes = np.array([[0, 1, 2, 3], [4, 0, 4, 1]])
    np.testing.assert_allclose(decoded(bundle, codes), OnnxVAE(bundle).decode_codes(codes), atol=1e-6)
    assert "must have shape (B,1,2,2) or (B,4), where a letter is free, got (2,3)" in decoded(bundle, codes[:, :3])
