"""The multilayer perceptrons of Burda et al. (2016), section 5: two layers of 200 tanh units, 50 latents."""

from torch import nn

import vaelib as vl


def layers(inputs, outputs):
    return nn.Sequential(
        nn.Linear(inputs, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, outputs)
    )  # fmt: skip


@vl.register
class Encoder(nn.Module):
    """Images to (mu, logvar)."""

    image_shape, latent_shape = (1, 28, 28), (50,)

    def __init__(self):
        super().__init__()
        self.layers = layers(784, 100)

    def forward(self, x):
        mu, logvar = self.layers(x.flatten(1)).chunk(2, dim=1)
        return mu, vl.functional.soft_bound(logvar, 20.0)


@vl.register
class Decoder(nn.Module):
    """Latents to logits."""

    image_shape, latent_shape = (1, 28, 28), (50,)

    def __init__(self):
        super().__init__()
        self.layers = layers(50, 784)

    def forward(self, z):
        return self.layers(z).unflatten(1, (1, 28, 28))
