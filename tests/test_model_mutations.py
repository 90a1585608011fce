"""Damaged and hostile model directories and checkpoints: an error of vaelib's or the same numbers; no crash, no hang.

500 mutations of each file. Those whose checksum does not fit are cheap and run here. Those that somebody has made to
fit reach the constructors: they run in a process of their own, whose memory and time are measured.
"""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vaelib as vl
from vaelib.training.checkpoints import read_checkpoint, write_checkpoint

COUNT = 500
MODEL_FILES = ("config.json", "model.safetensors")
CHECKPOINT_FILES = ("state.json", "tensors.safetensors")


def mutated(content, generator):
    """Bytes flipped, cut, inserted, zeroed, swapped or doubled."""
    content = bytearray(content)
    first, second = sorted(generator.randrange(len(content)) for _ in range(2))
    kind = generator.randrange(6)
    if kind == 0:
        content[first] ^= 1 << generator.randrange(8)
    elif kind == 1:
        del content[first:]
    elif kind == 2:
        content[first:first] = generator.randbytes(generator.choice((1, 8, 100)))
    elif kind == 3:
        content[first:second] = bytes(second - first)
    elif kind == 4:
        content[first], content[second] = content[second], content[first]
    else:
        content[first:first] = content[first:second]
    return bytes(content)


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
        except vl.ModelFileError:
            counts["refused"] += 1
    print(f"{name}: {counts}")
    assert sum(counts.values()) == COUNT and counts["refused"] > 0.95 * COUNT


WORKER = r"""
import collections, hashlib, json, random, resource, shutil, sys, time
from pathlib import Path

import torch
import vaelib as vl
from vaelib import presets
from vaelib._weights import sealed
from vaelib.training.checkpoints import read_checkpoint, write_checkpoint

tests, directory, how, count = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
sys.path.insert(0, tests)
from test_model_mutations import mutated

shape = (1, 4, 4)
nets = lambda: (vl.ConvEncoder(shape, 2, hidden_channels=(2,)), vl.ConvDecoder(2, shape, hidden_channels=(2,)))
torch.manual_seed(0)
models = [
    vl.conv_vae(shape, 2, hidden_channels=(2, 3), dropout=0.1, corruption=vl.GaussianNoise(0.1)),
    vl.VAE(*nets(), prior=vl.VampPrior(shape, 3)),
    vl.VAE(*nets(), prior=vl.MixtureOfGaussians((2,), 3), likelihood=vl.ContinuousBernoulli()),
    vl.VAE(
        *nets(),
        latent=vl.GaussianLatent((2,), vl.FlowPrior((2,), hidden_features=(4,)), vl.FlowPosterior((2,), 1, (4,))),
    ),
    vl.AutoEncoder(*nets(), corruption=vl.Masking(0.5)),
    presets.article_vae(),
]
ODD = [
    None, True, False, -1, 0, 1, 2, 3, 7, 10**5, 10**9, 10**18, 10**400, 0.5, 1e308, float("inf"), float("nan"),
    "", "x", [], {}, [1], [0], [10**9], [1, 10**6, 10**6], [4096] * 40, [2] * 2000, [[1]], "1", {"class": "VAE"},
    {"class": "Bernoulli"}, {"class": 3}, {"class": "FlowPrior", "latent_shape": [10**4], "kind": "nsf",
    "num_transforms": 10**6, "hidden_features": [10**4]}, {"class": "VampPrior", "image_shape": [1, 4, 4],
    "num_components": 10**12}, "nearest", "pixel_shuffle", "group", "none", "silu",
]


def nodes(tree):
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from nodes(tree[key])


def odd_tree(tree, generator):
    places = list(nodes(tree))
    for _ in range(generator.choice((1, 1, 2, 3))):
        (one, key), (other, name) = generator.choice(places), generator.choice(places)
        kind = generator.randrange(6)
        try:
            if kind == 0 and isinstance(one, dict):
                del one[key]
            elif kind == 1 and isinstance(one, dict):
                one[generator.choice(("class", "stride", "more", ""))] = generator.choice(ODD)
            elif kind == 2:
                one[key] = json.loads(json.dumps(other[name]))
            else:
                one[key] = generator.choice(ODD)
        except (KeyError, IndexError, ValueError):  # the place went with a mutation before, or holds itself
            pass
    return tree


def write(content):
    (directory / "config.json").write_text(sealed(content))


def as_version_0_1():
    content = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({"format": "vaelib-model-1", "model": content["model"]}))


def state():
    return {"step": 1, "rate": 0.1, "list": [1, [2, "x"]], "model": {"a": torch.rand(3, 4), "b": torch.arange(5)}}


def attempt(generator, number):
    shutil.rmtree(directory, ignore_errors=True)
    if how == "checkpoint":
        write_checkpoint(directory, state())
        path = directory / "state.json"
        content = json.loads(path.read_text())
        content["format"], content["sha256"] = "vaelib-checkpoint-1", content["tensors_sha256"]
        if number % 2:
            path.write_text(json.dumps(odd_tree(content, generator)))
        else:
            path.write_bytes(mutated(json.dumps(content).encode(), generator))
        read_checkpoint(directory)
        return
    vl.save(models[number % len(models)], directory)
    content = json.loads((directory / "config.json").read_text())
    weights = directory / "model.safetensors"
    if how == "sealed config":
        del content["sha256"]
        write(content | {"model": odd_tree(content["model"], generator)})
    elif how == "config of version 0.1":
        as_version_0_1()
        (directory / "config.json").write_bytes(mutated((directory / "config.json").read_bytes(), generator))
    else:
        header = int.from_bytes(weights.read_bytes()[:8], "little") + 8
        data = weights.read_bytes()
        if number % 2:  # in the header
            data = mutated(data[:header], generator) + data[header:]
        else:
            data = mutated(data, generator)
        weights.write_bytes(data)
        if how == "weights of version 0.1":
            as_version_0_1()
        else:
            del content["sha256"]
            write(content | {"weights_sha256": hashlib.sha256(data).hexdigest()})
    model = vl.load(directory)
    x = torch.rand(1, *getattr(model, "image_shape", shape)).to(next(model.parameters()).dtype)
    if isinstance(model, vl.VAE | vl.AutoEncoder) and x.numel() < 10**4:
        assert model.reconstruct(x).shape == x.shape


generator, counts, longest = random.Random(how), collections.Counter(), 0.0
for number in range(count):
    started = time.perf_counter()
    try:
        attempt(generator, number)
        counts["loaded"] += 1
    except vl.ModelFileError as error:
        counts["refused"] += 1
        assert len(str(error)) < 5000, len(str(error))
    longest = max(longest, time.perf_counter() - started)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"loaded": counts["loaded"], "refused": counts["refused"], "seconds": longest, "peak_gib": peak}))
"""

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
    command = [sys.executable, "-c", WORKER, str(Path(__file__).parent), str(tmp_path / "files"), how, str(COUNT)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout)
    print(f"{how}: {found}")
    assert found["loaded"] + found["refused"] == COUNT and found["refused"] > COUNT / 10
    assert found["seconds"] < 20 and found["peak_gib"] < 2
