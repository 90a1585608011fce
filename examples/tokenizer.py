# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib"]
# ///
"""Images as 49 tokens of a codebook of 512, and a prior that writes such tokens: a VQ-VAE, measured in nats.

    VAELIB_DATA=folder/with/MNIST python examples/tokenizer.py

Prints how many codes of the codebook the test images use, and the bound of a test image with its two parts: the
distortion, -log p(x|codes), and the rate, -log p(codes), first with uniform codes, then with an autoregressive prior
fitted to the codes of the training images. Writes `samples.png`, images of codes that the fitted prior wrote.
"""

import argparse
from pathlib import Path

import torch

import vaelib as vl


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="dynamic_mnist", help="images of 28 x 28, such as dynamic_mnist or mnist")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--codes", type=int, default=512, help="size of the codebook")
    parser.add_argument("--steps", type=int, default=1000, help="of the fit of the prior")
    parser.add_argument("--out", type=Path, default=Path("runs/tokenizer"), help="folder of the model and its samples")
    parser.add_argument("--quick", action="store_true", help="4,000 images and 64 codes, to see that it runs")
    arguments = parser.parse_args()
    train, test = (vl.data.load(arguments.data, split, image_size=28) for split in ("train", "test"))
    if arguments.quick:
        train, test = train.subset(slice(4_000)), test.subset(slice(1_000))
        arguments.codes, arguments.steps = 64, 60

    torch.manual_seed(0)
    latent = vl.VectorQuantizer((8, 7, 7), arguments.codes)
    vae = vl.conv_vae(train.image_shape, latent=latent, hidden_channels=(32, 64), residual_blocks=1)
    vl.Trainer(max_epochs=arguments.epochs).fit(vae, train)
    vae.cpu().eval()

    used = vl.evaluation.code_usage(vae, test)
    print(f"{used.dead} of {used.num_codes} codes are never used, perplexity {used.perplexity:.0f}")
    print(f"{'nats per test image':22}{'distortion':>18}{'rate':>18}{'-ELBO':>18}")
    report("uniform codes", vae, test)

    codes = vl.evaluation.encode(vae, train)
    prior = vl.AutoregressiveCodes(latent.num_codes, latent.num_positions, width=64, num_blocks=2)
    vae.prior = vl.fit_prior(prior, codes, num_steps=arguments.steps)
    report("autoregressive prior", vae, test)

    vl.save(vae, arguments.out)
    vl.plots.save_grid(vae.sample(64, seed=0), arguments.out / "samples.png")


def report(name, vae, test):
    found = vl.evaluation.elbo(vae, test, generator=torch.Generator().manual_seed(0))
    negative = vl.evaluation.Estimate(-found.elbo.value, found.elbo.standard_error)
    print(f"{name:22}{found.reconstruction!s:>18}{found.kl!s:>18}{negative!s:>18}")


if __name__ == "__main__":
    main()
