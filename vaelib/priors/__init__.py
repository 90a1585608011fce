"""p(z): where latents come from.

A prior is any ``nn.Module`` with the three methods of :class:`Prior`. ``kl`` is given the draw ``z`` that
the model made, so a prior without a closed form estimates it as log q(z|x) - log p(z).
"""

from vaelib.priors.base import Prior, StandardNormal
from vaelib.priors.fitting import fit_prior
from vaelib.priors.flow import FlowPrior
from vaelib.priors.gaussians import LearnedGaussian, MixtureOfGaussians
from vaelib.priors.vamp import VampPrior

__all__ = ["FlowPrior", "LearnedGaussian", "MixtureOfGaussians", "Prior", "StandardNormal", "VampPrior", "fit_prior"]
