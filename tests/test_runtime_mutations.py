"""Bundles with flipped, cut, added and zeroed bytes: a ValueError each or a model that runs; no crash, no hang.

The mutations run in a process of their own, because what is feared is the end of the interpreter.
"""

import json
import shutil
import subprocess
import sys

import hand_made
import pytest
import torch
from launching import PROGRAMS
from torch import nn

import vaelib as vl


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
def bundle(request, tmp_path):
    if request.param == "tiny":
        return shutil.copytree(request.getfixturevalue("tiny_bundle"), tmp_path / "bundle")
    if request.param != "recurrent":
        return getattr(hand_made, request.param)(tmp_path / "bundle")
    decoder = vl.ConvDecoder(2, (1, 8, 8), hidden_channels=(4,))
    vl.export_onnx(vl.VAE(RecurrentEncoder(), decoder), tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.mark.parametrize(
    ("bundle", "first", "last"),
    [
        ("tiny", 0, 40),
        ("conditional", 0, 100),
        ("quantised", 0, 100),
        pytest.param("tiny", 40, 540, marks=pytest.mark.slow),
        pytest.param("recurrent", 0, 500, marks=pytest.mark.slow),
        pytest.param("quantised", 100, 400, marks=pytest.mark.slow),
    ],
    indirect=["bundle"],
)
def test_mutations(bundle, first, last):
    result = subprocess.run(
        [sys.executable, PROGRAMS / "mutated_bundles.py", bundle, str(first), str(last)],
        capture_output=True,
        text=True,
        timeout=170,
    )
    lines = result.stdout.splitlines()
    assert result.returncode == 0, f"exit code {result.returncode} after {lines[-1:]}: {result.stderr[-2000:]}"
    outcomes = [json.loads(line) for line in lines[1::2]]
    assert len(outcomes) == last - first
    assert outcomes.count("refused") > 0.5 * len(outcomes)
    assert outcomes.count("loaded") > 0
