# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib[onnx]", "pillow"]
# ///
"""Serving without torch: an exported bundle with numpy and onnxruntime alone.

    python examples/deploy_onnx_python.py runs/first/bundle

Without a bundle, two commands in processes of their own train and export one; this process never imports torch, and
the machine that serves needs not have it. Prints what a bundle answers: codes, the ELBO of drawn images and of
noise in nats, and images per second. Writes `samples.png` and `between.png`.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from vaelib.runtime import OnnxVAE


def make_bundle(bundle, *recipe):
    """What is done once, where torch is."""
    vaelib = [sys.executable, "-m", "vaelib"]
    with tempfile.TemporaryDirectory() as run:
        subprocess.run([*vaelib, "train", "--data", "shapes", *recipe, "--out", run], check=True)
        subprocess.run([*vaelib, "export", run, "--out", bundle], check=True)
    return bundle


def save_image_grid(images, path):
    """Images ``(rows, columns, 1, H, W)`` in [0, 1] as one PNG."""
    rows, columns, _, height, width = images.shape
    canvas = images.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width)
    Image.fromarray((canvas * 255).round().astype(np.uint8)).save(path)


def mean_and_error(values):
    return f"{values.mean():.2f} +- {values.std(ddof=1) / len(values) ** 0.5:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", help="what `vaelib export` wrote; if not given, it is made")
    parser.add_argument("--out", type=Path, default=Path("runs/deploy_onnx_python"), help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="16x16 and one epoch instead of 32x32 and 8 (1 minute)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    size, epochs = ("16", "1") if arguments.quick else ("32", "8")
    bundle = arguments.bundle or make_bundle(arguments.out / "bundle", "--image-size", size, "--epochs", epochs)

    started = time.perf_counter()
    model = OnnxVAE(bundle)
    model.sample(1)
    print(f"{'first image':16}after {time.perf_counter() - started:.2f} s")
    model.tune()  # how batches are best cut here; else on first use
    images = model.sample(1_024, seed=0)
    started = time.perf_counter()
    mu, _ = model.encode(images)
    print(f"{'encoded':16}{len(mu) / (time.perf_counter() - started):,.0f} images/s, codes {mu.shape}")
    started = time.perf_counter()
    model.decode(mu)
    print(f"{'decoded':16}{len(mu) / (time.perf_counter() - started):,.0f} images/s")

    noise = np.random.default_rng(0).random(images.shape, dtype=np.float32)
    print(f"{'ELBO, drawn':16}{mean_and_error(model.score(images))} nats per image")
    print(f"{'ELBO, noise':16}{mean_and_error(model.score(noise))} nats per image")

    save_image_grid(images[:64].reshape(4, 16, *model.image_shape), arguments.out / "samples.png")
    save_image_grid(model.interpolate(mu[:4], mu[4:8], 16, spherical=True), arguments.out / "between.png")
    print(f"{'torch':16}{'imported' if 'torch' in sys.modules else 'never imported'}")


if __name__ == "__main__":
    main()
