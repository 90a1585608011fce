"""Whether latents follow the factors of variation of the data, one each."""

from vaelib.evaluation.disentanglement.interventions import beta_vae_score, factor_vae_score
from vaelib.evaluation.disentanglement.predictors import DciScores, dci, sap
from vaelib.evaluation.disentanglement.report import (
    DisentanglementReport,
    disentanglement,
    mig,
    modularity,
    modularity_chance,
)

__all__ = [
    "DciScores",
    "DisentanglementReport",
    "beta_vae_score",
    "dci",
    "disentanglement",
    "factor_vae_score",
    "mig",
    "modularity",
    "modularity_chance",
    "sap",
]
