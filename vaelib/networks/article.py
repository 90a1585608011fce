"""The networks of the 2021 tutorial for MNIST at 32x32, layer for layer."""

from __future__ import annotations

from torch import Tensor, nn

from vaelib.functional import soft_bound
from vaelib.networks.conv import LOGVAR_LIMIT

__all__ = ["ArticleDecoder", "ArticleEncoder"]


class ArticleEncoder(nn.Module):
    """``(B, 1, 32, 32)`` in [0, 1] to ``(mu, logvar)``, each ``(B, 20)``.

    Its flaw is kept: the activation and dropout behind the two heads bend the posterior's parameters.
    """

    image_shape = (1, 32, 32)
    latent_shape = (20,)

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_channels, out_channels, padding in ((1, 8, 1), (8, 16, 1), (16, 32, 1), (32, 64, 0)):
            layers += [
                nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=padding),
                nn.BatchNorm2d(out_channels),
                nn.LeakyReLU(),
            ]
        self.stages = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 128))
        self.mu = nn.Sequential(nn.Linear(128, 20), nn.LeakyReLU(), nn.Dropout(0.2))
        self.logvar = nn.Sequential(nn.Linear(128, 20), nn.LeakyReLU(), nn.Dropout(0.2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log variance."""
        features = self.stages(x)
        return self.mu(features), soft_bound(self.logvar(features), LOGVAR_LIMIT)


class ArticleDecoder(nn.Module):
    """``(B, 20)`` to logits ``(B, 1, 32, 32)``; the tutorial's sigmoid is the likelihood's here."""

    image_shape = (1, 32, 32)
    latent_shape = (20,)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(20, 64), nn.LeakyReLU(), nn.Dropout(0.2), nn.Unflatten(1, (64, 1, 1)))
        layers: list[nn.Module] = []
        for in_channels, out_channels, padding in ((64, 64, 0), (64, 32, 1), (32, 16, 1)):
            layers += [
                nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=padding),
                nn.BatchNorm2d(out_channels),
                nn.LeakyReLU(),
            ]
        self.stages = nn.Sequential(*layers, nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        """Logits."""
        return self.stages(self.stem(z))
