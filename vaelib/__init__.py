"""vaelib: images in, a measured variational autoencoder, a verified ONNX model out.

Names load on first use, so ``import vaelib`` costs milliseconds and pulls in nothing. Every per-image number
is in nats, summed over pixels and latents.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vaelib import (
        corruptions,
        data,
        evaluation,
        export,
        functional,
        plots,
        presets,
        runtime,
        schedules,
        serialization,
        training,
    )
    from vaelib._checks import DataError, ExportError, MissingExtraError, ModelFileError, VaelibError
    from vaelib.corruptions import GaussianNoise, Masking, SaltAndPepper
    from vaelib.export import export_onnx
    from vaelib.functional import bits_per_dim, kl_standard_normal, reparameterize
    from vaelib.likelihoods import (
        Bernoulli,
        ContinuousBernoulli,
        DiscretizedLogistic,
        Gaussian,
        Laplace,
        Likelihood,
    )
    from vaelib.networks import ConvDecoder, ConvEncoder
    from vaelib.objectives import (
        Elbo,
        ElboTerms,
        Reconstruction,
        ReconstructionTerms,
        elbo_loss,
        reconstruction_loss,
    )
    from vaelib.presets import conv_vae
    from vaelib.priors import Prior, StandardNormal
    from vaelib.schedules import constant, cosine, cyclical, linear_warmup
    from vaelib.serialization import load, register, save
    from vaelib.training import EpochRecord, Trainer
    from vaelib.vae import VAE, AutoEncoder, AutoEncoderOutput, VAEOutput

_HOMES = {
    "_checks": ("DataError", "ExportError", "MissingExtraError", "ModelFileError", "VaelibError"),
    "corruptions": ("GaussianNoise", "Masking", "SaltAndPepper"),
    "export": ("export_onnx",),
    "functional": ("bits_per_dim", "kl_standard_normal", "reparameterize"),
    "likelihoods": (
        "Bernoulli",
        "ContinuousBernoulli",
        "DiscretizedLogistic",
        "Gaussian",
        "Laplace",
        "Likelihood",
    ),
    "networks": ("ConvDecoder", "ConvEncoder"),
    "objectives": (
        "Elbo",
        "ElboTerms",
        "Reconstruction",
        "ReconstructionTerms",
        "elbo_loss",
        "reconstruction_loss",
    ),
    "presets": ("conv_vae",),
    "priors": ("Prior", "StandardNormal"),
    "schedules": ("constant", "cosine", "cyclical", "linear_warmup"),
    "serialization": ("load", "register", "save"),
    "training": ("EpochRecord", "Trainer"),
    "vae": ("VAE", "AutoEncoder", "AutoEncoderOutput", "VAEOutput"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_ROOMS = (
    "corruptions",
    "data",
    "evaluation",
    "export",
    "functional",
    "plots",
    "presets",
    "runtime",
    "schedules",
    "serialization",
    "training",
)

__all__ = ["__version__", *_HOME_OF, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f"vaelib.{_HOME_OF[name]}"), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"vaelib.{name}")
    else:
        raise AttributeError(f"module 'vaelib' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
