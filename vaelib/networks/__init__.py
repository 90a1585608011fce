"""The convolutional encoder and decoder, the residual ones of latent diffusion, and the blocks they are made of."""

from vaelib.networks.conv import ConvDecoder, ConvEncoder
from vaelib.networks.residual import ResidualDecoder, ResidualEncoder
from vaelib.networks.tiny import TinyDecoder, TinyEncoder

__all__ = ["ConvDecoder", "ConvEncoder", "ResidualDecoder", "ResidualEncoder", "TinyDecoder", "TinyEncoder"]
