"""The public doors: wrong types and values are errors that name the argument, the rule and the value."""

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vaelib as vl
from vaelib.errors import DataError, VaelibError

IMAGE, LATENT = (1, 8, 8), 2


def small(kind=vl.VAE, encoder=None, decoder=None, **parts):
    encoder = vl.ConvEncoder(IMAGE, LATENT, hidden_channels=(4,)) if encoder is None else encoder
    decoder = vl.ConvDecoder(LATENT, IMAGE, hidden_channels=(4,)) if decoder is None else decoder
    return kind(encoder, decoder, image_shape=IMAGE, latent_shape=(LATENT,), **parts)


class Returning(nn.Module):
    """A part that returns what its author took for right."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value


class Half(nn.Module):
    """A prior, or a likelihood, with some of the methods."""

    is_density = True

    def log_prob(self, z):
        return z.flatten(1).sum(1)

    def sample(self, *_, **__):
        return None


X, Z = torch.rand(2, *IMAGE), torch.zeros(2, LATENT)
CODE = torch.zeros(2, LATENT)
VAE, AUTOENCODER = small().eval(), small(vl.AutoEncoder).eval()
CONDITIONAL = vl.conv_vae(IMAGE, 2, hidden_channels=(2,), condition=vl.Labels(2)).eval()
TALL = vl.AutoEncoder(nn.Identity(), nn.Identity(), image_shape=(1, 12, 8), latent_shape=(1, 12, 8))
CODED = vl.conv_vae(IMAGE, hidden_channels=(2,), latent=vl.FiniteScalarQuantizer((1, 4, 4), (3,))).eval()
MODELS = [
    (lambda: VAE(None), TypeError, "`x` must be a torch.Tensor, got None"),
    (lambda: VAE([[0.5]]), TypeError, r"`x` must be a torch.Tensor, got \[\[0.5\]\]"),
    (lambda: VAE(X.numpy()), TypeError, r"`x` must be a torch.Tensor, got ndarray of shape \(2, 1, 8, 8\)"),
    (lambda: VAE.encode("x"), TypeError, "`x` must be a torch.Tensor, got 'x'"),
    (lambda: VAE.encode(X.to("meta")), ValueError, "`x` must be on the device of the model's weights, cpu, got meta"),
    (lambda: VAE.reconstruct(None), TypeError, "`x` must be a torch.Tensor, got None"),
    (lambda: VAE.reconstruct((X * 255).long()), TypeError, "`x` must be floating point.* Divide 8-bit images by 255"),
    (lambda: VAE.decode(3), TypeError, "`z` must be a torch.Tensor, got 3"),
    (lambda: VAE.decode(Z.long()), TypeError, "`z` must be floating point, got dtype torch.int64"),
    (lambda: VAE.decode(Z.double()), TypeError, "`z` must have the dtype of the model's weights, torch.float32"),
    (lambda: VAE.draw((Z, None)), TypeError, "`the encoder's logvar` must be a torch.Tensor, got None"),
    (lambda: VAE.draw((Z[0], Z)), ValueError, r"`the encoder's mu` must have shape \(B, 2\), got \(2,\)"),
    (lambda: VAE.draw((Z, Z), noise=Z[:1]), ValueError, r"`noise` must have shape \(2, 2\), got \(1, 2\)"),
    (lambda: VAE.draw((Z, Z), noise=3), TypeError, "`noise` must be a torch.Tensor, got 3"),
    (lambda: VAE(X, generator=7), TypeError, "`generator` must be a torch.Generator or None, got 7"),
    (lambda: VAE.sample(2, generator="seed"), TypeError, "`generator` must be a torch.Generator or None, got 'seed'"),
    (lambda: VAE.sample(2.0), TypeError, r"`num_samples` must be an int, got 2\.0"),
    (lambda: VAE.sample(np.bool_(True)), TypeError, "`num_samples` must be an int, got"),
    (lambda: VAE.sample(10**9), ValueError, "`num_samples` must be <= 67108864, got 1000000000"),
    (lambda: AUTOENCODER(None), TypeError, "`x` must be a torch.Tensor, got None"),
    (lambda: AUTOENCODER.decode([0.0]), TypeError, r"`z` must be a torch.Tensor, got \[0\.0\]"),
    (lambda: AUTOENCODER.reconstruct(X.numpy()), TypeError, "`x` must be a torch.Tensor, got ndarray"),
    (
        lambda: small(vl.VAE, Returning(CODE))(X),
        TypeError,
        r"`features` of the encoder must be two tensors, \(mu, logvar\), got Tensor of shape \(2, 2\)",
    ),
    (
        lambda: small(vl.VAE, Returning((CODE,) * 3))(X),
        TypeError,
        r"`features` of the encoder must be two .* got 3 values",
    ),
    (lambda: small(vl.VAE, Returning((CODE, 0.0)))(X), TypeError, "`the encoder's logvar` must be a torch.Tensor"),
    (
        lambda: small(vl.VAE, Returning((CODE[:1], CODE[:1])))(X),
        ValueError,
        r"`encoder` must return 2 rows for 2 images, got a tensor of shape \(1, 2\)",
    ),
    (
        lambda: small(vl.VAE, Returning((CODE, CODE.T[:, :1])))(X),
        ValueError,
        r"`the encoder's logvar` must have shape \(B, 2\), got \(2, 1\)",
    ),
    (
        lambda: small(decoder=Returning((X, X))).sample(2),
        TypeError,
        r"`the decoder's recon_params` must be a torch.Tensor, got \(tensor",
    ),
    (
        lambda: small(decoder=Returning(X[:, 0])).decode(Z),
        ValueError,
        r"`the decoder's recon_params` must have shape \(2, 1, 8, 8\), got \(2, 8, 8\)",
    ),
    (
        lambda: small(decoder=Returning(X), likelihood=vl.Gaussian("per_pixel")).decode(Z),
        ValueError,
        r"`the decoder's recon_params` must have shape \(2, 2, 8, 8\), got \(2, 1, 8, 8\)",
    ),
    (
        lambda: small(vl.AutoEncoder, nn.Identity()).encode(X),
        ValueError,
        r"`the encoder's code` must have shape \(B, 2\), got \(2, 1, 8, 8\)",
    ),
    (
        lambda: small(vl.AutoEncoder, Returning(None))(X),
        TypeError,
        "`features` must be tensors .* as the encoder returns them, got None",
    ),
    (
        lambda: small(vl.AutoEncoder, decoder=Returning(X.repeat(1, 2, 1, 1)))(X),
        ValueError,
        r"`the decoder's recon_params` must have shape \(2, 1, 8, 8\), got \(2, 2, 8, 8\)",
    ),
    (lambda: vl.ConvEncoder(IMAGE, 10**12), ValueError, r"A network may have 1\.1e\+09 weights, this would have"),
    (lambda: vl.ConvDecoder(10**12, IMAGE), ValueError, r"A network may have 1\.1e\+09 weights, this would have"),
    (lambda: vl.conv_vae((1, 10**5, 10**5)), ValueError, "make `image_shape`, `latent_dim`"),
    (lambda: vl.conv_vae(IMAGE, 2, hidden_channels=(10**6,) * 3), ValueError, "A network may have"),
    (lambda: vl.conv_vae(IMAGE, 2, residual_blocks=10**9), ValueError, "A network may have"),
    (lambda: vl.ConvDecoder(2, IMAGE, stride=9999, upsample="pixel_shuffle"), ValueError, "A network may have"),
    (lambda: vl.data.ImageDataset(X, names=["a"]), ValueError, "`names` must be 2, one an image, or none, got 1"),
    (lambda: vl.data.shapes(10**6, image_size=10**5), DataError, "1000000 images of 100000 x 100000 would take"),
    (
        lambda: vl.plots.save_grid(X[:0], "grid.png"),
        ValueError,
        "`images` must have between 1 and 67108864 pixels in all, got 0",
    ),
    (lambda: vl.plots.save_pairs(X[:0], X[:0], "grid.png"), ValueError, "`originals` must hold at least one image"),
    (
        lambda: vl.plots.save_curves({"a": 1.0}, "a.png"),
        TypeError,
        r"`curves\['a'\]` must be one number per epoch, got 1",
    ),
    (
        lambda: vl.Bernoulli().sample(torch.full_like(X, torch.nan)),
        ValueError,
        "`recon_params` must be finite, got values in",
    ),
    (lambda: vl.Gaussian("per_pixel").mean(X), ValueError, "`recon_params` must have 2 values a channel, got 1 in all"),
    (lambda: vl.LearnedGaussian((2,)).sample(3, (4,)), ValueError, r"`latent_shape` must be \(2,\), got \(4,\)"),
    (lambda: vl.evaluation.elbo(VAE, None), TypeError, "`data` must be images, an ImageDataset, or batches of images"),
    (lambda: small(prior=Half()), TypeError, "`prior` must have the methods `from_noise`, Half has not"),
    (lambda: small(prior=nn.ReLU()), TypeError, "`prior` must have the methods `log_prob`, `from_noise`, ReLU"),
    (lambda: small(likelihood=Half()), TypeError, "`likelihood` must have the methods `param_channels`, `mean`"),
    (lambda: small(likelihood=nn.ReLU()), TypeError, "`likelihood` must have the methods `param_channels`, `log_prob`"),
    (lambda: vl.GaussianLatent((2,), posterior=3), TypeError, "`posterior` must be an nn.Module object, got 3"),
    (lambda: small(vl.VAE, "conv"), TypeError, "`encoder` must be an nn.Module object, got 'conv'"),
    (
        lambda: vl.VAE(nn.ReLU(), nn.ReLU(), image_shape=(8, 8), latent_shape=(2,)),
        ValueError,
        r"`image_shape` must be \(C, H, W\), got \(8, 8\)",
    ),
    (
        lambda: vl.VAE(nn.ReLU(), nn.ReLU(), image_shape=IMAGE, latent_shape=(2, 2)),
        ValueError,
        r"`latent_shape` must be \(D,\) or \(C, h, w\), got \(2, 2\)",
    ),
    (lambda: vl.export_onnx(VAE, None), TypeError, "`directory` must be a str or a Path, got None"),
    (
        lambda: vl.VAE(nn.ReLU(), nn.ReLU(), image_shape=b"888"),
        TypeError,
        "`image_shape` must be a sequence of ints, got",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), MODELS)
def test_models_refuse(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_likelihood_says_whether_it_is_a_density():
    class Silent(vl.Bernoulli):
        is_density = None

    with pytest.raises(TypeError, match="`likelihood` must have an `is_density`, True or False, Silent has not"):
        small(likelihood=Silent())


# Every parameter of every public callable is given every odd value: either it is taken, and then it is of the annotated
# type, or the error is one of these, and names the argument.
REFUSALS = (ValueError, TypeError, FileNotFoundError, VaelibError)
FLAT, FACTORS = torch.rand(24, 3), torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4))


class ZeroRepr:
    """Shown by an error as it is."""

    def __repr__(self):
        raise RuntimeError("no repr")


def odd_values():
    meta = torch.zeros(2, *IMAGE, device="meta")
    yield from (None, ..., True, np.bool_(False), 0, -1, 10**20, 10**5000, 1.5, -0.5, float("nan"), float("inf"), 1j)
    yield from (Fraction(1, 3), Decimal("0.5"), np.float32(0.5), np.int64(2), np.float64("nan"), "", "odd", "\0")
    yield from (b"abc", bytearray(b"ab"), memoryview(b"ab"), [], (), [1, 2], ["a"], [None], {}, {1}, {"a": 1})
    yield from (object(), len, int)
    yield from (lambda: None, range(3), iter([]), Path("nowhere"), np.zeros(3), np.array(1.0), np.array(["a"], object))
    yield from (torch.zeros(0), torch.ones(2, 3), torch.ones(()), torch.ones(2, *IMAGE, dtype=torch.uint8), meta)
    yield from (torch.full((2, *IMAGE), torch.nan), torch.ones(2, *IMAGE).cfloat(), torch.eye(3).to_sparse())
    yield from (torch.ones(2, *IMAGE).double(), torch.ones(2, 3) > 0, nn.ReLU(), nn.ReLU, vl.VAE, ZeroRepr())


def factor_codes():
    return {"codes": FLAT, "factors": FACTORS, "generator": None, "num_resamples": 2}


OF_IMAGES = ("forward", "observe", "embed", "encode", "reconstruct")


def doors(place):
    """Name to a callable and arguments that it takes."""
    image, latent = {"image_shape": IMAGE}, {"latent_shape": (LATENT,)}
    recon = {"x": X, "recon_params": X}
    gaussian = {"mu": Z, "logvar": Z}
    bundle = place / "bundle"
    scores = ("mig", "modularity", "sap", "dci", "beta_vae_score", "factor_vae_score")
    data = {"model": VAE, "data": X}
    codes = {"latent_shape": (2, 2, 2)}
    found = {
        "VAE": (vl.VAE, {"encoder": VAE.encoder, "decoder": VAE.decoder}),
        "AutoEncoder": (vl.AutoEncoder, {"encoder": VAE.encoder, "decoder": VAE.decoder}),
        **{f"VAE.{name}": (getattr(VAE, name), {"x": X}) for name in OF_IMAGES},
        "VAE.decode": (VAE.decode, {"z": Z}),
        "LatentScaling": (vl.LatentScaling, {"shift": 0.0, "scale": 1.0}),
        "LatentScaling()": (vl.LatentScaling(0.0, 1.0), {"z": Z}),
        "VAE.draw": (VAE.draw, {"features": (Z, Z)}),
        "VAE.decode_mean": (VAE.decode_mean, {"z": Z}),
        "GaussianLatent": (vl.GaussianLatent, latent),
        "PointLatent": (vl.PointLatent, latent),
        "VAE.sample": (VAE.sample, {"num_samples": 2}),
        **{f"AutoEncoder.{name}": (getattr(AUTOENCODER, name), {"x": X}) for name in OF_IMAGES},
        "AutoEncoder.decode": (AUTOENCODER.decode, {"z": Z}),
        "conv_vae": (vl.conv_vae, {**image, "hidden_channels": (2,), "latent_dim": 2}),
        "article_vae": (vl.presets.article_vae, {}),
        "ConvEncoder": (vl.ConvEncoder, {**image, "latent_dim": 2, "hidden_channels": (2,)}),
        "ConvDecoder": (vl.ConvDecoder, {**image, "latent_dim": 2, "hidden_channels": (2,)}),
        "Labels": (vl.Labels, {"num_classes": 2}),
        "Vector": (vl.Vector, {"size": 2}),
        "given": (CONDITIONAL.given, {"condition": 1}),
        "VAE.sample, conditional": (CONDITIONAL.sample, {"num_samples": 2, "condition": [0, 1]}),
        "FlowPosterior": (vl.FlowPosterior, {**latent, "hidden_features": (2,), "num_transforms": 1}),
        "FlowPrior": (vl.FlowPrior, {**latent, "hidden_features": (2,), "num_transforms": 1}),
        "LearnedGaussian": (vl.LearnedGaussian, latent),
        "MixtureOfGaussians": (vl.MixtureOfGaussians, {**latent, "num_components": 2}),
        "VampPrior": (vl.VampPrior, {**image, "num_components": 2}),
        "fit_prior": (vl.fit_prior, {"prior": vl.LearnedGaussian((2,)), "z": Z, "num_steps": 1, "batch_size": 2}),
        **{name: (getattr(vl, name), {}) for name in ("Gaussian", "Laplace", "DiscretizedLogistic")},
        **{name: (getattr(vl, name), {}) for name in ("GaussianNoise", "SaltAndPepper", "Masking")},
        **{f"{name}()": (getattr(vl, name)(), {"x": X}) for name in ("GaussianNoise", "SaltAndPepper", "Masking")},
        "constant": (vl.schedules.constant, {"value": 1.0}),
        "cyclical": (vl.schedules.cyclical, {"period": 2}),
        **{
            name: (getattr(vl.schedules, name), {"steps": 3})
            for name in ("cosine", "linear_warmup", "one_cycle", "warmup_cosine")
        },
        "bits_per_dim": (vl.bits_per_dim, {"nats": FLAT[0], **image}),
        "bernoulli_log_prob": (vl.functional.bernoulli_log_prob, {"x": X, "logits": X}),
        "continuous_bernoulli_log_prob": (vl.functional.continuous_bernoulli_log_prob, {"x": X, "logits": X}),
        "discretized_logistic_log_prob": (
            vl.functional.discretized_logistic_log_prob,
            {"x": X, "mean": X, "log_scale": X},
        ),
        "gaussian_log_prob": (vl.functional.gaussian_log_prob, {"x": X, "mean": X, "log_sigma": X}),
        "laplace_log_prob": (vl.functional.laplace_log_prob, {"x": X, "mean": X, "log_scale": X}),
        "kl_standard_normal": (vl.kl_standard_normal, gaussian),
        "reparameterize": (vl.reparameterize, gaussian),
        "soft_bound": (vl.functional.soft_bound, {"raw": Z, "limit": 1.0}),
        "sum_per_image": (vl.functional.sum_per_image, {"values": X}),
        "elbo_loss": (vl.elbo_loss, {**recon, **gaussian, "z": Z}),
        "reconstruction_loss": (vl.reconstruction_loss, recon),
        "mmd": (vl.mmd, {"x": Z, "y": Z}),
        "iwae_bound": (vl.iwae_bound, {"log_weights": FLAT}),
        "kl_split": (vl.kl_split, {**gaussian, "z": Z, "num_images": 5}),
        "dip_penalty": (vl.dip_penalty, {**gaussian, "lambda_od": 1.0, "lambda_d": 1.0}),
        "permute_latents": (vl.objectives.permute_latents, {"z": Z}),
        "ImageDataset": (vl.data.ImageDataset, {"images": X}),
        "ImageDataset.batches": (lambda **given: list(vl.data.ImageDataset(X).batches(**given)), {"batch_size": 2}),
        "load": (vl.load, {"directory": place / "model"}),
        "save": (vl.save, {"model": VAE, "directory": place / "saved"}),
        "describe": (vl.serialization.describe, {"module": VAE}),
        "register": (vl.register, {"cls": Half}),
        "data.load": (vl.data.load, {"name_or_path": place / "images.npy", "split": "all"}),
        "data.splits": (vl.data.splits, {"name_or_path": place / "images.npy"}),
        "data.shapes": (vl.data.shapes, {"num_images": 2, "image_size": 8}),
        "data.stream": (vl.data.stream, {"path": place / "images", "image_size": 8}),
        "data.read_images": (vl.data.read_images, {"paths": [place / "images" / "0.png"]}),
        "save_grid": (vl.plots.save_grid, {"images": X, "path": place / "grid.png"}),
        "save_pairs": (vl.plots.save_pairs, {"originals": X, "reconstructions": X, "path": place / "pairs.png"}),
        "save_curves": (vl.plots.save_curves, {"curves": {"a": [1.0]}, "path": place / "curves.png"}),
        "save_embedding": (vl.plots.save_embedding, {"points": FLAT, "labels": None, "path": place / "plane.png"}),
        **{f"evaluation.{name}": (getattr(vl.evaluation, name), factor_codes()) for name in scores},
        **{
            f"evaluation.{name}": (getattr(vl.evaluation, name), {**data, **extra})
            for name, extra in {
                "elbo": {},
                "encode": {},
                "latents": {},
                "anomaly_scores": {},
                "log_likelihood": {"num_samples": 2, "progress": False},
                "reconstruction_quality": {},
            }.items()
        },
        **{
            f"evaluation.{name}": (getattr(vl.evaluation, name), data)
            for name in ("latent_statistics", "activation_ranges")
        },
        "evaluation.rfid": (
            vl.evaluation.rfid,
            {"extractor": nn.Flatten(), "model": VAE, "data": torch.rand(20, *IMAGE)},
        ),
        "evaluation.high_frequency_energy": (vl.evaluation.high_frequency_energy, {"images": X}),
        "evaluation.text_reconstruction": (
            vl.evaluation.text_reconstruction,
            {"model": TALL, "num_images": 2, "scale": 1, "batch_size": 2},
        ),
        "evaluation.code_usage": (vl.evaluation.code_usage, {"model": CODED, "data": X}),
        "evaluation.marginal_log_likelihood": (
            vl.evaluation.marginal_log_likelihood,
            {"model": CONDITIONAL, "data": X, "num_samples": 2, "progress": False},
        ),
        "evaluation.anomaly": (vl.evaluation.anomaly, {"model": VAE, "normal": X, "anomalous": X}),
        "evaluation.auroc": (vl.evaluation.auroc, {"normal": FLAT[0], "anomalous": FLAT[1]}),
        "evaluation.fid": (vl.evaluation.fid, {"real": FLAT, "generated": FLAT}),
        "evaluation.kid": (vl.evaluation.kid, {"real": FLAT, "generated": FLAT}),
        "evaluation.precision_recall": (vl.evaluation.precision_recall, {"real": FLAT, "generated": FLAT}),
        "evaluation.features_of": (vl.evaluation.features_of, {"extractor": nn.Flatten(), "data": X}),
        "evaluation.fidelity": (
            vl.evaluation.fidelity,
            {"extractor": nn.Flatten(), "real": torch.rand(20, *IMAGE), "generated": torch.rand(20, *IMAGE)},
        ),
        "evaluation.per_image_terms": (
            vl.evaluation.per_image_terms,
            {"model": VAE, "batches": [X], "objective": vl.Elbo()},
        ),
        "evaluation.disentanglement": (
            vl.evaluation.disentanglement,
            {"model": VAE, "data": torch.rand(24, *IMAGE), "factors": FACTORS, "num_resamples": 2},
        ),
        "BetaTcLoss": (vl.BetaTcLoss, {"num_images": 5}),
        "FactorLoss": (vl.FactorLoss, {"latent_dim": 2, "hidden_features": (4,)}),
        "Adversarial": (vl.Adversarial, {"discriminator": vl.PatchDiscriminator(1, width=2, num_layers=1)}),
        "PatchDiscriminator": (vl.PatchDiscriminator, {"channels": 1, "width": 2}),
        "PatchDiscriminator()": (vl.PatchDiscriminator(1, width=2, num_layers=1), {"images": X}),
        "perceptual_distance": (
            vl.perceptual_distance,
            {"x": torch.rand(2, 1, 11, 11), "images": torch.rand(2, 1, 11, 11)},
        ),
        "Iwae": (vl.Iwae, {"num_samples": 2}),
        "RaeLoss": (vl.RaeLoss, {"beta": 1.0, "weight": 1.0}),
        **{name: (getattr(vl, name), {}) for name in ("DipLoss", "Elbo", "InfoLoss", "WaeLoss", "Reconstruction")},
        **{name: (getattr(vl, name), {}) for name in ("EMA", "Checkpoints", "CollapseWarning", "EarlyStopping")},
        "Pictures": (vl.Pictures, {}),
        "Trainer": (vl.Trainer, {}),
        "Labels.check": (CONDITIONAL.condition.check, {"condition": 1}),
        "Vector.check": (vl.Vector(2).check, {"condition": (0.0, 1.0)}),
        "VectorQuantizer": (vl.VectorQuantizer, {**codes, "num_codes": 4}),
        "ResidualQuantizer": (vl.ResidualQuantizer, {**codes, "num_codes": 4, "depth": 2}),
        "FiniteScalarQuantizer": (vl.FiniteScalarQuantizer, {**codes, "levels": (3, 4)}),
        "BinarySphericalQuantizer": (vl.BinarySphericalQuantizer, codes),
        "UniformCodes": (vl.UniformCodes, {"num_codes": 4, "num_positions": 4}),
        "CodeTable": (vl.CodeTable, {"num_codes": 4, "num_positions": 4}),
        "AutoregressiveCodes": (vl.AutoregressiveCodes, {"num_codes": 4, "num_positions": 4, "width": 8}),
        "latent.embed": (vl.VectorQuantizer((2, 2, 2), 4).embed, {"codes": torch.zeros(1, 4).long()}),
        "export_onnx": (vl.export_onnx, {"model": VAE, "directory": bundle}),
        "OnnxVAE": (vl.runtime.OnnxVAE, {"directory": bundle}),
    }
    factor = vl.FactorLoss(2, hidden_features=(4,))
    adversarial = vl.Adversarial(vl.PatchDiscriminator(1, width=2, num_layers=1), start=0, ramp=0)
    for objective in (vl.Elbo(), vl.Iwae(2), vl.DipLoss(), vl.InfoLoss(), vl.BetaTcLoss(5), factor, adversarial):
        found[f"{type(objective).__name__}()"] = (objective, {"model": VAE, "x": X})
    for objective in (vl.WaeLoss(), vl.Reconstruction(), vl.RaeLoss(1.0, 1.0)):
        found[f"{type(objective).__name__}()"] = (objective, {"model": AUTOENCODER, "x": X})
    for likelihood in (vl.Bernoulli(), vl.ContinuousBernoulli(), vl.Gaussian(), vl.Laplace("learned")):
        name = type(likelihood).__name__
        found[f"{name}.log_prob"] = (likelihood.log_prob, recon)
        found[f"{name}.mean"] = (likelihood.mean, {"recon_params": X})
        found[f"{name}.sample"] = (likelihood.sample, {"recon_params": X})
    for prior in (vl.StandardNormal(), vl.LearnedGaussian((2,)), vl.MixtureOfGaussians((2,), 3)):
        name = type(prior).__name__
        found[f"{name}.log_prob"] = (prior.log_prob, {"z": Z})
        if hasattr(prior, "kl"):
            found[f"{name}.kl"] = (prior.kl, {**gaussian, "z": Z})
        found[f"{name}.sample"] = (prior.sample, {"num_samples": 2, **latent})
    return found


def fits(annotation, value):
    """Whether a value is of one of the types that an annotation names; of a type that is not known here, it is."""
    kinds = {
        "int": Integral,
        "float": Real,
        "str": str,
        "bool": bool,
        "None": type(None),
        "Tensor": torch.Tensor,
        "Path": Path,
        "torch.Generator": torch.Generator,
        "torch.device": torch.device,
        "Mapping": Mapping,
        "Sequence": Sequence,
        "tuple": Sequence,
        "Collection": Collection,
        "Iterable": Iterable,
        "ImageSet": vl.data.ImageDataset,
        "Batch": tuple,
        "Generator": torch.Generator,
        **dict.fromkeys(("nn.Module", "Likelihood", "Prior", "VAE", "AutoEncoder"), nn.Module),
    }
    if annotation == "Any":
        return True
    names = [part.strip().split("[")[0] for part in annotation.split("|")]
    if any(name not in kinds for name in names):
        return callable(value) or any(name in kinds and isinstance(value, kinds[name]) for name in names)
    if isinstance(value, bool | np.bool_):
        return "bool" in names
    if isinstance(value, str | bytes | bytearray | memoryview):
        return "str" in names and isinstance(value, str)
    return any(isinstance(value, kinds[name]) for name in names)


def fault(call, arguments, parameter, value):
    """None, or what is wrong with how a callable takes one odd value."""
    annotation = str(inspect.signature(call).parameters[parameter].annotation)
    fitting = fits(annotation, value)
    try:
        call(**{**arguments, parameter: value})
    except REFUSALS as error:
        message = str(error)
        if fitting and callable(value):
            return None  # as below: it was called
        named = (
            "`" in message or str(value) in message
            if fitting
            else f"`{parameter}" in message or f"`--{parameter}" in message
        )
        if not named:
            return f"unnamed {type(error).__name__}: {message[:200]}"
        return f"long: {len(message)}" if len(message) > 1000 else None
    except Exception as error:
        if fitting and callable(value):
            return None  # it was called, and that is its own error
        return f"raw {type(error).__name__}: {str(error)[:200]}"
    return None if fitting else f"taken, though not {annotation}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Files that doors open."""
    root = tmp_path_factory.mktemp("doors")
    pictures = np.random.default_rng(0).integers(0, 256, (10, 8, 8), np.uint8)
    np.save(root / "images.npy", pictures)
    (root / "images").mkdir()
    for index in range(4):
        Image.fromarray(pictures[index]).save(root / "images" / f"{index}.png")
    vl.save(VAE, root / "model")
    return root


