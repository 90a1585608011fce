"""The same network by the bound of 50 draws, its gradient doubly reparameterized: 84.78 nats."""

from networks import Decoder, Encoder
from protocol import options, reproduce

import vaelib as vl

arguments = options("iwae", epochs=60)
objective = vl.Iwae(50, gradient="dreg")
source = "Burda et al. (2016), table 1, IWAE, k = 50: https://arxiv.org/abs/1509.00519"
reproduce("iwae", vl.VAE(Encoder(), Decoder()), objective, arguments, 84.78, source, learning_rate=3e-3)
