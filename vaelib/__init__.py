"""vaelib: images in, a measured variational autoencoder, a verified ONNX model out.

Names load on first use, so ``import vaelib`` pulls in nothing, and ``vaelib.runtime`` works without torch. The stub
beside this file lists the same names for type checkers. Every per-image number is in nats, summed over pixels and
latents.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_ROOMS = (
    "conditions corruptions data errors evaluation export functional interop latents likelihoods networks objectives"
    " plots presets priors runtime schedules serialization training"
)
_NAMES = {
    "conditions": "Labels Vector",
    "corruptions": "GaussianNoise Masking SaltAndPepper",
    "export": "export_onnx",
    "functional": "bits_per_dim kl_standard_normal reparameterize",
    "interop": "from_diffusers to_diffusers",
    "latents": (
        "BinarySphericalQuantizer FiniteScalarQuantizer FlowPosterior GaussianLatent Latent LatentScaling PointLatent"
        " ResidualQuantizer VectorQuantizer"
    ),
    "likelihoods": "Bernoulli ContinuousBernoulli DiscretizedLogistic Gaussian Laplace Likelihood",
    "networks": "ConvDecoder ConvEncoder PatchDiscriminator ResidualDecoder ResidualEncoder",
    "objectives": (
        "Adversarial BetaTcLoss DipLoss Elbo FactorLoss InfoLoss Iwae RaeLoss Reconstruction WaeLoss dip_penalty"
        " elbo_loss iwae_bound kl_split mmd perceptual_distance reconstruction_loss"
    ),
    "presets": "autoencoder_kl conv_vae",
    "priors": (
        "AutoregressiveCodes CodePrior CodeTable ConditionalGaussian FlowPrior LearnedGaussian MixtureOfGaussians Prior"
        " StandardNormal UniformCodes VampPrior fit_prior"
    ),
    "schedules": "linear_warmup",
    "serialization": "load register save",
    "training": (
        "EMA Checkpoints CollapseWarning EarlyStopping EpochRecord Pictures Run Trackers Trainer TrainingInterrupted"
    ),
    "vae": "VAE AutoEncoder LatentOutput VAEOutput",
}
_HOME_OF = {name: room for room, names in _NAMES.items() for name in names.split()}
_OLD = {
    "AutoEncoderOutput": "vl.LatentOutput",
    "FlowVAEOutput": "vl.LatentOutput",
    "posteriors": "vl.latents",
    **{f"{name}Vae": f"vl.{name}Loss" for name in ("BetaTc", "Dip", "Factor", "Info")},
    **{name: f"vl.{name}Loss" for name in ("Rae", "Wae")},
    **{f"{name}Terms": f"vl.objectives.{name}Terms" for name in ("BetaTc", "Dip", "Elbo", "Factor", "Info")},
    **{f"{name}Terms": f"vl.objectives.{name}Terms" for name in ("Iwae", "Rae", "Reconstruction", "Wae")},
    "KlSplit": "vl.objectives.KlSplit",
    **{f"{name}Error": f"vl.errors.{name}Error" for name in ("Data", "Export", "MissingExtra", "ModelFile")},
    **{f"{name}Error": f"vl.errors.{name}Error" for name in ("Training", "Vaelib")},
    **{name: f"vl.schedules.{name}" for name in ("constant", "cosine", "cyclical", "one_cycle", "warmup_cosine")},
}
"""Names of version 0.1, and what is to be written for them now."""

__all__ = ["__version__", *_ROOMS.split(), *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name in _ROOMS.split():
        return importlib.import_module(f"vaelib.{name}")
    if name not in _HOME_OF:
        hint = f": write {_OLD[name]}" if name in _OLD else ""
        raise AttributeError(f"module 'vaelib' has no attribute {name!r}{hint}")
    value = getattr(importlib.import_module(f"vaelib.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
