# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib"]
# ///
"""Clean images from noisy ones: a VAE whose encoder trains on corrupted images, beside one that never saw noise.

    python examples/denoise.py --probability 0.3

The corruption is a part of the model, applied to the encoder's input while training; the decoder explains the clean
image. Prints how well a clean test image is told from its noisy copy: -log p(clean|z) in nats, with z the
posterior's mean for the noisy image, and the root mean square error of the pixels. Writes `denoised.png`.
"""

import argparse
from pathlib import Path

import torch

import vaelib as vl
from vaelib.evaluation import Estimate


@torch.no_grad()
def nats_of_clean(vae, clean, noisy):
    """-log p(clean|z) of each image."""
    recon_params = vae.decode(vae.encode(noisy)[0])
    return -vae.likelihood.log_prob(clean, recon_params)


def rmse(images, clean):
    return Estimate.of((images - clean).square().mean((1, 2, 3)).sqrt() * 255)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shapes", help="whatever vl.data.load takes, such as mnist or a folder")
    parser.add_argument("--probability", type=float, default=0.2, help="of a pixel to turn black or white")
    parser.add_argument("--epochs", type=int, default=8, help="8 of shapes take about a minute on one CPU core")
    parser.add_argument("--out", type=Path, default=Path("runs/denoise"), help="folder of the image")
    parser.add_argument("--quick", action="store_true", help="2,000 images twice, to see that it runs")
    arguments = parser.parse_args()
    train, test = (vl.data.load(arguments.data, split, image_size=32) for split in ("train", "test"))
    if arguments.quick:
        train, arguments.epochs = train.subset(slice(2_000)), 2

    noise = vl.SaltAndPepper(arguments.probability)
    clean = test.batch(slice(1_000))
    noisy = noise(clean, generator=torch.Generator().manual_seed(0))
    print(f"{'':22}{'-log p(clean|z), nats':>24}{'error, of 255 levels':>24}")
    print(f"{'noisy images':22}{'':>24}{rmse(noisy, clean)!s:>24}")
    for name, corruption in (("trained on clean ones", None), ("trained to denoise", noise)):
        torch.manual_seed(0)
        vae = vl.conv_vae(train.image_shape, latent_dim=16, corruption=corruption)
        vl.Trainer(max_epochs=arguments.epochs).fit(vae, train)
        vae.cpu()
        denoised = vae.reconstruct(noisy)
        nats = Estimate.of(nats_of_clean(vae, clean, noisy))
        print(f"{name:22}{nats!s:>24}{rmse(denoised, clean)!s:>24}")

    arguments.out.mkdir(parents=True, exist_ok=True)
    vl.plots.save_pairs(noisy[:20], denoised[:20], arguments.out / "denoised.png")


if __name__ == "__main__":
    main()
