# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib[plots]"]
# ///
"""Images as points in a plane: a VAE with two latents beside the two principal components.

    VAELIB_DATA=folder/with/MNIST python examples/dimensionality_reduction.py

Both see the training images without their labels. Prints how many test images have the label that most of their ten
nearest training images have in the plane, and the ELBO. Writes `vae.png` and `pca.png`, the maps coloured by label,
and `manifold.png`, the images that a grid of latents decodes to.
"""

import argparse
from pathlib import Path

import torch

import vaelib as vl
from vaelib.evaluation import Estimate


def hits(train_points, train_labels, test_points, test_labels, neighbours=10):
    """Whether the label most frequent among the nearest training points is the right one."""
    nearest = torch.cdist(test_points, train_points).topk(neighbours, largest=False).indices
    return train_labels[nearest].mode(1).values == test_labels


def pca(train, test):
    """Coordinates along the two directions in which training images vary most."""
    train, test = (data.batch(slice(None)).flatten(1) for data in (train, test))
    mean = train.mean(0)
    directions = torch.pca_lowrank(train, q=10)[2][:, :2]
    return (train - mean) @ directions, (test - mean) @ directions


def grid(side, reach=2.2):
    """Latents on a square grid, the first from left to right and the second from bottom to top."""
    axis = torch.linspace(-reach, reach, side)
    return torch.cartesian_prod(axis.flip(0), axis).flip(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", help="with labels: mnist, or shapes, which needs no file")
    parser.add_argument("--epochs", type=int, default=6, help="6 of MNIST take about 3 minutes on one CPU core")
    parser.add_argument("--out", type=Path, default=Path("runs/dimensionality_reduction"), help="folder of the maps")
    parser.add_argument("--quick", action="store_true", help="5,000 images, to see that it runs")
    arguments = parser.parse_args()
    train, test = (vl.data.load(arguments.data, split, image_size=28) for split in ("train", "test"))
    if arguments.quick:
        train, test, arguments.epochs = train.subset(slice(5_000)), test.subset(slice(1_000)), 4

    torch.manual_seed(0)
    vae = vl.conv_vae(train.image_shape, latent_dim=2)
    vl.Trainer(max_epochs=arguments.epochs).fit(vae, train)
    vae.cpu()

    arguments.out.mkdir(parents=True, exist_ok=True)
    planes = {"pca": pca(train, test), "vae": [vl.evaluation.encode(vae, data)[0] for data in (train, test)]}
    print(f"{'plane':8}{'right label among 10 neighbours, %':>36}")
    for name, (train_points, test_points) in planes.items():
        right = hits(train_points, train.labels, test_points, test.labels)
        print(f"{name:8}{Estimate.of(100.0 * right)!s:>36}")
        vl.plots.save_embedding(test_points, test.labels, arguments.out / f"{name}.png")
    result = vl.evaluation.elbo(vae, test, generator=torch.Generator().manual_seed(0))
    print(f"ELBO of the VAE with 2 latents: {result.elbo} nats per test image")
    with torch.no_grad():
        images = vae.likelihood.mean(vae.decode(grid(20)))
    vl.plots.save_grid(images, arguments.out / "manifold.png", columns=20)


if __name__ == "__main__":
    main()
