"""A model of vaelib's as diffusers describes it: ``config.json`` and the names of the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vaelib._checks import shown
from vaelib.interop.configs import DOWN, UP
from vaelib.latents import GaussianLatent, PointLatent, VectorQuantizer
from vaelib.networks import ResidualDecoder, ResidualEncoder, TinyDecoder, TinyEncoder
from vaelib.vae import VAE

__all__ = ["config_of", "names_of", "with_todays_names"]

_NAMES = (
    (r"^encoder\.quant_conv\.", "quant_conv."),
    (r"^decoder\.quant_conv\.", "post_quant_conv."),
    (r"^encoder\.levels\.", "encoder.down_blocks."),
    (r"^decoder\.levels\.", "decoder.up_blocks."),
    (r"down_blocks\.(\d+)\.resample\.1\.", r"down_blocks.\1.downsamplers.0.conv."),
    (r"up_blocks\.(\d+)\.resample\.1\.", r"up_blocks.\1.upsamplers.0.conv."),
    (r"^(\w+)\.middle\.", r"\1.mid_block."),
    (r"^(\w+)\.norm_out\.", r"\1.conv_norm_out."),
    (r"\.attentions\.(\d+)\.norm\.(?=norm_layer|conv_)", r".attentions.\1.spatial_norm."),
    (r"\.attentions\.(\d+)\.norm\.", r".attentions.\1.group_norm."),
    (r"\.to_out\.", ".to_out.0."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"(_blocks?(\.\d+)?)\.blocks\.", r"\1.resnets."),
    (r"^latent\.codebooks\.0\.weight$", "quantize.embedding.weight"),
)
"""What is replaced, one after the other, in a name of vaelib's."""
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of attention in files from before diffusers 0.15, which it still reads."""


def names_of(model: nn.Module) -> dict[str, str]:
    """The name of each weight of encoder, decoder and codebook to that in diffusers."""
    names = {}
    for ours in model.state_dict():
        theirs = ours
        if ours.startswith(("encoder.", "decoder.")) or ours == "latent.codebooks.0.weight":
            for pattern, replacement in _NAMES:
                theirs = re.sub(pattern, replacement, theirs)
            names[ours] = theirs
    return names


def with_todays_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file by the names that diffusers writes now."""
    pattern = rf"(\.attentions\.\d+)\.({'|'.join(_OLD_NAMES)})\."
    return {
        re.sub(pattern, lambda found: f"{found[1]}.{_OLD_NAMES[found[2]]}.", name): tensor
        for name, tensor in tensors.items()
    }


def config_of(model: VAE) -> dict[str, Any]:
    """``_class_name`` and the keys of a config that gives this network in diffusers.

    Raises:
        TypeError: If diffusers has no such model.
        ValueError: If it has no such arguments of one.
    """
    encoder: Any = model.encoder
    decoder: Any = model.decoder
    latent: Any = model.latent
    kinds = type(encoder), type(decoder), type(latent)
    common = {"in_channels": model.image_shape[0], "out_channels": model.image_shape[0]}
    if model.condition is not None:
        raise ValueError(f"`model` must have no condition, which diffusers' have not, got {shown(model.condition)}.")
    if kinds == (TinyEncoder, TinyDecoder, PointLatent):
        return {"_class_name": "AutoencoderTiny", **common, **_tiny_keys(encoder, decoder), **_scaling_keys(model)}
    if kinds == (ResidualEncoder, ResidualDecoder, GaussianLatent) and latent.posterior is None:
        kind, keys = "AutoencoderKL", _kl_keys(encoder, decoder)
    elif kinds == (ResidualEncoder, ResidualDecoder, VectorQuantizer):
        kind, keys = "VQModel", _vq_keys(encoder, decoder, latent)
    else:
        raise TypeError(
            "`model` must be made of ResidualEncoder and ResidualDecoder with a GaussianLatent without a flow or a"
            f" VectorQuantizer, as vl.autoencoder_kl makes it, got {', '.join(kind.__name__ for kind in kinds)}."
        )
    _check("decoder.param_channels", decoder.param_channels, model.image_shape[0])
    return {"_class_name": kind, **common, **_residual_keys(encoder, decoder), **keys, **_scaling_keys(model)}


def _check(name: str, got: Any, wanted: Any) -> None:
    if got != wanted:
        raise ValueError(f"`model.{name}` must be {wanted!r} for diffusers, got {got!r}.")


