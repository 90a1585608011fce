"""The public names, for type checkers and for ``__init__.py``, which loads each on first use."""

from vaelib import (
    corruptions as corruptions,
)
from vaelib import (
    data as data,
)
from vaelib import (
    evaluation as evaluation,
)
from vaelib import (
    export as export,
)
from vaelib import (
    functional as functional,
)
from vaelib import (
    likelihoods as likelihoods,
)
from vaelib import (
    networks as networks,
)
from vaelib import (
    objectives as objectives,
)
from vaelib import (
    plots as plots,
)
from vaelib import (
    presets as presets,
)
from vaelib import (
    priors as priors,
)
from vaelib import (
    runtime as runtime,
)
from vaelib import (
    schedules as schedules,
)
from vaelib import (
    serialization as serialization,
)
from vaelib import (
    training as training,
)
from vaelib._checks import (
    DataError as DataError,
)
from vaelib._checks import (
    ExportError as ExportError,
)
from vaelib._checks import (
    MissingExtraError as MissingExtraError,
)
from vaelib._checks import (
    ModelFileError as ModelFileError,
)
from vaelib._checks import (
    TrainingError as TrainingError,
)
from vaelib._checks import (
    VaelibError as VaelibError,
)
from vaelib.corruptions import (
    GaussianNoise as GaussianNoise,
)
from vaelib.corruptions import (
    Masking as Masking,
)
from vaelib.corruptions import (
    SaltAndPepper as SaltAndPepper,
)
from vaelib.export import export_onnx as export_onnx
from vaelib.functional import (
    bits_per_dim as bits_per_dim,
)
from vaelib.functional import (
    kl_standard_normal as kl_standard_normal,
)
from vaelib.functional import (
    reparameterize as reparameterize,
)
from vaelib.likelihoods import (
    Bernoulli as Bernoulli,
)
from vaelib.likelihoods import (
    ContinuousBernoulli as ContinuousBernoulli,
)
from vaelib.likelihoods import (
    DiscretizedLogistic as DiscretizedLogistic,
)
from vaelib.likelihoods import (
    Gaussian as Gaussian,
)
from vaelib.likelihoods import (
    Laplace as Laplace,
)
from vaelib.likelihoods import (
    Likelihood as Likelihood,
)
from vaelib.networks import ConvDecoder as ConvDecoder
from vaelib.networks import ConvEncoder as ConvEncoder
from vaelib.objectives import (
    Elbo as Elbo,
)
from vaelib.objectives import (
    ElboTerms as ElboTerms,
)
from vaelib.objectives import (
    Reconstruction as Reconstruction,
)
from vaelib.objectives import (
    ReconstructionTerms as ReconstructionTerms,
)
from vaelib.objectives import (
    elbo_loss as elbo_loss,
)
from vaelib.objectives import (
    reconstruction_loss as reconstruction_loss,
)
from vaelib.presets import conv_vae as conv_vae
from vaelib.priors import Prior as Prior
from vaelib.priors import StandardNormal as StandardNormal
from vaelib.schedules import (
    constant as constant,
)
from vaelib.schedules import (
    cosine as cosine,
)
from vaelib.schedules import (
    cyclical as cyclical,
)
from vaelib.schedules import (
    linear_warmup as linear_warmup,
)
from vaelib.serialization import load as load
from vaelib.serialization import register as register
from vaelib.serialization import save as save
from vaelib.training import EpochRecord as EpochRecord
from vaelib.training import Trainer as Trainer
from vaelib.vae import (
    VAE as VAE,
)
from vaelib.vae import (
    AutoEncoder as AutoEncoder,
)
from vaelib.vae import (
    AutoEncoderOutput as AutoEncoderOutput,
)
from vaelib.vae import (
    VAEOutput as VAEOutput,
)

__version__: str
