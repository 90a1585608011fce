"""The part between encoder and decoder: q(z|x), p(z) and the rate in nats."""

from vaelib.latents.base import Draw, Latent, repeated
from vaelib.latents.flow import FlowPosterior
from vaelib.latents.gaussian import GaussianLatent
from vaelib.latents.point import PointLatent
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
