# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "torchvision"]
# ///
"""A whole variational autoencoder in plain PyTorch, without vaelib, every number in nats.

    VAELIB_DATA=folder/with/MNIST python examples/standalone_vae.py

Trains on dynamically binarised MNIST and prints the ELBO and log p(x), estimated by importance sampling, of test
images. The tests hold vaelib to this file: the same weights and draws must give the same nats to double precision.
"""

import argparse
import math
import os

import torch
import torch.nn.functional as F
from torch import nn
from torchvision import datasets


class VAE(nn.Module):
    """q(z|x) and p(x|z) for 28x28 images: a diagonal Gaussian, and a Bernoulli for each pixel."""

    def __init__(self, latent_dim=32):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, 2, 1), nn.SiLU(),  # 14x14
            nn.Conv2d(32, 64, 3, 2, 1), nn.SiLU(),  # 7x7
            nn.Flatten(), nn.Linear(64 * 7 * 7, 2 * latent_dim),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, 64 * 7 * 7), nn.Unflatten(1, (64, 7, 7)), nn.SiLU(),
            nn.ConvTranspose2d(64, 32, 3, 2, 1, 1), nn.SiLU(),  # 14x14
            nn.ConvTranspose2d(32, 1, 3, 2, 1, 1),  # 28x28
        )  # fmt: skip

    def encode(self, x):
        """Mean and log variance of q(z|x)."""
        return self.encoder(x).chunk(2, dim=1)

    def forward(self, x):
        """Logits of the pixels, and the posterior that z was drawn from."""
        mu, logvar = self.encode(x)
        z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
        return self.decoder(z), mu, logvar


def distortion(x, logits):
    """-log p(x|z) of each image: a sum over pixels."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))


def rate(mu, logvar):
    """KL(q(z|x) to N(0, I)) of each image, in closed form: a sum over latents."""
    return 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)


def negative_elbo(model, x):
    """Of each image."""
    logits, mu, logvar = model(x)
    return distortion(x, logits) + rate(mu, logvar)


def log_likelihood(model, x, num_samples):
    """Log p(x) of each image: log of the mean of p(x|z) p(z) / q(z|x) over z drawn from q(z|x)."""
    mu, logvar = (moment.repeat(num_samples, 1) for moment in model.encode(x))
    eps = torch.randn_like(mu)
    z = mu + torch.exp(logvar / 2) * eps
    log_prior_ratio = 0.5 * (eps**2 + logvar - z**2).sum(1)  # log p(z) - log q(z|x)
    log_weights = log_prior_ratio - distortion(x.repeat(num_samples, 1, 1, 1), model.decoder(z))
    return log_weights.view(num_samples, -1).logsumexp(0) - math.log(num_samples)


def mnist(root, train):
    """Grey values in [0, 1], which are the probabilities of a white pixel."""
    return datasets.MNIST(root, train=train).data[:, None] / 255


def mean_and_error(values):
    return f"{values.mean():.2f} +- {values.std() / len(values) ** 0.5:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5, help="5 take about 5 minutes on one CPU core")
    parser.add_argument("--samples", type=int, default=256, help="draws an image for log p(x)")
    parser.add_argument("--quick", action="store_true", help="2,000 images once, to see that it runs")
    arguments = parser.parse_args()
    root = os.environ.get("VAELIB_DATA", ".")
    train, test = mnist(root, train=True), mnist(root, train=False)
    if arguments.quick:
        train, test = train[:2_000], test[:200]
        arguments.epochs, arguments.samples = 1, 64

    torch.manual_seed(0)
    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(arguments.epochs):
        for probabilities in train[torch.randperm(len(train))].split(64):
            loss = negative_elbo(model, torch.bernoulli(probabilities)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    with torch.no_grad():
        batches = torch.bernoulli(test).split(100)
        elbo = -torch.cat([negative_elbo(model, x) for x in batches])
        exact = torch.cat([log_likelihood(model, one, arguments.samples) for x in batches[:10] for one in x.split(10)])
    print(f"{'ELBO':10}{mean_and_error(elbo)} nats per image, {len(elbo):,} test images")
    print(f"{'log p(x)':10}{mean_and_error(exact)} nats per image, {len(exact):,} test images")


if __name__ == "__main__":
    main()
