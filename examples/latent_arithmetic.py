# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib"]
# ///
"""Images with an attribute asked for, from a model that was trained without labels.

    python examples/latent_arithmetic.py

An attribute's vector is the mean latent of the images that have it, less the mean latent of those that have not.
Added to samples of the prior it moves their images towards the attribute. The built-in shapes have known factors,
so what comes out is measured, not judged: each line compares the same samples with and without the vector, beside
the difference between real images with and without the attribute. Writes `samples.png`: without, then with each.
"""

import argparse
from pathlib import Path

import torch

import vaelib as vl
from vaelib.evaluation import Estimate


def mass(images):
    """White pixels."""
    return images.sum((1, 2, 3))


def column(images):
    """The centre of the white pixels, from the left."""
    return (images.sum((1, 2)) @ torch.arange(images.shape[3]).float()) / mass(images)


def row(images):
    """The same from the top."""
    return column(images.mT)


ATTRIBUTES = {  # name: factor, what measures it
    "larger": ("scale", mass, "pixels of white"),
    "to the right": ("position_x", column, "columns"),
    "further down": ("position_y", row, "rows"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10, help="10 take less than a minute on one CPU core")
    parser.add_argument("--out", type=Path, default=Path("runs/latent_arithmetic"), help="folder of the image")
    parser.add_argument("--quick", action="store_true", help="3,000 images twice, to see that it runs")
    arguments = parser.parse_args()
    train, test = (vl.data.load("shapes", split, image_size=32) for split in ("train", "test"))
    if arguments.quick:
        train, arguments.epochs = train.subset(slice(3_000)), 2

    torch.manual_seed(0)
    vae = vl.conv_vae(train.image_shape, latent_dim=10)
    vl.Trainer(max_epochs=arguments.epochs).fit(vae, train)
    vae.cpu()
    generator = torch.Generator().manual_seed(0)
    print(f"ELBO {vl.evaluation.elbo(vae, test, generator=generator).elbo} nats per test image")

    mu, images = vl.evaluation.encode(vae, train)[0], train.batch(slice(None))
    z = vae.prior.sample(1_000, vae.latent_shape, generator=generator)
    decoded = {}
    with torch.no_grad():
        decoded["as drawn"] = vae.likelihood.mean(vae.decode(z))
        print(f"{'attribute':14}{'samples moved by':>18}{'real images differ by':>24}")
        for name, (factor, measure, unit) in ATTRIBUTES.items():
            values = train.factors[:, train.factor_names.index(factor)]
            has = values > values.median()
            decoded[name] = vae.likelihood.mean(vae.decode(z + mu[has].mean(0) - mu[~has].mean(0)))
            moved = Estimate.of(measure(decoded[name]) - measure(decoded["as drawn"]))
            real = measure(images[has]).mean() - measure(images[~has]).mean()
            print(f"{name:14}{moved!s:>18}{real:>24.2f}  {unit}")

    arguments.out.mkdir(parents=True, exist_ok=True)
    shown = torch.cat([images[:16] for images in decoded.values()])
    vl.plots.save_grid(shown, arguments.out / "samples.png", columns=16)


if __name__ == "__main__":
    main()
