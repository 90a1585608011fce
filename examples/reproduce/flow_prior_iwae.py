"""What `flow_prior.py` trained, trained on by the bound of 4 draws, which asks less of the posterior."""

from networks import flow_vae
from protocol import options, reproduce

import vaelib as vl

arguments = options("flow_prior_iwae", epochs=30)
vae = flow_vae() if arguments.quick else vl.load(arguments.runs / "flow_prior" / "last")
source = "Xu et al. (2019), ConvVAE with RealNVP prior: https://arxiv.org/abs/1905.13452"
objective = vl.Iwae(4, gradient="dreg")
reproduce("flow_prior_iwae", vae, objective, arguments, 78.61, source, learning_rate=5e-4)
