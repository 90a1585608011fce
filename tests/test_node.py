"""examples/node, where there is node and a registry; VAELIB_REQUIRE_NODE makes their absence a failure."""

import json
import subprocess

import numpy as np
import pytest

import vaelib as vl
from vaelib.runtime import OnnxVAE

LATENTS = [
    pytest.param({"latent_dim": 3}, id="vector"),
    pytest.param({"latent_shape": (2, 4, 4)}, id="map", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("latent", LATENTS)
def test_javascript_decodes_what_python_decodes(node_packages, tmp_path, latent):
    bundle = tmp_path / "bundle"
    vl.export_onnx(vl.conv_vae((3, 8, 8), **latent, hidden_channels=(8,)), bundle)
    model = OnnxVAE(bundle)
    z = np.random.default_rng(0).standard_normal((5, *model.latent_shape), dtype=np.float32)
    (tmp_path / "z.json").write_text(json.dumps(z.tolist()))
    command = ["node", "decode.mjs", bundle, tmp_path / "z.json"]
    result = subprocess.run(command, cwd=node_packages, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    expected = model.decode(z)
    assert answer["shape"] == list(expected.shape)
    np.testing.assert_allclose(np.reshape(answer["values"], expected.shape), expected, atol=1e-5)
    assert np.ptp(expected) > 1e-2
