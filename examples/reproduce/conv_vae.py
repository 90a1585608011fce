"""A convolutional VAE with the standard normal prior: about 81 to 83 nats in papers."""

from networks import DenseConvDecoder, DenseConvEncoder
from protocol import options, reproduce

import vaelib as vl

arguments = options("conv_vae", epochs=100)
vae = vl.VAE(DenseConvEncoder(), DenseConvDecoder())
source = "Salimans et al. (2015), table 2, plain: https://arxiv.org/abs/1410.6460"
reproduce("conv_vae", vae, vl.Elbo(), arguments, 83.20, source, learning_rate=2e-3)
