"""The images, the model and the trainer that the options of ``vaelib train`` ask for."""

from __future__ import annotations

from typing import Any

from vaelib.cli.common import reading_options

_NUM_CODES = 512
_LEVELS = (8, 5, 5, 5)
_CODE_SIZE = 8
"""Channels of a code of a codebook: few, so that distances tell codes apart."""
_DEPTH = 4
"""Codebooks of a residual quantiser."""
_CODE_NETWORK: dict[str, Any] = {"hidden_channels": (32, 64), "residual_blocks": 1}
"""Two stages: codes stand for 4 x 4 pixels each."""
_REFUSED = {
    "conv": ("factor", "width"),
    "article": ("likelihood", "latent_dim", "latent", "condition", "factor", "width"),
    "autoencoder_kl": ("latent_dim", "condition"),
}
"""Options that say nothing to a preset."""


def check_latent(options: dict[str, Any]) -> None:
    """Raise ``ValueError`` for an option that could change nothing."""
    latent, preset = options["latent"], options["preset"]
    refused = _REFUSED[preset]
    named = " and ".join(f"`--{name.replace('_', '-')}`" for name in refused if options[name] is not None)
    if named:
        why = ", which is fixed" if preset == "article" else ""
        raise ValueError(f"{named} must not be given with `--preset {preset}`{why}.")
    if options["adversarial"] and options["patience"] is not None:
        raise ValueError("`--patience` must not be given with `--adversarial`: no bound says which epoch is best.")
    wanted = {"latent_dim": (None, "gaussian"), "num_codes": ("vq", "rvq", "bsq"), "levels": ("fsq",)}
    for name, latents in wanted.items():
        if options[name] is not None and latent not in latents:
            listed = " or ".join(f"`--latent {latent}`" for latent in latents if latent)
            raise ValueError(f"`--{name.replace('_', '-')}` is for {listed}, got {options[name]}.")
    if latent not in (None, "gaussian") and (options["beta"] != 1 or options["kl_warmup"]):
        name, value = ("beta", options["beta"]) if options["beta"] != 1 else ("kl-warmup", options["kl_warmup"])
        raise ValueError(f"`--{name}` is for `--latent gaussian`: the KL of uniform codes is constant, got {value}.")
    bits = options["num_codes"] or 2
    if latent == "bsq" and (bits & (bits - 1) or bits < 2):
        raise ValueError(f"`--num-codes` must be a power of 2 for `--latent bsq`, 2 for each bit, got {bits}.")


def images_of(options: dict[str, Any], split: str) -> Any:
    """One split of the data that the options of ``train`` name, in memory or as a stream."""
    from vaelib.data import load, stream

    chosen = {name: options[name] for name in ("image_size", "binarize", "condition")} | {
        "flip": options["flip"] and split == "train"
    }
    chosen |= reading_options(options)
    if options["stream"]:
        if {"channels_last", "images_key"} & set(chosen):
            raise ValueError("`--channels-last` and `--images-key` are for arrays, which `--stream` does not read.")
        return stream(options["data"], split, **chosen)
    return load(options["data"], split, download=options["download"], **chosen)


def make_model(options: dict[str, Any], images: Any) -> Any:
    """An untrained model for images, with their condition if they have one."""
    from vaelib import likelihoods, presets

    if options["preset"] == "article":
        return presets.article_vae()
    families: dict[str, Any] = {
        "bernoulli": likelihoods.Bernoulli,
        "continuous_bernoulli": likelihoods.ContinuousBernoulli,
        "gaussian": likelihoods.Gaussian,
        "laplace": likelihoods.Laplace,
        "discretized_logistic": likelihoods.DiscretizedLogistic,
    }
    latent = _make_latent(options, images.image_shape[1:])
    likelihood = None if options["likelihood"] is None else families[options["likelihood"]]()
    if options["preset"] == "autoencoder_kl":
        factor, (height, width) = options["factor"] or 8, images.image_shape[1:]
        if height % factor or width % factor:
            raise ValueError(
                f"`--factor` must divide the height and width of the images, got {factor} of {height} x {width}."
            )
        sizes = {name: options[name] for name in ("factor", "width") if options[name] is not None}
        return presets.autoencoder_kl(images.image_shape, latent=latent, likelihood=likelihood, **sizes)
    return presets.conv_vae(
        images.image_shape,
        options["latent_dim"],
        likelihood=likelihood,
        latent=latent,
        condition=_make_condition(options["condition"], images),
        **({} if latent is None else _CODE_NETWORK),
    )


