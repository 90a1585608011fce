"""The same network with a RealNVP prior trained jointly: 78.6 to 80.1 nats in papers."""

from networks import flow_vae
from protocol import options, reproduce

import vaelib as vl

arguments = options("flow_prior", epochs=100)
source = "Xu et al. (2019), ConvVAE with RealNVP prior: https://arxiv.org/abs/1905.13452"
reproduce("flow_prior", flow_vae(), vl.Elbo(), arguments, 78.61, source, learning_rate=2e-3)
