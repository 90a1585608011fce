"""Damaged and hostile model directories and checkpoints: an error of vaelib's or the same numbers; no crash, no hang.

500 mutations of each file. Those whose checksum does not fit are cheap and run here. Those that somebody has made to
fit reach the constructors: they run in a process of their own, whose memory and time are measured.
"""

import json
import random
import shutil

import pytest
import torch
from launching import PROGRAMS, Fork, environment_of
from mutating import mutated

import vaelib as vl
from vaelib.errors import ModelFileError
from vaelib.training.checkpoints import read_checkpoint, write_checkpoint

COUNT = 500
MODEL_FILES = ("config.json", "model.safetensors")
CHECKPOINT_FILES = ("state.json", "tensors.safetensors")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mutations") / "model"
    torch.manual_seed(0)
    vl.save(vl.conv_vae((1, 4, 4), 2, hidden_channels=(2,)), directory)
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mutations") / "step_0000000001"
    write_checkpoint(directory, {"step": 1, "rate": 0.1, "model": {"a": torch.rand(3, 4), "b": torch.arange(5)}})
    return directory


def read_model(directory):
    loaded = vl.load(directory)
    return str((vl.serialization.describe(loaded), loaded.state_dict()))


@pytest.mark.parametrize(
    ("kind", "name"), [("model", name) for name in MODEL_FILES] + [("checkpoint", name) for name in CHECKPOINT_FILES]
)
def test_every_damage_is_found(kind, name, request, tmp_path, monkeypatch):
    monkeypatch.setattr("vaelib.serialization.files._ATTEMPTS", 1)  # nobody else writes
    read = read_model if kind == "model" else lambda directory: str(read_checkpoint(directory))
    directory = tmp_path / "copy"
    shutil.copytree(request.getfixturevalue(kind), directory)
    original, expected = (directory / name).read_bytes(), read(directory)
    generator, counts = random.Random(name), {"refused": 0, "the same": 0}
    for _ in range(COUNT):
        content = mutated(original, generator)
        (directory / name).write_bytes(content)
        try:
            assert read(directory) == expected
            counts["the same"] += 1
            assert content == original or json.loads(content) == json.loads(original)
        except ModelFileError:
            counts["refused"] += 1
    print(f"{name}: {counts}")
    assert sum(counts.values()) == COUNT and counts["refused"] > 0.95 * COUNT


HOSTILE = (
    "sealed config",
    "config of version 0.1",
    "sealed weights",
    "weights of version 0.1",
    "checkpoint",
)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_files_cost_little(how, tmp_path):
    """Whoever makes checksums fit gets the error of a constructor, or a model; never another error."""
    words = [str(PROGRAMS / "hostile_models.py"), str(tmp_path / "files"), how, str(COUNT)]
    process = Fork(words, environment_of())
    out, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-3000:]
    found = json.loads(out)
    print(f"{how}: {found}")
    assert found["loaded"] + found["refused"] == COUNT and found["refused"] > COUNT / 10
    assert found["seconds"] < 20 and found["peak_gib"] < 2
