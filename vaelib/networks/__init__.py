"""The convolutional encoder and decoder, the residual ones of latent diffusion, and a discriminator of patches."""

from vaelib.networks.conv import ConvDecoder, ConvEncoder
from vaelib.networks.discriminator import PatchDiscriminator
from vaelib.networks.residual import ResidualDecoder, ResidualEncoder
from vaelib.networks.tiny import TinyDecoder, TinyEncoder

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "PatchDiscriminator",
    "ResidualDecoder",
    "ResidualEncoder",
    "TinyDecoder",
    "TinyEncoder",
]
