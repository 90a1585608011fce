# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "torchvision"]
# ///
"""The 2021 tutorial's system in plain PyTorch, without vaelib: what everything here is measured against.

    VAELIB_DATA=folder/with/MNIST python examples/standalone_article.py --epochs 1

Prints the negative ELBO in nats per test image and the seconds of each epoch. `article_mnist.py` sets vaelib beside it,
and the tests use its network as an oracle for `vaelib.presets.article_vae`.
"""

import argparse
import os
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms


class ArticleVAE(nn.Module):
    """The tutorial's network, sigmoid included: ``forward`` returns images, mu and logvar."""

    def __init__(self):
        super().__init__()

        def down(inputs, outputs, padding):
            return nn.Conv2d(inputs, outputs, 4, 2, padding), nn.BatchNorm2d(outputs), nn.LeakyReLU()

        def up(inputs, outputs, padding):
            return nn.ConvTranspose2d(inputs, outputs, 4, 2, padding), nn.BatchNorm2d(outputs), nn.LeakyReLU()

        self.encoder = nn.Sequential(*down(1, 8, 1), *down(8, 16, 1), *down(16, 32, 1), *down(32, 64, 0))
        self.features = nn.Linear(64, 128)
        self.mu = nn.Sequential(nn.Linear(128, 20), nn.LeakyReLU(), nn.Dropout(0.2))
        self.logvar = nn.Sequential(nn.Linear(128, 20), nn.LeakyReLU(), nn.Dropout(0.2))
        self.stem = nn.Sequential(nn.Linear(20, 64), nn.LeakyReLU(), nn.Dropout(0.2))
        self.decoder = nn.Sequential(
            *up(64, 64, 0), *up(64, 32, 1), *up(32, 16, 1), nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Sigmoid()
        )

    def encode(self, x):
        features = self.features(self.encoder(x).flatten(1))
        return self.mu(features), self.logvar(features)

    def decode(self, z):
        return self.decoder(self.stem(z)[:, :, None, None])

    def forward(self, x):
        mu, logvar = self.encode(x)
        z = mu + torch.randn_like(mu) * torch.exp(logvar / 2)
        return self.decode(z), mu, logvar


def loss_sum(x, images, mu, logvar):
    """Binary cross-entropy plus KL, summed over the batch, in nats."""
    reconstruction = F.binary_cross_entropy(images, x, reduction="sum")
    return reconstruction - 0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp())


def loaders(num_images=None):
    """MNIST at 32x32 as the tutorial reads it: one PIL image after the other."""
    resize = transforms.Compose([transforms.Resize((32, 32)), transforms.ToTensor()])
    sets = [datasets.MNIST(os.environ["VAELIB_DATA"], train=train, transform=resize) for train in (True, False)]
    if num_images:
        sets = [Subset(images, range(min(num_images, len(images)))) for images in sets]
    return DataLoader(sets[0], batch_size=64, shuffle=True), DataLoader(sets[1], batch_size=64)


def train_epoch(model, optimizer, loader):
    """One pass; seconds it took."""
    model.train()
    started = time.perf_counter()
    for x, _ in loader:
        optimizer.zero_grad()
        loss_sum(x, *model(x)).backward()
        optimizer.step()
    return time.perf_counter() - started


@torch.no_grad()
def test_loss(model, loader):
    """Negative ELBO in nats per image."""
    model.eval()
    return sum(loss_sum(x, *model(x)).item() for x, _ in loader) / len(loader.dataset)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1, help="each takes about half a minute on 2 CPU cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="256 images, to see that it runs")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    train, test = loaders(256 if arguments.quick else None)
    model = ArticleVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(1, arguments.epochs + 1):
        seconds = train_epoch(model, optimizer, train)
        print(f"epoch {epoch}: {test_loss(model, test):.2f} nats per test image, {seconds:.1f} s")


if __name__ == "__main__":
    main()
