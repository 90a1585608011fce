"""``config.json`` of diffusers' autoencoders: what its keys mean in vaelib, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from vaelib._checks import ModelFileError, check_bool, check_choice, check_float, check_int, check_int_tuple, check_type
from vaelib._weights import read_object
from vaelib.latents import GaussianLatent, LatentScaling, PointLatent, VectorQuantizer
from vaelib.likelihoods import Laplace
from vaelib.networks import ResidualDecoder, ResidualEncoder, TinyDecoder, TinyEncoder
from vaelib.networks.residual_blocks import ACTIVATIONS
from vaelib.vae import VAE

__all__ = ["CONFIG_NAME", "DEFAULTS", "DOWN", "UP", "factor_of", "model_of", "read_config", "size_of"]

CONFIG_NAME = "config.json"
_MAX_CONFIG_BYTES = 2**20
DOWN = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
UP = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
_MOST_LEVELS = 16
_DEFAULT_SIZE = 512  # of AutoencoderTiny, whose config has none
_SCALE = 0.5  # a deviation of 1 in [-1, 1], which the models were trained with

_RESIDUAL: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "mid_block_add_attention": True,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {
        **_RESIDUAL,
        "latent_channels": 4,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
        "force_upcast": True,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    },
    "VQModel": {
        **_RESIDUAL,
        "latent_channels": 3,
        "num_vq_embeddings": 256,
        "vq_embed_dim": None,
        "norm_type": "group",
        "lookup_from_codebook": False,
        "force_upcast": False,
    },
    "AutoencoderTiny": {
        "in_channels": 3,
        "out_channels": 3,
        "encoder_block_out_channels": [64] * 4,
        "decoder_block_out_channels": [64] * 4,
        "act_fn": "relu",
        "upsample_fn": "nearest",
        "latent_channels": 4,
        "upsampling_scaling_factor": 2,
        "num_encoder_blocks": [1, 3, 3, 3],
        "num_decoder_blocks": [3, 3, 3, 1],
        "latent_magnitude": 3,
        "latent_shift": 0.5,
        "force_upcast": False,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
        "block_out_channels": None,
    },
}
"""By class the keys that diffusers 0.42 reads, and what it takes for those that are missing."""


def read_config(directory: Path) -> dict[str, Any]:
    """The config of a diffusers model with all keys of its class and ``_class_name``.

    Raises:
        OSError: If it cannot be read.
        ModelFileError: If it is no JSON, of another class, or has an unknown key.
    """
    path = directory / CONFIG_NAME
    content = read_object(path, _MAX_CONFIG_BYTES)
    name = content.get("_class_name")
    if not isinstance(name, str) or name not in DEFAULTS:
        raise ModelFileError(f"{path}: `_class_name` must be one of {', '.join(DEFAULTS)}, got {name!r:.80}.")
    given = {key: value for key, value in content.items() if not key.startswith("_")}
    for key in given:
        if key not in DEFAULTS[name]:
            raise ModelFileError(f"{path}: `{key:.80}` is no key of {name} that vaelib knows, got {given[key]!r:.80}.")
    return {"_class_name": name, **DEFAULTS[name], **given}


def factor_of(config: Mapping[str, Any]) -> int:
    """How much smaller the latent map is than the image."""
    key = "num_encoder_blocks" if config["_class_name"] == "AutoencoderTiny" else "block_out_channels"
    levels = len(check_int_tuple(key, config[key], minimum=0))
    if not 1 <= levels <= _MOST_LEVELS:
        raise ValueError(f"`{key}` must have 1 to {_MOST_LEVELS} entries, got {levels}.")
    return int(2 ** (levels - 1))


def size_of(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width that the config names."""
    size = config.get("sample_size", _DEFAULT_SIZE)
    height, width = check_int_tuple("sample_size", [size] * 2 if isinstance(size, int) else size, length=2)
    return height, width


def model_of(config: Mapping[str, Any], size: Sequence[int]) -> VAE:
    """The untrained model for images of that height and width.

    Raises:
        ValueError: If a value is out of its range, or means what vaelib has not.
        TypeError: If a value has the wrong type.
    """
    check_int("in_channels", config["in_channels"])
    if config["in_channels"] != config["out_channels"]:
        raise ValueError(
            f"`out_channels` must be `in_channels`, {config['in_channels']}, got {config['out_channels']}."
        )
    make = {"AutoencoderKL": _kl, "VQModel": _vq, "AutoencoderTiny": _tiny}[config["_class_name"]]
    encoder, decoder, latent = make(config, (config["in_channels"], *size))
    return VAE(encoder, decoder, latent=latent, likelihood=Laplace(_SCALE), scaling=_scaling_of(config))


Parts = tuple[nn.Module, nn.Module, Any]


def _kl(config: Mapping[str, Any], shape: Sequence[int]) -> Parts:
    channels = check_int("latent_channels", config["latent_channels"])
    for key in ("use_quant_conv", "use_post_quant_conv"):
        check_bool(key, config[key])
    down, up = _residual_arguments(config)
    encoder = ResidualEncoder(shape, channels, inner_channels=channels if config["use_quant_conv"] else None, **down)
    decoder = ResidualDecoder(shape, channels, inner_channels=channels if config["use_post_quant_conv"] else None, **up)
    return encoder, decoder, GaussianLatent(encoder.latent_shape)