def trials(place, values, skipped=()):
    """What is wrong where a door is given an odd value, and how many doors and values were tried."""
    faults, count, tried = [], 0, set()
    for name, (call, arguments) in doors(place).items():
        if name in skipped:
            continue
        call(**arguments)
        for parameter in inspect.signature(call).parameters:
            if parameter in ("args", "kwargs", "names", "given") or (parameter == "step" and name.endswith("()")):
                continue  # arguments without a name; and objectives without a schedule do not look at `step`
            tried.add((name, parameter))
            for value in values():
                count += 1
                if (found := fault(call, arguments, parameter, value)) is not None:
                    faults.append(f"{name}({parameter}={type(value).__name__}): {found}")
    return faults, count, tried


LONG = ("export_onnx", "OnnxVAE", "evaluation.dci", "evaluation.disentanglement", "save_curves", "save_embedding")


@pytest.mark.filterwarnings("ignore")
def test_every_door_names_the_argument_that_it_refuses(place, monkeypatch):
    monkeypatch.chdir(place)

    def values():
        yield from (None, "odd", True, -1, 1j, [], object(), np.zeros(3), nn.ReLU)

    faults, count, tried = trials(place, values, skipped=LONG)
    assert not faults, "\n".join(faults)
    assert len(tried) > 200
    assert count == 9 * len(tried)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_odd_value_at_every_door(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    faults, count, tried = trials(place, odd_values, skipped=("export_onnx", "OnnxVAE"))
    with capsys.disabled():
        print(f"{len(tried)} parameters of public callables were given {count} odd values")
    assert not faults, "\n".join(faults)
