"""Bundles of version 0.1, whose graphs say in their own metadata what today the manifest says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vaelib._checks import ModelFileError
from vaelib.runtime.contract import Contract, Spec
from vaelib.runtime.metadata import checked_metadata, from_json

__all__ = ["described"]

_TEXTS = ("schema", "version", "kind", "likelihood", "prior", "precision", "weights_sha256")
_VALUES = (
    *("image_shape", "image_range", "latent_shape", "spatial_multiple", "opset", "config", "validation", "parameters"),
    "noise_size",
)
_MAX_EXTRA_NOISE = 1024
"""Numbers that a prior draws beside those of the latent, such as the one that picks a component of a mixture."""


def described(props: Mapping[str, str], channels: Any, path: str) -> tuple[dict[str, Any], dict[str, Contract]]:
    """Metadata and contracts by what the decoder's file at ``path`` says of itself.

    Args:
        props: Its metadata.
        channels: Of its ``recon_params``.
        path: For the errors.

    Raises:
        ModelFileError: If something is missing, is no JSON, or does not fit the rest.
    """
    found: dict[str, Any] = {}
    for name in (*_TEXTS, *_VALUES):
        text = props.get(f"vaelib.{name}")
        if text is not None:
            found[name] = text if name in _TEXTS else from_json(text, f"`{name}` of {path}")
    if found.get("schema") != "2":
        raise ModelFileError(f"{path} has schema {found.get('schema')!r:.40}, known is '2'.")
    metadata = checked_metadata(found, path)
    noise, size = metadata.pop("noise_size", None), math.prod(metadata["latent_shape"])
    if noise is not None and not (type(noise) is int and 0 <= noise - size <= _MAX_EXTRA_NOISE):
        raise ModelFileError(
            f"{path} was not exported by vaelib: its `noise_size` is {noise!r:.80}, for a latent of {size} numbers."
        )
    metadata["validation"] = {"decoder": metadata["validation"]}
    return metadata, _contracts(metadata, noise, channels)


def _contracts(metadata: Mapping[str, Any], noise: int | None, channels: Any) -> dict[str, Contract]:
    image, latent = tuple(metadata["image_shape"]), tuple(metadata["latent_shape"])
    size, free = math.prod(latent), metadata["spatial_multiple"] is not None
    if free:
        image, latent = (image[0], "H", "W"), (latent[0], "h", "w")
    x, z, nats = (Spec("float32", ("B", *shape)) for shape in (image, latent, ()))
    params = Spec("float32", ("B", channels, *image[1:]))
    contracts = {"decoder": Contract({"z": z}, {"mean": x, "recon_params": params}, "decoder.onnx")}
    if metadata["kind"] != "VAE":
        return {"encoder": Contract({"image": x}, {"z": z}, "encoder.onnx"), **contracts}
    encoder = Contract({"image": x}, {"z": z, "mu": z, "logvar": z}, "encoder.onnx", {"z": "mu"})
    bound = {"reconstruction": x, "mu": z, "logvar": z, "distortion": nats, "kl": nats}
    whole = Contract({"image": x, "noise": z}, bound, "vae.onnx", {"noise": "eps"})
    contracts = {"encoder": encoder, **contracts, "vae": whole}
    if noise is None and metadata["prior"] != "StandardNormal":  # one of the user's own, without a graph
        return contracts
    drawn = Spec("float32", ("B", *metadata["latent_shape"]))
    normal = Spec("float32", ("B", size if noise is None else noise))
    return {**contracts, "prior": Contract({"noise": normal}, {"z": drawn}, None if noise is None else "prior.onnx")}
