"""Numbers about a trained model, each with its standard error; those of single images in nats."""

from vaelib.evaluation.anomaly import AnomalyReport, AnomalyScores, anomaly, anomaly_scores, auroc
from vaelib.evaluation.bound import (
    BoundEstimate,
    Estimate,
    ReconstructionQuality,
    elbo,
    per_image_terms,
    reconstruction_quality,
    unit_of,
)
from vaelib.evaluation.codes import CodeUsage, code_usage, embed, encode
from vaelib.evaluation.comparison import Comparison, compare, marginal_log_likelihood
from vaelib.evaluation.disentanglement import DciScores, DisentanglementReport, dci, disentanglement, sap
from vaelib.evaluation.factors import beta_vae_score, factor_vae_score, mig, modularity, modularity_chance
from vaelib.evaluation.fidelity import Fidelity, PrecisionRecall, features_of, fid, fidelity, kid, precision_recall
from vaelib.evaluation.latents import LatentReport, latents
from vaelib.evaluation.likelihood import LikelihoodEstimate, log_likelihood

__all__ = [
    "AnomalyReport",
    "AnomalyScores",
    "BoundEstimate",
    "CodeUsage",
    "Comparison",
    "DciScores",
    "DisentanglementReport",
    "Estimate",
    "Fidelity",
    "LatentReport",
    "LikelihoodEstimate",
    "PrecisionRecall",
    "ReconstructionQuality",
    "anomaly",
    "anomaly_scores",
    "auroc",
    "beta_vae_score",
    "code_usage",
    "compare",
    "dci",
    "disentanglement",
    "elbo",
    "embed",
    "encode",
    "factor_vae_score",
    "features_of",
    "fid",
    "fidelity",
    "kid",
    "latents",
    "log_likelihood",
    "marginal_log_likelihood",
    "mig",
    "modularity",
    "modularity_chance",
    "per_image_terms",
    "precision_recall",
    "reconstruction_quality",
    "sap",
    "unit_of",
]
