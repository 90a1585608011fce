"""examples/node, where there is node and a registry; VAELIB_REQUIRE_NODE makes their absence a failure."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import vaelib as vl
from vaelib.runtime import OnnxVAE

EXAMPLE = Path(__file__).parent.parent / "examples" / "node"


def without_node(reason):
    if os.environ.get("VAELIB_REQUIRE_NODE"):
        pytest.fail(f"VAELIB_REQUIRE_NODE is set, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A copy of the example with its package beside it."""
    directory = tmp_path_factory.mktemp("node")
    shutil.copytree(EXAMPLE, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            without_node(f"there is no {program}")
    command = [
        "npm",
        "install",
        "--no-package-lock",
        "--no-audit",
        "--no-fund",
        "--fetch-retries=1",
        "--fetch-timeout=20000",
    ]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=170)
    if result.returncode != 0:
        without_node(f"npm cannot install onnxruntime-web: {result.stderr[-500:]}")
    return directory


@pytest.mark.parametrize("latent", [{"latent_dim": 3}, {"latent_shape": (2, 4, 4)}], ids=["vector", "map"])
def test_javascript_decodes_what_python_decodes(installed, tmp_path, latent):
    bundle = tmp_path / "bundle"
    vl.export_onnx(vl.conv_vae((3, 8, 8), **latent, hidden_channels=(8,)), bundle)
    model = OnnxVAE(bundle)
    z = np.random.default_rng(0).standard_normal((5, *model.latent_shape), dtype=np.float32)
    (tmp_path / "z.json").write_text(json.dumps(z.tolist()))
    command = ["node", "decode.mjs", bundle, tmp_path / "z.json"]
    result = subprocess.run(command, cwd=installed, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    expected = model.decode(z)
    assert answer["shape"] == list(expected.shape)
    np.testing.assert_allclose(np.reshape(answer["values"], expected.shape), expected, atol=1e-5)
    assert np.ptp(expected) > 1e-2