def _vq(config: Mapping[str, Any], shape: Sequence[int]) -> Parts:
    inner = check_int("latent_channels", config["latent_channels"])
    size = config["vq_embed_dim"]
    channels = inner if size is None else check_int("vq_embed_dim", size)
    check_choice("norm_type", config["norm_type"], ("group", "spatial"))
    if config["norm_type"] == "spatial" and channels != inner:
        raise ValueError(f"`vq_embed_dim` must be `latent_channels`, {inner}, for norm_type 'spatial', got {channels}.")
    down, up = _residual_arguments(config)
    encoder = ResidualEncoder(shape, channels, inner_channels=inner, num_heads=1, **down)
    decoder = ResidualDecoder(shape, channels, inner_channels=inner, **{**up, "norm": config["norm_type"]})
    # By gradients, as there, and without restarts: codes that are loaded stay what they are until they are trained.
    latent = VectorQuantizer(encoder.latent_shape, config["num_vq_embeddings"], decay=None, restart=0.0)
    return encoder, decoder, latent


def _residual_arguments(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of :class:`ResidualEncoder` and :class:`ResidualDecoder`."""
    widths = check_int_tuple("block_out_channels", config["block_out_channels"])
    blocks = check_int("layers_per_block", config["layers_per_block"])
    groups = check_int("norm_num_groups", config["norm_num_groups"])
    if any(width % groups for width in widths):
        raise ValueError(f"`norm_num_groups` must divide `block_out_channels`, {list(widths)}, got {groups}.")
    check_bool("mid_block_add_attention", config["mid_block_add_attention"])
    common = {
        "groups": groups,
        "attention": config["mid_block_add_attention"],
        "activation": _activation(config),
    }
    down = {"hidden_channels": widths, "residual_blocks": blocks, **common}
    up = {"hidden_channels": widths[::-1], "residual_blocks": blocks + 1, **common}
    down["attention_levels"] = _attention_levels(config, "down_block_types", DOWN)
    up["attention_levels"] = _attention_levels(config, "up_block_types", UP)
    return down, up


def _attention_levels(config: Mapping[str, Any], key: str, choices: Sequence[str]) -> list[int]:
    check_type(key, config[key], list | tuple, "a list")
    count = len(config["block_out_channels"])
    if len(config[key]) != count:
        raise ValueError(f"`{key}` must have {count} entries, as `block_out_channels`, got {len(config[key])}.")
    for i, kind in enumerate(config[key]):
        check_choice(f"{key}[{i}]", kind, choices)
    return [i for i, kind in enumerate(config[key]) if kind == choices[1]]


def _activation(config: Mapping[str, Any]) -> str:
    check_type("act_fn", config["act_fn"], str, "a str")
    name: str = config["act_fn"].lower()
    check_choice("act_fn", name, ACTIVATIONS)
    return name


def _tiny(config: Mapping[str, Any], shape: Sequence[int]) -> Parts:
    channels = check_int("latent_channels", config["latent_channels"])
    check_choice("upsampling_scaling_factor", config["upsampling_scaling_factor"], (2,))
    found: list[dict[str, Any]] = []
    for part in ("encoder", "decoder"):
        blocks = check_int_tuple(f"num_{part}_blocks", config[f"num_{part}_blocks"], minimum=0)
        key = f"{part}_block_out_channels"
        widths = check_int_tuple(key, config[key], length=len(blocks))
        if len(set(widths)) != 1:
            raise ValueError(f"`{key}` must be the same at all levels, got {list(widths)}.")
        found.append({"width": widths[0], "blocks": blocks, "activation": _activation(config)})
    down, up = found
    if len(down["blocks"]) != len(up["blocks"]):
        raise ValueError(f"`num_decoder_blocks` must have {len(down['blocks'])} entries, got {list(up['blocks'])}.")
    encoder = TinyEncoder(shape, channels, **down)
    return (
        encoder,
        TinyDecoder(shape, channels, upsample=config["upsample_fn"], **up),
        PointLatent(encoder.latent_shape),
    )


def _scaling_of(config: Mapping[str, Any]) -> LatentScaling:
    scale = check_float("scaling_factor", config["scaling_factor"], 0.0, above=True)
    shift = 0.0 if config.get("shift_factor") is None else check_float("shift_factor", config["shift_factor"])
    means: Any = config.get("latents_mean")
    deviations: Any = config.get("latents_std")
    if means is None and deviations is None:
        return LatentScaling(shift, scale)
    if shift:
        raise ValueError(f"`shift_factor` must be None where `latents_mean` is given, got {shift}.")
    lists = []
    for key, values, least in (("latents_mean", means, -math.inf), ("latents_std", deviations, 0.0)):
        check_type(key, values, list | tuple, "a list where `latents_mean` or `latents_std` is given")
        if len(values) != config["latent_channels"]:
            raise ValueError(f"`{key}` must have {config['latent_channels']} entries, got {len(values)}.")
        lists.append([check_float(f"{key}[{i}]", value, least, above=True) for i, value in enumerate(values)])
    return LatentScaling(lists[0], [scale / deviation for deviation in lists[1]])
