"""The networks of the rows: multilayer perceptrons of a paper, and convolutions with dense layers at the latents."""

import torch
from torch import nn

import vaelib as vl


def layers(inputs, outputs):
    return nn.Sequential(
        nn.Linear(inputs, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, outputs)
    )  # fmt: skip


@vl.register
class Encoder(nn.Module):
    """Images to (mu, logvar), as Burda et al. (2016), section 5: two layers of 200 tanh units, 50 latents."""

    image_shape, latent_shape = (1, 28, 28), (50,)

    def __init__(self):
        super().__init__()
        self.layers = layers(784, 100)

    def forward(self, x):
        mu, logvar = self.layers(x.flatten(1)).chunk(2, dim=1)
        return mu, vl.functional.soft_bound(logvar, 20.0)


@vl.register
class Decoder(nn.Module):
    """Latents to logits, its mirror."""

    image_shape, latent_shape = (1, 28, 28), (50,)

    def __init__(self):
        super().__init__()
        self.layers = layers(50, 784)

    def forward(self, z):
        return self.layers(z).unflatten(1, (1, 28, 28))


class Residual(nn.Module):
    """z + f(z) with two dense layers in f."""

    def __init__(self, features):
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, 2 * features), nn.SiLU(), nn.Linear(2 * features, features)
        )  # fmt: skip

    def forward(self, z):
        return z + self.body(z)


FEATURES = 128


def residuals():
    return nn.Sequential(Residual(FEATURES), Residual(FEATURES))


@vl.register
class DenseConvEncoder(nn.Module):
    """Convolutions, then residual dense layers, to (mu, logvar) of 40 latents."""

    image_shape, latent_shape = (1, 28, 28), (40,)

    def __init__(self, norm="batch"):
        super().__init__()
        self.norm = norm
        self.convolutions = vl.ConvEncoder((1, 28, 28), FEATURES // 2, hidden_channels=(32, 64, 128), norm=norm)
        self.dense = nn.Sequential(residuals(), nn.Linear(FEATURES, 80))

    def forward(self, x):
        mu, logvar = self.dense(torch.cat(self.convolutions(x), dim=1)).chunk(2, dim=1)
        return mu, vl.functional.soft_bound(logvar, 20.0)


@vl.register
class DenseConvDecoder(nn.Module):
    """Residual dense layers, which bend what the prior cannot, then convolutions, to logits."""

    image_shape, latent_shape = (1, 28, 28), (40,)

    def __init__(self):
        super().__init__()
        self.dense = nn.Sequential(nn.Linear(40, FEATURES), residuals())
        self.convolutions = vl.ConvDecoder(FEATURES, (1, 28, 28), hidden_channels=(128, 64, 32))

    def forward(self, z):
        return self.convolutions(self.dense(z))


def flow_vae():
    """The convolutional VAE with a RealNVP prior."""
    prior = vl.FlowPrior((40,), "realnvp", num_transforms=8, hidden_features=(128, 128))
    return vl.VAE(DenseConvEncoder(), DenseConvDecoder(), prior=prior)
