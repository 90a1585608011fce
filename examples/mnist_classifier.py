# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib"]
# ///
"""A small MNIST classifier whose features measure images offline: FID, KID, precision and recall without Inception.

    VAELIB_DATA=folder/with/MNIST python examples/mnist_classifier.py --out mnist_classifier.safetensors

Trains in about two minutes on one core, prints the accuracy on the 10,000 test images and the FID of half of them to
the other half, and saves the weights. Then, with this file beside your own:

    classifier = mnist_classifier.load("mnist_classifier.safetensors")
    evaluation.fidelity(classifier.features, test_images, vae.sample(10_000))

Distances under other weights are other numbers: keep the file with your results.
"""

import argparse
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import vaelib as vl
from vaelib import evaluation


class MnistClassifier(nn.Module):
    """Grey images ``(B, 1, H, W)`` in [0, 1] to ten logits; other sizes than 28x28 are resized."""

    def __init__(self):
        super().__init__()

        def block(inputs, outputs, stride):
            convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            return convolution, nn.BatchNorm2d(outputs), nn.ReLU()

        self.body = nn.Sequential(
            *block(1, 16, 1), *block(16, 32, 2), *block(32, 32, 1), *block(32, 64, 2), *block(64, 64, 1)
        )
        self.summary = nn.Sequential(nn.Flatten(), nn.Linear(64 * 7 * 7, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def features(self, x):
        """What the last layer sees, ``(B, 64)``."""
        if x.shape[-2:] != (28, 28):
            x = F.interpolate(x, (28, 28), mode="bilinear", antialias=True)
        return self.summary(self.body(x))

    def forward(self, x):
        return self.head(F.dropout(self.features(x), 0.3, self.training))


def load(path):
    """The classifier as it was saved, in eval mode."""
    model = MnistClassifier()
    model.load_state_dict(load_file(path))
    return model.eval()


def train(model, images, epochs, seed, batch_size=128):
    """One-cycle AdamW over shuffled batches; the same seed and machine give the same weights."""
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(images) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for indices in torch.randperm(len(images), generator=generator).split(batch_size):
            loss = F.cross_entropy(model(images.batch(indices)), images.labels[indices], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model, images):
    guesses = torch.cat([model(batch).argmax(1) for batch in images.batches(500)])
    return (guesses == images.labels).double().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("mnist_classifier.safetensors"))
    parser.add_argument("--quick", action="store_true", help="512 images, one epoch, to see that it runs")
    arguments = parser.parse_args()
    os.environ.setdefault("VAELIB_DATA", ".")
    data, test = (vl.data.load("mnist", split) for split in ("train", "test"))
    if arguments.quick:
        data, test = data.subset(slice(512)), test.subset(slice(512))

    torch.manual_seed(arguments.seed)
    started = time.perf_counter()
    model = train(MnistClassifier(), data, 1 if arguments.quick else arguments.epochs, arguments.seed)
    print(f"trained in {time.perf_counter() - started:.0f} s, test accuracy {accuracy(model, test):.2%}")
    save_file(model.state_dict(), arguments.out)
    halves = [test.subset(slice(start, None, 2)) for start in (0, 1)]
    print(f"FID between halves of the test images: {evaluation.fidelity(load(arguments.out).features, *halves).fid}")


if __name__ == "__main__":
    main()
