"""The part between encoder and decoder: q(z|x), p(z) and the rate in nats."""

from vaelib.latents.base import Draw, Latent, PointLatent, repeated
from vaelib.latents.gaussian import FlowPosterior, GaussianLatent
from vaelib.latents.scalar import BinarySphericalQuantizer, FiniteScalarQuantizer
from vaelib.latents.scaling import LatentScaling
from vaelib.latents.vector import ResidualQuantizer, VectorQuantizer

__all__ = [
    "BinarySphericalQuantizer",
    "Draw",
    "FiniteScalarQuantizer",
    "FlowPosterior",
    "GaussianLatent",
    "Latent",
    "LatentScaling",
    "PointLatent",
    "ResidualQuantizer",
    "VectorQuantizer",
    "repeated",
]
