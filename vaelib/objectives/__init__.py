"""What is minimised: tensors in, a named tuple of nats out.

The functions know no model. The classes beside them are what a ``Trainer`` calls each step,
``objective(model, x, step=..., generator=...)``; they run the model by its public methods, so an objective
that needs several draws or passes is written the same way.

``BetaTcVae``, ``FactorVae``, ``DipVae``, ``InfoVae`` and ``Wae`` look at a batch as a whole; where a step is cut into
pieces or over processes, each piece is their batch.
"""

from vaelib.objectives.bound import ElboTerms, bound_loss, elbo_loss
from vaelib.objectives.dip import DipTerms, DipVae, dip_penalty
from vaelib.objectives.discrepancy import InfoTerms, InfoVae, Wae, WaeTerms, mmd
from vaelib.objectives.elbo import Elbo, ExtraTerms, Objective
from vaelib.objectives.factor import FactorTerms, FactorVae, permute_latents
from vaelib.objectives.importance import Iwae, IwaeTerms, iwae_bound
from vaelib.objectives.reconstruction import Reconstruction, ReconstructionTerms, reconstruction_loss
from vaelib.objectives.regularised import Rae, RaeTerms
from vaelib.objectives.total_correlation import BetaTcTerms, BetaTcVae, KlSplit, kl_split

__all__ = [
    "BetaTcTerms",
    "BetaTcVae",
    "DipTerms",
    "DipVae",
    "Elbo",
    "ElboTerms",
    "ExtraTerms",
    "FactorTerms",
    "FactorVae",
    "InfoTerms",
    "InfoVae",
    "Iwae",
    "IwaeTerms",
    "KlSplit",
    "Objective",
    "Rae",
    "RaeTerms",
    "Reconstruction",
    "ReconstructionTerms",
    "Wae",
    "WaeTerms",
    "bound_loss",
    "dip_penalty",
    "elbo_loss",
    "iwae_bound",
    "kl_split",
    "mmd",
    "permute_latents",
    "reconstruction_loss",
]
