"""What is minimised: tensors in, a named tuple of nats out.

The functions know no model. The classes beside them are what a ``Trainer`` calls each step,
``objective(model, x, step=..., generator=...)``; they run the model by its public methods, so an objective
that needs several draws or passes is written the same way.

``BetaTcLoss``, ``FactorLoss``, ``DipLoss``, ``InfoLoss`` and ``WaeLoss`` look at a batch as a whole; where a step is
cut into pieces or over processes, each piece is their batch. So it is for the adaptive weight of ``Adversarial``, which
is the same on all processes.
"""

from typing import Any

from vaelib.objectives.adversarial import Adversarial, AdversarialTerms
from vaelib.objectives.bound import ElboTerms, bound_loss, elbo_loss
from vaelib.objectives.elbo import Elbo, ExtraTerms, Objective
from vaelib.objectives.importance import Iwae, IwaeTerms, iwae_bound
from vaelib.objectives.moments import DipLoss, DipTerms, InfoLoss, InfoTerms, WaeLoss, WaeTerms, dip_penalty, mmd
from vaelib.objectives.perceptual import perceptual_distance
from vaelib.objectives.reconstruction import RaeLoss, RaeTerms, Reconstruction, ReconstructionTerms, reconstruction_loss
from vaelib.objectives.total_correlation import (
    BetaTcLoss,
    BetaTcTerms,
    FactorLoss,
    FactorTerms,
    KlSplit,
    kl_split,
    permute_latents,
)

RENAMED = {
    f"{name}{old}": f"{name}Loss"
    for old, names in {"Vae": ("BetaTc", "Factor", "Dip", "Info"), "": ("Wae", "Rae")}.items()
    for name in names
}
"""Names of version 0.1, which read like models, and those of today."""

__all__ = [
    "Adversarial",
    "AdversarialTerms",
    "BetaTcLoss",
    "BetaTcTerms",
    "DipLoss",
    "DipTerms",
    "Elbo",
    "ElboTerms",
    "ExtraTerms",
    "FactorLoss",
    "FactorTerms",
    "InfoLoss",
    "InfoTerms",
    "Iwae",
    "IwaeTerms",
    "KlSplit",
    "Objective",
    "RaeLoss",
    "RaeTerms",
    "Reconstruction",
    "ReconstructionTerms",
    "WaeLoss",
    "WaeTerms",
    "bound_loss",
    "dip_penalty",
    "elbo_loss",
    "iwae_bound",
    "kl_split",
    "mmd",
    "perceptual_distance",
    "permute_latents",
    "reconstruction_loss",
]


def __getattr__(name: str) -> Any:
    hint = f": write {RENAMED[name]}" if name in RENAMED else ""
    raise AttributeError(f"module 'vaelib.objectives' has no attribute {name!r}{hint}")
