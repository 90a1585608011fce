r"""Pure tensor maths of variational autoencoders: per image, in nats.

Shapes: ``B`` batch, ``C`` channels, ``H`` ``W`` image, ``D`` latent. Every log-probability is summed
over all axes but the first and has shape ``(B,)``; nothing here averages over pixels, knows a model,
or draws noise without being given the chance to use the caller's generator.
"""

from vaelib.functional.gaussian import (
    gaussian_log_prob,
    kl_standard_normal,
    reparameterize,
    soft_bound,
    sum_per_image,
)
from vaelib.functional.pixels import (
    at_levels,
    bernoulli_log_prob,
    bits_per_dim,
    check_levels,
    continuous_bernoulli_log_prob,
    discretized_logistic_log_prob,
    laplace_log_prob,
)

__all__ = [
    "at_levels",
    "bernoulli_log_prob",
    "bits_per_dim",
    "check_levels",
    "continuous_bernoulli_log_prob",
    "discretized_logistic_log_prob",
    "gaussian_log_prob",
    "kl_standard_normal",
    "laplace_log_prob",
    "reparameterize",
    "soft_bound",
    "sum_per_image",
]
