"""What is minimised: tensors in, a named tuple of nats out.

The functions know no model. The classes beside them are what a ``Trainer`` calls each step,
``objective(model, x, step=..., generator=...)``; they run the model by its public methods, so an objective
that needs several draws or passes is written the same way.
"""

from vaelib.objectives.elbo import (
    Elbo,
    ElboTerms,
    Objective,
    Reconstruction,
    ReconstructionTerms,
    elbo_loss,
    reconstruction_loss,
)
from vaelib.objectives.importance import Iwae, IwaeTerms, iwae_bound

__all__ = [
    "Elbo",
    "ElboTerms",
    "Iwae",
    "IwaeTerms",
    "Objective",
    "Reconstruction",
    "ReconstructionTerms",
    "elbo_loss",
    "iwae_bound",
    "reconstruction_loss",
]
