"""The bundle as files: whole or not at all, the same bytes again, and held together by its manifest."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vaelib as vl
from vaelib.cli.common import check_bundle
from vaelib.export import manifest
from vaelib.runtime import OnnxVAE

OPTIONS = "hidden_channels=(4,), upsample='nearest'"  # those of the tiny bundle
BUILD = f"import torch, vaelib as vl; torch.manual_seed(0); vae = vl.conv_vae((1, 8, 8), 2, {OPTIONS})"


def build():
    names = {}
    exec(BUILD, names)
    return names["vae"]


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(("path", "error"), [("", ValueError), (None, TypeError)])
def test_what_is_no_path_is_not_opened(path, error):
    with pytest.raises(error, match="`directory` must be "):
        OnnxVAE(path)


def test_commands_know_a_bundle_whose_export_was_killed_after_it_was_done(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / ".vaelib-pending-manifest.json")
    check_bundle(tmp_path)
    assert OnnxVAE(tmp_path).latent_shape == (2,)


def test_the_manifest_knows_every_other_file(tiny_bundle):
    files = contents(tiny_bundle)
    manifest = json.loads(files.pop("manifest.json"))
    assert list(manifest) == ["schema", "version", "model", "graphs", "files"]
    assert (manifest["schema"], manifest["version"]) == ("3", vl.__version__)
    assert manifest["files"] == {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for name, content in files.items()
    }
    assert set(files) == {"encoder.onnx", "decoder.onnx", "vae.onnx", "README.md"}
    assert os.listdir(tiny_bundle.parent) == ["bundle"]


@pytest.mark.slow
def test_the_same_weights_give_the_same_bytes(tiny_bundle, tmp_path):
    vl.export_onnx(build().train(), tmp_path / "here")
    code = f"{BUILD}; vl.export_onnx(vae, {str(tmp_path / 'there')!r})"
    threads = str(1 if torch.get_num_threads() > 1 else 2)
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"OMP_NUM_THREADS": threads, "PYTHONHASHSEED": "7"}
    )
    assert contents(tmp_path / "here") == contents(tiny_bundle)
    assert contents(tmp_path / "there") == contents(tiny_bundle)


@pytest.mark.slow
def test_an_old_bundle_is_replaced_manifest_last(tmp_path, monkeypatch):
    vae = build()
    autoencoder = vl.AutoEncoder(vae.encoder, vae.decoder)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "prior.onnx").write_text("mine")
    vl.export_onnx(autoencoder, tmp_path)
    assert "prior" not in OnnxVAE(tmp_path).contract
    before = contents(tmp_path)
    moved = []
    replace = Path.replace

    def watched(path, target):
        moved.append(path.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    vl.export_onnx(vae, tmp_path)
    after = contents(tmp_path)
    assert moved[-1] == "manifest.json"
    bundle = {"README.md", "manifest.json", "encoder.onnx", "decoder.onnx", "vae.onnx"}
    assert after.keys() == {"notes.txt", "prior.onnx", *bundle}
    assert after["notes.txt"] == after["prior.onnx"] == b"mine"
    assert after["encoder.onnx"] != before["encoder.onnx"]


def test_files_of_ones_own_are_seen_before_the_work(tmp_path, tiny_bundle):
    for name in ("README.md", "encoder.onnx"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=r"did not write, .* holds README.md, encoder.onnx\. Move them away"):
        manifest.bundle_directory(tmp_path)
    with pytest.raises(FileExistsError, match=r"did not write, .* holds README.md, encoder.onnx\. Move them away"):
        vl.export_onnx(build(), tmp_path)
    assert contents(tmp_path) == {"README.md": b"mine", "encoder.onnx": b"mine"}
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bundle, copy)
    assert manifest.bundle_directory(copy) == copy
    (copy / "README.md").write_text("my own words")
    with pytest.raises(FileExistsError, match=r"changed since, .* holds README.md\. Move them away"):
        manifest.bundle_directory(copy)
