"""Against others, on the same work in one run: the article's code, pythae, diffusers' AutoencoderKL, torch's start."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from networks import NETWORKS

import vaelib as vl
from vaelib._timing import timed
from vaelib.benchmark.backend import OPERATIONS

PEERS = Path(__file__).parent / "peers.py"
BESIDE = ("the article's code", "pythae", "torch", "OnnxVAE")
BESIDE_DIFFUSERS = ("diffusers", "torch", "onnxruntime", "OnnxVAE")
TILED = (*BESIDE_DIFFUSERS, "diffusers tiled", "torch tiled", "OnnxVAE tiled")
FEW = 7
"""Calls of what takes up to seconds, one in each round."""


@pytest.mark.parametrize("peer", BESIDE)
@pytest.mark.parametrize("batch", [1, 64, 1024])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_article_and_pythae(benchmark, run_row, operation, batch, peer):
    """The same network with the same weights, so the same numbers."""
    if benchmark.disabled:
        pytest.skip("measured with --benchmark-only")
    run_row("article", operation, batch, peer, BESIDE, PEERS)


@pytest.mark.parametrize("peer", BESIDE_DIFFUSERS)
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_autoencoder_kl(benchmark, run_row, operation, batch, peer):
    """The first stage of latent diffusion in small, with the same random weights, so the same numbers."""
    if benchmark.disabled:
        pytest.skip("measured with --benchmark-only")
    run_row("first stage 256", operation, batch, peer, BESIDE_DIFFUSERS, PEERS, FEW)


@pytest.mark.parametrize("peer", TILED)
@pytest.mark.parametrize("operation", OPERATIONS[:2])
@pytest.mark.parametrize("network", ["first stage 512", "without norms 512"])
def test_tiled(benchmark, run_row, network, operation, peer):
    """Whole and in tiles of 256: blended by all where there are group norms, exact in vaelib where there are none.

    A plain onnxruntime session has no tiles.
    """
    if benchmark.disabled:
        pytest.skip("measured with --benchmark-only")
    run_row(network, operation, 1, peer, TILED, PEERS, FEW)


FIRST_ANSWER = {
    "torch": "import torch, vaelib as vl; model = vl.load(directory + '/model').eval()\n"
    "with torch.inference_mode(): model.likelihood.mean(model.decode(torch.zeros(1, *model.latent_shape)))",
    "OnnxVAE": "import numpy as np; from vaelib.runtime import OnnxVAE; model = OnnxVAE(directory + '/bundle')\n"
    "model.decode(np.zeros((1, *model.latent_shape), np.float32))",
}


def first_answer(backend, directory):
    """Seconds and MiB of a process from its start to one image."""
    code = (
        f"import sys; directory = sys.argv[1]\n{FIRST_ANSWER[backend]}\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    answers = []
    ((seconds,),) = timed(lambda: answers.append(subprocess.check_output([sys.executable, "-c", code, directory])))
    return seconds, float(answers[0]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc/self/status")
def test_first_answer(benchmark, tmp_path):
    vae = NETWORKS["tiny" if benchmark.disabled else "default"]()
    vl.save(vae, tmp_path / "model")
    vl.export_onnx(vae, tmp_path / "bundle")
    found = {backend: [] for backend in FIRST_ANSWER}
    benchmark.group = "time to first answer"
    benchmark.pedantic(
        lambda: found["OnnxVAE"].append(first_answer("OnnxVAE", str(tmp_path))),
        setup=lambda: found["torch"].append(first_answer("torch", str(tmp_path))),
        rounds=7,
        iterations=1,
    )
    medians = {backend: np.median(values, axis=0).tolist() for backend, values in found.items()}
    benchmark.extra_info["first_answer"] = {b: {"seconds": s, "peak_mib": m} for b, (s, m) in medians.items()}
    assert medians["OnnxVAE"][1] < medians["torch"][1]
