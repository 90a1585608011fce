import functools
import hashlib
import json
import os
from pathlib import Path

import hypothesis
import pytest
import torch
from torch.onnx._internal.exporter import _registration

import vaelib as vl

hypothesis.settings.register_profile("vaelib", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=600)
hypothesis.settings.load_profile("vaelib")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _translations_are_read_once():
    """torch reads the source of its 500 translations again at every export, two fifths of the time of a small one."""
    with pytest.MonkeyPatch.context() as patch:
        apis = _registration.onnxscript_apis
        patch.setattr(apis, "get_torchlib_ops", functools.cache(apis.get_torchlib_ops))
        yield


@pytest.fixture
def mnist_root():
    """VAELIB_DATA with MNIST in it; where VAELIB_REQUIRE_DATA is set, its absence is a failure."""
    root = os.environ.get("VAELIB_DATA")
    if root is not None and (Path(root) / "MNIST").is_dir():
        return Path(root)
    if os.environ.get("VAELIB_REQUIRE_DATA"):
        pytest.fail(f"VAELIB_REQUIRE_DATA is set, but there is no MNIST below VAELIB_DATA={root}")
    pytest.skip("no MNIST below VAELIB_DATA")


def _sign_bundle(directory):
    contents = {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.name != "manifest.json"}
    files = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    kind = "AutoEncoder" if "autoencoder.onnx" in files else "VAE"
    manifest = {"files": files, "kind": kind, "schema": "2", "version": vl.__version__}
    (directory / "manifest.json").write_text(json.dumps(manifest, sort_keys=True))


@pytest.fixture(scope="session")
def sign_bundle():
    """Writes the manifest that fits whatever the other files now hold."""
    return _sign_bundle
