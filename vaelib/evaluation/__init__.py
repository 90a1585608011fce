"""Numbers about a trained model, each with its standard error; those of single images in nats."""

from vaelib.evaluation.anomaly import AnomalyReport, AnomalyScores, anomaly, anomaly_scores, auroc
from vaelib.evaluation.bound import BoundEstimate, Estimate, elbo, per_image_terms, unit_of
from vaelib.evaluation.codes import CodeUsage, code_usage, embed, encode
from vaelib.evaluation.comparison import Comparison, compare, marginal_log_likelihood
from vaelib.evaluation.disentanglement import DciScores, DisentanglementReport, dci, disentanglement, sap
from vaelib.evaluation.factors import beta_vae_score, factor_vae_score, mig, modularity, modularity_chance
from vaelib.evaluation.fidelity import Fidelity, PrecisionRecall, features_of, fid, fidelity, kid, precision_recall
from vaelib.evaluation.images import TextReconstruction, high_frequency_energy, text_reconstruction
from vaelib.evaluation.latents import LatentReport, latents
from vaelib.evaluation.likelihood import LikelihoodEstimate, log_likelihood
from vaelib.evaluation.reconstruction import ReconstructionQuality, reconstruction_quality, rfid
from vaelib.evaluation.statistics import LatentStatistics, activation_ranges, latent_statistics

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
    "LatentStatistics",
    "LikelihoodEstimate",
    "PrecisionRecall",
    "ReconstructionQuality",
    "TextReconstruction",
    "activation_ranges",
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
    "high_frequency_energy",
    "kid",
    "latent_statistics",
    "latents",
    "log_likelihood",
    "marginal_log_likelihood",
    "mig",
    "modularity",
    "modularity_chance",
    "per_image_terms",
    "precision_recall",
    "reconstruction_quality",
    "rfid",
    "sap",
    "text_reconstruction",
    "unit_of",
]
