# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib"]
# ///
"""Your own folder of images, of any sizes, to a VAE, in nats and in bits per dimension.

    python examples/own_images.py my/photos --image-size 64 --epochs 50

A random tenth of the images is kept for testing. The likelihood is one of 8-bit values, so the nats are those of
the files' own pixels: an image that costs less than 8 bits per dimension is compressed. Without a folder it paints
some JPEGs and takes those. Writes the model, `reconstructions.png` and `samples.png`.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import vaelib as vl


def paint(folder, count):
    """JPEGs of different sizes: a bright disc before a sky."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(count):
        width, height = random.integers(80, 160, 2)
        sky = np.linspace(random.integers(0, 128, 3), random.integers(64, 256, 3), height)
        painted = Image.fromarray(sky.astype(np.uint8)[:, None].repeat(width, 1))
        x, y, radius = random.uniform((20, 20, 10), (width - 20, height - 20, 30))
        colour = tuple(random.integers(128, 256, 3).tolist())
        ImageDraw.Draw(painted).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        painted.save(folder / f"{i:04}.jpg")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of images; if not given, painted ones")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10, help="10 of 2,000 images take about a minute on one CPU core")
    parser.add_argument("--out", type=Path, default=Path("runs/own_images"), help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="400 painted images if no folder is given, 8 epochs")
    arguments = parser.parse_args()
    folder = arguments.folder
    if folder is None:
        count = 400 if arguments.quick else 2_000
        folder = arguments.out / f"painted_{count}"
        paint(folder, count)
    if arguments.quick:
        arguments.epochs = 8

    train, test = (vl.data.load(folder, split, image_size=arguments.image_size) for split in ("train", "test"))
    torch.manual_seed(0)
    vae = vl.conv_vae(train.image_shape, latent_dim=32, likelihood=vl.DiscretizedLogistic())
    vl.Trainer(max_epochs=arguments.epochs, batch_size=32).fit(vae, train)
    vae.cpu()

    generator = torch.Generator().manual_seed(0)
    result = vl.evaluation.elbo(vae, test, generator=generator)
    print(f"{len(train):,} images to train, {len(test):,} to test, {train.image_shape}")
    print(f"{'ELBO':18}{result.elbo} nats per test image")
    print(f"{'  reconstruction':18}{result.reconstruction}")
    print(f"{'  KL':18}{result.kl}")
    print(f"{'-ELBO':18}{result.bits_per_dim} bits per dimension")

    originals = test.batch(slice(20))
    vl.save(vae, arguments.out)
    vl.plots.save_pairs(originals, vae.reconstruct(originals), arguments.out / "reconstructions.png")
    vl.plots.save_grid(vae.sample(64, generator=generator), arguments.out / "samples.png")


if __name__ == "__main__":
    main()
