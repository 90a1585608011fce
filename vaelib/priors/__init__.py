"""p(z): where latents come from, and p(codes) of a quantised latent.

A prior is any ``nn.Module`` with the methods of :class:`Prior`, or over codes those of :class:`CodePrior`. ``kl`` is
given the draw ``z`` that the model made, so a prior without a closed form estimates it as log q(z|x) - log p(z).
"""

from vaelib.priors.autoregressive import AutoregressiveCodes
from vaelib.priors.codes import CodePrior, CodeTable, UniformCodes
from vaelib.priors.fitting import fit_prior
from vaelib.priors.flow import FlowPrior
from vaelib.priors.gaussians import ConditionalGaussian, LearnedGaussian, Prior, StandardNormal
from vaelib.priors.mixtures import MixtureOfGaussians, VampPrior

__all__ = [
    "AutoregressiveCodes",
    "CodePrior",
    "CodeTable",
    "ConditionalGaussian",
    "FlowPrior",
    "LearnedGaussian",
    "MixtureOfGaussians",
    "Prior",
    "StandardNormal",
    "UniformCodes",
    "VampPrior",
    "fit_prior",
]
