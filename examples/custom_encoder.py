# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib[onnx]"]
# ///
"""A torchvision ResNet as the encoder: any module that maps images to `(mu, logvar)` will do.

    python examples/custom_encoder.py --depth 18

`@vl.register` is all that saving and loading need; training, evaluation and the verified ONNX export take the model
as they take any other. Prints the ELBO beside that of the default encoder with the same decoder. Writes the model and
its bundle.
"""

import argparse
from pathlib import Path

import torch
import torchvision
from torch import nn

import vaelib as vl


@vl.register
class ResNetEncoder(nn.Module):
    """ResNet-18 or -34 with two outputs a latent; grey images are shown to it as coloured ones."""

    def __init__(self, image_shape, latent_dim, depth=18):
        super().__init__()
        self.image_shape, self.latent_dim, self.depth = image_shape, latent_dim, depth
        self.latent_shape = (latent_dim,)
        self.resnet = getattr(torchvision.models, f"resnet{depth}")(num_classes=2 * latent_dim)

    def forward(self, x):
        mu, logvar = self.resnet(x.expand(-1, 3, -1, -1)).chunk(2, dim=1)
        return mu, vl.functional.soft_bound(logvar, 20.0)  # exp cannot overflow


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shapes", help="whatever vl.data.load takes, such as mnist or a folder")
    parser.add_argument("--depth", type=int, default=18, choices=(18, 34))
    parser.add_argument("--epochs", type=int, default=2, help="2 of shapes take about 7 minutes on one CPU core")
    parser.add_argument("--out", type=Path, default=Path("runs/custom_encoder"), help="folder of model and bundle")
    parser.add_argument("--quick", action="store_true", help="300 images once, to see that it runs")
    arguments = parser.parse_args()
    train, test = (vl.data.load(arguments.data, split, image_size=32) for split in ("train", "test"))
    if arguments.quick:
        train, test, arguments.epochs = train.subset(slice(300)), test.subset(slice(200)), 1

    shape, latent_dim = train.image_shape, 10
    torch.manual_seed(0)
    encoders = {
        "ConvEncoder": vl.ConvEncoder(shape, latent_dim),
        f"ResNet-{arguments.depth}": ResNetEncoder(shape, latent_dim, arguments.depth),
    }
    print(f"{'encoder':14}{'its weights':>14}{'ELBO, nats per test image':>28}")
    for name, encoder in encoders.items():
        vae = vl.VAE(encoder, vl.ConvDecoder(latent_dim, shape))
        vl.Trainer(max_epochs=arguments.epochs, learning_rate=2e-3).fit(vae, train)
        vae.cpu()
        result = vl.evaluation.elbo(vae, test, generator=torch.Generator().manual_seed(0))
        weights = sum(parameter.numel() for parameter in encoder.parameters())
        print(f"{name:14}{weights:>14,}{result.elbo!s:>28}")

    vl.save(vae, arguments.out / "model")
    parity = vl.export_onnx(vl.load(arguments.out / "model"), arguments.out / "bundle")
    worst = max(output.max_rel for outputs in parity.values() for output in outputs.values())
    print(f"exported to {arguments.out / 'bundle'}: at most {worst:.0e} of an output's scale from torch")


if __name__ == "__main__":
    main()
