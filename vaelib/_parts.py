"""What a model asks of its parts: their methods, one image and one latent for all, and the shapes that they return."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vaelib._checks import (
    check_finite,
    check_generator,
    check_images,
    check_int_tuple,
    check_module,
    check_one_device,
    check_tensor,
    shown,
)

_METHODS = {
    "likelihood": ("param_channels", "log_prob", "mean", "sample"),
    "prior": ("log_prob", "from_noise"),
    "latent": ("draw", "point", "encoded", "from_noise", "log_prob", "hidden"),
    "condition": ("check", "embed", "dropped"),
}


def check_modules(**parts: object) -> None:
    """Raise ``TypeError`` unless every part is a module with its methods; only ``encoder`` and ``decoder`` must be."""
    for name, part in parts.items():
        check_module(name, part, *_METHODS.get(name, ()), optional=name not in ("encoder", "decoder"))
    likelihood = parts.get("likelihood")
    if likelihood is not None and not isinstance(getattr(likelihood, "is_density", None), bool):
        raise TypeError(f"`likelihood` must have an `is_density`, True or False, {type(likelihood).__name__} has not.")


def agreed_shape(
    name: str, given: Sequence[int] | None, *, joined: Sequence[str] = (), condition: Any = None, **parts: object
) -> tuple[int, ...]:
    """The shape that the argument and all parts agree on, each of them if it knows one.

    The parts ``joined`` take the condition as further channels, which do not count, unless they take it by themselves.
    """
    sources = {"the argument": given} | {f"the {part}": getattr(it, name, None) for part, it in parts.items()}
    known = {source: check_int_tuple(name, shape) for source, shape in sources.items() if shape is not None}
    more = 0 if condition is None else condition.embedding_size
    for part in joined:
        source = f"the {part}"
        if more and source in known and not getattr(parts[part], "takes_condition", False):
            channels, *rest = known[source]
            if channels <= more:
                raise ValueError(
                    f"`{part}` must take {more} channels more, those of the condition, got `{name}` {known[source]}."
                )
            known[source] = (channels - more, *rest)
    if not known:
        raise ValueError(
            f"Give `{name}`: {type(parts['encoder']).__name__} and {type(parts['decoder']).__name__} have no attribute"
            " of that name."
        )
    if len(set(known.values())) > 1:
        said = ", ".join(f"{source} has {shape}" for source, shape in known.items())
        hint = f", without the {more} channels of the condition in the {' and the '.join(joined)}" if more else ""
        raise ValueError(f"`{name}` must be the same for all parts: {said}{hint}.")
    shape = next(iter(known.values()))
    if len(shape) not in ((3,) if name == "image_shape" else (1, 3)):
        rule = "(C, H, W)" if name == "image_shape" else "(D,) or (C, h, w)"
        raise ValueError(f"`{name}` must be {rule}, got {shape}.")
    if name == "image_shape" and shape[2] <= 4 and shape[2] < min(shape[:2]):
        warnings.warn(
            f"`image_shape` {shape} is read as (C, H, W): C = {shape[0]} channels of {shape[1]}x{shape[2]} pixels. If"
            f" the channels are last, give ({shape[2]}, {shape[0]}, {shape[1]}) and images of that shape.",
            stacklevel=3,
        )
    return shape


def check_param_channels(decoder: nn.Module, likelihood: Any, image_shape: Sequence[int]) -> None:
    """Raise ``ValueError`` if the decoder says that it gives other parameters than the likelihood needs."""
    needed = likelihood.param_channels(image_shape[0])
    if getattr(decoder, "param_channels", needed) != needed:
        raise ValueError(
            f"The decoder's `param_channels` must be {needed}, as {type(likelihood).__name__} needs"
            f" for {image_shape[0]} image channels, got {decoder.param_channels}."
        )


def check_input(model: Any, x: Tensor) -> None:
    """Shape and dtype, which cost nothing; values are left to those who may wait for the device."""
    check_tensor("x", x, floating=False)
    check_images("x", x, model.image_shape, floating=x.is_floating_point())
    _check_place("x", x, model)


def check_latents(model: Any, z: Tensor, name: str = "z") -> None:
    """The same of latents ``(B, *latent_shape)``."""
    check_tensor(name, z, ("B", *model.latent_shape))
    _check_place(name, z, model)


def _check_place(name: str, value: Tensor, model: Any) -> None:
    """The dtype and the device of the weights."""
    parameter = next(model.parameters(), value)
    if value.dtype != parameter.dtype and not torch.is_autocast_enabled(value.device.type):
        raise TypeError(f"`{name}` must have the dtype of the model's weights, {parameter.dtype}, got {value.dtype}.")
    if value.device != parameter.device:
        raise ValueError(
            f"`{name}` must be on the device of the model's weights, {parameter.device}, got {value.device}."
        )


def check_posterior(features: Any, latent_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The ``(mu, logvar)`` that an encoder returned; an error unless both are ``(B, *latent_shape)``."""
    if not isinstance(features, tuple | list) or len(features) != 2:
        got = f"{len(features)} values" if isinstance(features, tuple | list) else shown(features)
        raise TypeError(
            f"`features` of the encoder must be two tensors, (mu, logvar), got {got}. ConvEncoder gives them with"
            " `num_heads=2`; of images, model.observe(x) gives them, not encode(x)."
        )
    mu, logvar = features
    for name, value in (("mu", mu), ("logvar", logvar)):
        check_tensor(f"the encoder's {name}", value, ("B", *latent_shape))
    return mu, logvar


