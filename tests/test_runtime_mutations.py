"""Bundles with flipped, cut, added and zeroed bytes: a ValueError each or a model that runs; no crash, no hang.

The mutations run in a process of their own, because what is feared is the end of the interpreter.
"""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

import vaelib as vl

WORKER = r"""
import hashlib, json, random, sys
from pathlib import Path

import numpy as np

from vaelib.runtime import OnnxVAE, plans

plans._SECONDS = 0.0
directory, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
originals = {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
images = np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32)


def answers():
    model = OnnxVAE(directory, threads=1)
    mu, logvar = model.encode(images)
    return mu, logvar, model.decode(mu), model.score(images), model.sample(2, seed=0)


def mutated(content, draw):
    kind = draw.choice(["flip", "cut", "insert", "zero", "swap", "repeat"])
    if kind == "cut":
        return content[: draw.randrange(len(content))]
    result = bytearray(content)
    start = draw.randrange(len(content))
    length = min(draw.choice([1, 2, 4, 16, 64]), len(content) - start)
    if kind == "flip":
        for _ in range(draw.choice([1, 1, 2, 8])):
            result[draw.randrange(len(result))] ^= 1 << draw.randrange(8)
    elif kind == "insert":
        result[start:start] = draw.randbytes(length)
    elif kind == "zero":
        result[start : start + length] = bytes(length)
    elif kind == "swap":
        result[start : start + length] = draw.choice([b"\xff" * length, draw.randbytes(length)])
    else:
        result[start:start] = result[start : start + length]
    return bytes(result)


def manifest_of(name, content):
    manifest = json.loads(originals["manifest.json"])
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return json.dumps(manifest).encode()


expected = answers()
for seed in range(first, last):
    draw = random.Random(seed)
    name = draw.choice([name for name in originals if name != "README.md"])
    content = mutated(originals[name], draw)
    matching = name != "manifest.json" and draw.random() < 0.7
    print(json.dumps({"seed": seed, "name": name, "matching": matching}), flush=True)
    (directory / name).write_bytes(content)
    if matching:
        (directory / "manifest.json").write_bytes(manifest_of(name, content))
    try:
        found = answers()
    except ValueError as error:
        outcome = "refused"
        assert str(error), "an error without a message"
    else:
        outcome = "loaded"
        assert [values.shape for values in found] == [values.shape for values in expected]
        assert matching or all(map(np.array_equal, found, expected)), "a mutation that nobody noticed"
    print(json.dumps(outcome), flush=True)
    for path in (name, "manifest.json"):
        (directory / path).write_bytes(originals[path])
"""


class RecurrentEncoder(nn.Module):
    """With operators that the runtime took in when it began to run all of the standard domain."""

    image_shape, latent_shape = (1, 8, 8), (2,)

    def __init__(self):
        super().__init__()
        self.lstm, self.linear = nn.LSTM(8, 3, batch_first=True, bidirectional=True), nn.Linear(6, 4)

    def forward(self, x):
        rows = torch.einsum("bij,bkj->bik", x.squeeze(1), (8 * x).floor().squeeze(1))
        patches = nn.functional.fold(nn.functional.unfold(x, 2, stride=2), (8, 8), 2, stride=2).squeeze(1)
        found = self.linear(self.lstm(rows + patches)[0]).topk(2, 1).values.mean(1)
        return found.chunk(2, 1)


@pytest.fixture
def bundle(request, tiny_bundle, tmp_path):
    if request.param == "tiny":
        return shutil.copytree(tiny_bundle, tmp_path / "bundle")
    decoder = vl.ConvDecoder(2, (1, 8, 8), hidden_channels=(4,))
    vl.export_onnx(vl.VAE(RecurrentEncoder(), decoder), tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.mark.parametrize(
    ("bundle", "first", "last"),
    [
        ("tiny", 0, 40),
        pytest.param("tiny", 40, 540, marks=pytest.mark.slow),
        pytest.param("recurrent", 0, 500, marks=pytest.mark.slow),
    ],
    ids=["a few", "500", "500 of other operators"],
    indirect=["bundle"],
)
def test_mutations(bundle, first, last):
    result = subprocess.run(
        [sys.executable, "-c", WORKER, bundle, str(first), str(last)], capture_output=True, text=True, timeout=170
    )
    lines = result.stdout.splitlines()
    assert result.returncode == 0, f"exit code {result.returncode} after {lines[-1:]}: {result.stderr[-2000:]}"
    outcomes = [json.loads(line) for line in lines[1::2]]
    assert len(outcomes) == last - first
    assert outcomes.count("refused") > 0.5 * len(outcomes)
    assert outcomes.count("loaded") > 0
