"""The VAE of Burda et al. (2016), one stochastic layer, one draw: 86.76 nats."""

from networks import Decoder, Encoder
from protocol import options, reproduce

import vaelib as vl

arguments = options("mlp_vae", epochs=800)
source = "Burda et al. (2016), table 1, VAE, k = 1: https://arxiv.org/abs/1509.00519"
reproduce("mlp_vae", vl.VAE(Encoder(), Decoder()), vl.Elbo(), arguments, 86.76, source, learning_rate=3e-3)
