"""The public names, for type checkers and for ``__init__.py``, which loads each on first use."""

from vaelib import (
    conditions as conditions,
    corruptions as corruptions,
    data as data,
    errors as errors,
    evaluation as evaluation,
    export as export,
    functional as functional,
    interop as interop,
    latents as latents,
    likelihoods as likelihoods,
    networks as networks,
    objectives as objectives,
    plots as plots,
    presets as presets,
    priors as priors,
    runtime as runtime,
    schedules as schedules,
    serialization as serialization,
    training as training,
)
from vaelib.conditions import Labels as Labels, Vector as Vector
from vaelib.corruptions import (
    GaussianNoise as GaussianNoise,
    Masking as Masking,
    SaltAndPepper as SaltAndPepper,
)
from vaelib.export import export_onnx as export_onnx
from vaelib.functional import (
    bits_per_dim as bits_per_dim,
    kl_standard_normal as kl_standard_normal,
    reparameterize as reparameterize,
)
from vaelib.interop import from_diffusers as from_diffusers, to_diffusers as to_diffusers
from vaelib.latents import (
    BinarySphericalQuantizer as BinarySphericalQuantizer,
    FiniteScalarQuantizer as FiniteScalarQuantizer,
    FlowPosterior as FlowPosterior,
    GaussianLatent as GaussianLatent,
    Latent as Latent,
    LatentScaling as LatentScaling,
    PointLatent as PointLatent,
    ResidualQuantizer as ResidualQuantizer,
    VectorQuantizer as VectorQuantizer,
)
from vaelib.likelihoods import (
    Bernoulli as Bernoulli,
    ContinuousBernoulli as ContinuousBernoulli,
    DiscretizedLogistic as DiscretizedLogistic,
    Gaussian as Gaussian,
    Laplace as Laplace,
    Likelihood as Likelihood,
)
from vaelib.networks import (
    ConvDecoder as ConvDecoder,
    ConvEncoder as ConvEncoder,
    PatchDiscriminator as PatchDiscriminator,
    ResidualDecoder as ResidualDecoder,
    ResidualEncoder as ResidualEncoder,
)
from vaelib.objectives import (
    Adversarial as Adversarial,
    BetaTcLoss as BetaTcLoss,
    DipLoss as DipLoss,
    Elbo as Elbo,
    FactorLoss as FactorLoss,
    InfoLoss as InfoLoss,
    Iwae as Iwae,
    RaeLoss as RaeLoss,
    Reconstruction as Reconstruction,
    WaeLoss as WaeLoss,
    dip_penalty as dip_penalty,
    elbo_loss as elbo_loss,
    iwae_bound as iwae_bound,
    kl_split as kl_split,
    mmd as mmd,
    perceptual_distance as perceptual_distance,
    reconstruction_loss as reconstruction_loss,
)
from vaelib.presets import autoencoder_kl as autoencoder_kl, conv_vae as conv_vae
from vaelib.priors import (
    AutoregressiveCodes as AutoregressiveCodes,
    CodePrior as CodePrior,
    CodeTable as CodeTable,
    ConditionalGaussian as ConditionalGaussian,
    FlowPrior as FlowPrior,
    LearnedGaussian as LearnedGaussian,
    MixtureOfGaussians as MixtureOfGaussians,
    Prior as Prior,
    StandardNormal as StandardNormal,
    UniformCodes as UniformCodes,
    VampPrior as VampPrior,
    fit_prior as fit_prior,
)
from vaelib.schedules import linear_warmup as linear_warmup
from vaelib.serialization import load as load, register as register, save as save
from vaelib.training import (
    EMA as EMA,
    Checkpoints as Checkpoints,
    CollapseWarning as CollapseWarning,
    EarlyStopping as EarlyStopping,
    EpochRecord as EpochRecord,
    Pictures as Pictures,
    Run as Run,
    Trackers as Trackers,
    Trainer as Trainer,
    TrainingInterrupted as TrainingInterrupted,
)
from vaelib.vae import (
    VAE as VAE,
    AutoEncoder as AutoEncoder,
    LatentOutput as LatentOutput,
    VAEOutput as VAEOutput,
)

__version__: str