def check_head(features: Any, latent: Any) -> Tensor:
    """The one tensor ``(B, *latent_shape)`` that an encoder returned for ``latent``."""
    wanted, name = latent.latent_shape, type(latent).__name__
    if not isinstance(features, Tensor):
        got = f"{len(features)} values" if isinstance(features, tuple | list) else shown(features)
        raise TypeError(
            f"`features` of the encoder must be one tensor (B, {', '.join(map(str, wanted))}) for {name}, got {got}."
            " ConvEncoder gives it with `num_heads=1`."
        )
    check_tensor("the encoder's features", features, ("B", *wanted))
    return features


def check_heads(encoder: nn.Module, latent: Any) -> None:
    """Raise ``ValueError`` if the encoder says that it gives fewer or more tensors than the latent reads."""
    wanted = getattr(latent, "num_heads", None)
    has = getattr(encoder, "num_heads", wanted)
    if latent.has_prior and has != wanted:
        raise ValueError(
            f"The encoder's `num_heads` must be {wanted}, as {type(latent).__name__} needs, got {has}: write"
            f" {type(encoder).__name__}(..., num_heads={wanted})."
        )


def check_code(features: Any, latent_shape: Sequence[int]) -> Tensor:
    """The code that an encoder returned, of ``(mu, logvar)`` the first."""
    code = features[0] if isinstance(features, tuple) and features else features
    check_tensor("the encoder's code", code, ("B", *latent_shape))
    return code


def check_rows(returned: Sequence[Any], x: Tensor) -> None:
    """Raise ``ValueError`` unless every tensor that an encoder ``returned`` for ``x`` has as many rows as ``x``."""
    if torch.compiler.is_compiling():  # where the size of a batch is a symbol, which a comparison would make a constant
        return
    for part in returned:
        if isinstance(part, Tensor) and part.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"`encoder` must return {len(x)} rows for {len(x)} images, got a tensor of shape {tuple(part.shape)}."
            )


class Bound:
    """A part with an argument bound in some of its methods: ``value``, also its attribute ``name``."""

    def __init__(self, part: Any, name: str, value: Any, methods: Collection[str]) -> None:
        self._part, self._bound, self._methods = part, {name: value}, methods

    def __getattr__(self, name: str) -> Any:
        if name in self._bound:
            return self._bound[name]
        found = getattr(self._part, name)
        return partial(found, **self._bound) if name in self._methods else found


def rows_of(embedding: Tensor, rows: int, *, draws: bool = True) -> Tensor:
    """The embedding of a condition for each of ``rows`` rows: one row is of all, B are of K * B draws, draw-major.

    Args:
        embedding: ``(B, E)``.
        rows: How many there are to be.
        draws: Whether there may be K draws for each.

    Raises:
        ValueError: If there is another number of rows.
    """
    count = embedding.shape[0]
    if count == rows:
        return embedding
    if count != 1 and (not draws or count == 0 or rows % count):
        raise ValueError(f"`condition` must have one row, or one for each of {rows} images, got {count}.")
    return embedding.repeat(rows // count, 1)


def check_recon_params(decoded: Any, z: Tensor, channels: int, image_shape: Sequence[int]) -> Tensor:
    """What a decoder returned for ``z``; an error unless it is ``(B, channels, H, W)``."""
    # While a graph is being captured the size of a batch is a symbol, which a comparison would make a constant.
    batch = "B" if torch.compiler.is_compiling() else len(z)
    check_tensor("the decoder's recon_params", decoded, (batch, channels, *image_shape[1:]))
    return decoded


def check_pixels(likelihood: Any, x: Any, recon_params: Any) -> None:
    """Raise unless ``x`` is a batch of images and ``recon_params`` are their parameters under ``likelihood``."""
    check_tensor("x", x, ("B", "C", "H", "W"))
    check_tensor("recon_params", recon_params, (x.shape[0], likelihood.param_channels(x.shape[1]), *x.shape[2:]))
    check_one_device(x=x, recon_params=recon_params)


def check_raw_params(recon_params: Any, generator: object = None, *, a_channel: int = 1, draws: bool = False) -> None:
    """Raise unless it is a batch of raw parameters, ``(B, K, H, W)`` with K a multiple of what a channel needs.

    Those that pixels are drawn from must be finite.
    """
    check_tensor("recon_params", recon_params, ("B", "K", "H", "W"))
    if recon_params.shape[1] % a_channel:
        raise ValueError(f"`recon_params` must have {a_channel} values a channel, got {recon_params.shape[1]} in all.")
    check_generator(generator)
    if draws and recon_params.device.type == "cpu":  # where looking at values costs no waiting
        check_finite("recon_params", recon_params.detach())