def _residual_keys(encoder: ResidualEncoder, decoder: ResidualDecoder) -> dict[str, Any]:
    _check("encoder.norm", encoder.norm, "group")
    _check("decoder.hidden_channels", decoder.hidden_channels, encoder.hidden_channels[::-1])
    _check("decoder.residual_blocks", decoder.residual_blocks, encoder.residual_blocks + 1)
    for name in ("groups", "attention", "activation"):
        _check(f"decoder.{name}", getattr(decoder, name), getattr(encoder, name))
    height, width = encoder.image_shape[1:]
    levels = range(len(encoder.hidden_channels))
    return {
        "down_block_types": [DOWN[level in encoder.attention_levels] for level in levels],
        "up_block_types": [UP[level in decoder.attention_levels] for level in levels],
        "block_out_channels": list(encoder.hidden_channels),
        "layers_per_block": encoder.residual_blocks,
        "act_fn": encoder.activation,
        "norm_num_groups": encoder.groups,
        "sample_size": height if height == width else [height, width],
        "mid_block_add_attention": encoder.attention,
    }


def _kl_keys(encoder: ResidualEncoder, decoder: ResidualDecoder) -> dict[str, Any]:
    _check("decoder.norm", decoder.norm, "group")
    for name, network in (("encoder", encoder), ("decoder", decoder)):
        if network.inner_channels is not None:
            _check(f"{name}.inner_channels", network.inner_channels, encoder.latent_channels)
    return {
        "latent_channels": encoder.latent_channels,
        "use_quant_conv": encoder.inner_channels is not None,
        "use_post_quant_conv": decoder.inner_channels is not None,
    }


def _vq_keys(encoder: ResidualEncoder, decoder: ResidualDecoder, latent: VectorQuantizer) -> dict[str, Any]:
    _check("latent.cosine", latent.cosine, False)
    for name, network in (("encoder", encoder), ("decoder", decoder)):
        if network.inner_channels is None:
            raise ValueError(f"`model.{name}.inner_channels` must be given for diffusers' VQModel: quant_conv=True.")
    _check("decoder.inner_channels", decoder.inner_channels, encoder.inner_channels)
    if decoder.norm == "spatial":
        _check("encoder.inner_channels", encoder.inner_channels, encoder.latent_channels)
    else:
        _check("decoder.norm", decoder.norm, "group")
    return {
        "latent_channels": encoder.inner_channels,
        "vq_embed_dim": encoder.latent_channels,
        "num_vq_embeddings": latent.num_codes,
        "norm_type": decoder.norm,
    }


def _tiny_keys(encoder: TinyEncoder, decoder: TinyDecoder) -> dict[str, Any]:
    _check("decoder.activation", decoder.activation, encoder.activation)
    return {
        "encoder_block_out_channels": [encoder.width] * len(encoder.blocks),
        "decoder_block_out_channels": [decoder.width] * len(decoder.blocks),
        "num_encoder_blocks": list(encoder.blocks),
        "num_decoder_blocks": list(decoder.blocks),
        "act_fn": encoder.activation,
        "upsample_fn": decoder.upsample,
        "latent_channels": encoder.latent_channels,
    }


def _scaling_keys(model: VAE) -> dict[str, Any]:
    """``scaling_factor`` and ``shift_factor`` where one number serves all channels, else means and deviations."""
    if model.scaling is None:
        return {"scaling_factor": 1.0}
    shifts, scales = (_values(numbers) for numbers in (model.scaling.shift, model.scaling.scale))
    is_kl = isinstance(model.latent, GaussianLatent)
    if len({*shifts}) == len({*scales}) == 1:
        keys = {"scaling_factor": scales[0]}
        if shifts[0] and isinstance(model.latent, VectorQuantizer):
            _check("scaling.shift", shifts[0], 0.0)
        return keys | ({"shift_factor": shifts[0]} if shifts[0] else {})
    if not is_kl:
        raise ValueError(
            f"`model.scaling` must be the same for all channels for diffusers, got {shown(model.scaling)}."
        )
    channels = model.latent_shape[0]
    means, scales = (values * (channels // len(values)) for values in (shifts, scales))
    return {"scaling_factor": 1.0, "latents_mean": means, "latents_std": [1 / scale for scale in scales]}


def _values(numbers: Any) -> list[float]:
    return [float(number) for number in numbers] if isinstance(numbers, list | tuple) else [float(numbers)]
