"""Numbers about a trained model, in nats per image, each with its standard error."""

from vaelib.evaluation.bound import BoundEstimate, Estimate, elbo, per_image_terms

__all__ = ["BoundEstimate", "Estimate", "elbo", "per_image_terms"]
