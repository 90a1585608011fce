"""Numbers about a trained model, in nats per image, each with its standard error."""

from vaelib.evaluation.bound import BoundEstimate, Estimate, elbo, per_image_terms
from vaelib.evaluation.latents import LatentReport, latents
from vaelib.evaluation.likelihood import LikelihoodEstimate, log_likelihood

__all__ = [
    "BoundEstimate",
    "Estimate",
    "LatentReport",
    "LikelihoodEstimate",
    "elbo",
    "latents",
    "log_likelihood",
    "per_image_terms",
]
