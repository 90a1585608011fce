"""The convolutional encoder and decoder, and the blocks that both are made of."""

from vaelib.networks.decoder import ConvDecoder
from vaelib.networks.encoder import ConvEncoder

__all__ = ["ConvDecoder", "ConvEncoder"]
