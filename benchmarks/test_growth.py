"""Cost against work: how reconstruction and training grow with images, pixels, latents, channels, threads."""

from pathlib import Path

import numpy as np
import pytest

import vaelib as vl
from vaelib.benchmark.matrix import Matrix
from vaelib.benchmark.worker import Worker

PEERS = Path(__file__).parent / "peers.py"
IMAGES = {"reconstruct": 256, "train": 640}
"""Of a call, where they do not grow."""
GROWTHS = {
    "images": {"reconstruct": (1, 10, 100, 1_000, 10_000, 100_000), "train": (100, 1_000, 10_000, 100_000)},
    "pixels": {"reconstruct": (16, 32, 64, 128, 256, 512), "train": (16, 32, 64, 128)},
    "latent size": dict.fromkeys(IMAGES, (2, 8, 32, 128, 512)),
    "channels": dict.fromkeys(IMAGES, (8, 16, 32, 64)),
    "threads": dict.fromkeys(IMAGES, (1, 2)),
}
"""What grows, to its sizes: pixels to the sides of squares, channels to those of the first stage."""
MOST = 1.1
"""Exponent that images and pixels may have."""
MOST_PIXELS = 256 * 64**2
"""Of a call while pixels grow: larger images come in smaller batches, and the time of one is what grows."""


def of_size(what, size, operation):
    """A model, a number of images and a number of threads."""
    model = {"image_shape": (1, 32, 32)}
    images, threads = IMAGES[operation], 2
    if what == "images":
        images = size
    elif what == "pixels":
        model["image_shape"] = (1, size, size)
        images = max(1, min(images, MOST_PIXELS // size**2))
    elif what == "latent size":
        model["latent_dim"] = size
    elif what == "channels":
        model["hidden_channels"] = (size, 2 * size, 3 * size, 4 * size)
    else:
        threads = size
    return vl.conv_vae(**model), images, threads


def reconstruct(model, images, threads, directory):
    with Matrix(model, ("OnnxVAE",), threads=threads) as matrix:
        (row,) = matrix.cell("reconstruct", images, seconds=0.2, rounds=3, least_calls=5)
    assert row.correct
    return row.times


def train(model, images, threads, directory):
    vl.save(model, directory / "model")
    np.save(directory / "inputs.npy", np.random.default_rng(0).random((1, images, *model.image_shape), np.float32))
    with Worker("vl.Trainer", directory, threads, PEERS) as worker:
        worker.begin("train", directory / "inputs.npy")
        return worker.turn(seconds=0.2, least_calls=2)


@pytest.mark.slow
def test_a_small_training_is_timed(tmp_path):
    assert min(train(*of_size("images", 64, "train"), tmp_path)) > 0


def exponent(sizes, seconds):
    """Of the power law through the points, by least squares on both logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


@pytest.mark.parametrize("operation", IMAGES)
@pytest.mark.parametrize("what", GROWTHS)
def test_growth(benchmark, replay, tmp_path, what, operation):
    if benchmark.disabled:
        pytest.skip("measured with --benchmark-only")
    sizes = GROWTHS[what][operation]
    times, seconds = [], []
    for size in sizes:
        model, images, threads = of_size(what, size, operation)
        times = {"reconstruct": reconstruct, "train": train}[operation](model, images, threads, tmp_path)
        seconds.append(float(np.median(times)) / (images if what == "pixels" else 1))
    work = [size**2 for size in sizes] if what == "pixels" else list(sizes)
    half = len(work) // 2
    found = {"all": exponent(work, seconds), "upper half": exponent(work[-half - 1 :], seconds[-half - 1 :])}
    benchmark.group = f"growth in {what}"
    benchmark.extra_info.update(what=what, operation=operation, work=work, seconds=seconds, exponents=found)
    replay(times)
    if what in ("images", "pixels"):
        assert found["all"] <= MOST, found