def _make_condition(kind: str | None, images: Any) -> Any:
    from vaelib.conditions import Labels, Vector

    if kind is None:
        return None
    if kind == "factors":
        return Vector(images.condition.shape[1])
    return Labels(images.num_classes, names=images.class_names or None)


def _make_latent(options: dict[str, Any], image_size: tuple[int, int]) -> Any:
    """A quantiser, one code for each place of the map that the encoder makes; None for the Gaussian latent."""
    from vaelib import latents
    from vaelib._geometry import plan

    kind, num_codes = options["latent"], options["num_codes"] or _NUM_CODES
    if kind in (None, "gaussian"):
        return None
    code_map = plan(image_size, len(_CODE_NETWORK["hidden_channels"]), kernel_size=3, stride=2)[-1].small
    if options["preset"] == "autoencoder_kl":
        factor = options["factor"] or 8
        code_map = image_size[0] // factor, image_size[1] // factor
    if kind == "fsq":
        levels = options["levels"] or _LEVELS
        return latents.FiniteScalarQuantizer((len(levels), *code_map), levels)
    if kind == "bsq":
        return latents.BinarySphericalQuantizer((num_codes.bit_length() - 1, *code_map))
    if kind == "rvq":
        return latents.ResidualQuantizer((_CODE_SIZE, *code_map), num_codes, _DEPTH)
    return latents.VectorQuantizer((_CODE_SIZE, *code_map), num_codes)


def _make_objective(options: dict[str, Any], image_shape: tuple[int, int, int]) -> Any:
    """The bound; with ``--adversarial`` a perceptual term and a discriminator too, of up to 3 layers."""
    from vaelib.networks import PatchDiscriminator
    from vaelib.objectives import Adversarial, Elbo, perceptual_distance
    from vaelib.schedules import linear_warmup

    beta, steps = options["beta"], options["kl_warmup"]
    bound = Elbo(beta=linear_warmup(steps, beta) if steps else beta)
    if not options["adversarial"]:
        return bound
    if min(image_shape[1:]) < 11:
        height, width = image_shape[1:]
        raise ValueError(
            f"`--adversarial` needs images of at least 11 x 11 pixels, got {height} x {width}: --image-size."
        )
    layers = min(3, max(1, (min(image_shape[1:]) // 3).bit_length() - 1))
    discriminator = PatchDiscriminator(image_shape[0], num_layers=layers)
    return Adversarial(discriminator, elbo=bound, perceptual=perceptual_distance)


def make_trainer(options: dict[str, Any], image_shape: tuple[int, int, int]) -> Any:
    """What trains it."""
    import torch

    from vaelib.training import EMA, Checkpoints, EarlyStopping, Trackers, Trainer

    recipes: dict[str, dict[str, Any]] = {
        "article": {"learning_rate": 1e-3, "lr_schedule": "constant", "optimizer": torch.optim.Adam},
        "autoencoder_kl": {"learning_rate": 3e-4},
    }
    recipe = recipes.get(options["preset"], {})
    recipe |= {name: options[name] for name in ("learning_rate", "lr_schedule") if options[name] is not None}
    callbacks: list[Any] = [Checkpoints(options["checkpoint_every"], options["keep_last"])]
    callbacks += [EMA(options["ema"])] if options["ema"] is not None else []
    callbacks += [EarlyStopping(options["patience"])] if options["patience"] is not None else []
    callbacks += [Trackers(*options["tracker"])] if options["tracker"] else []
    names = ("batch_size", "accumulate", "clip_norm", "precision", "compile", "sync_batch_norm", "seed")
    return Trainer(
        _make_objective(options, image_shape),
        max_epochs=options["epochs"],
        output_dir=options["out"],
        callbacks=callbacks,
        **{name: options[name] for name in names},
        **recipe,
    )
