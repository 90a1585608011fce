"""Passes over images of any size, tile by tile."""

from __future__ import annotations

import copy
import math
import warnings
from functools import partial
from typing import Any

from vaelib._checks import check_shape, check_tensor
from vaelib._tiles import tiles_asked
from vaelib.tiling.passes import InTiles, free_axes, multiple_of, sharing_copy, to_whole_steps
from vaelib.vae.outputs import image_of

__all__ = ["in_tiles"]


def in_tiles(view: Any, name: str, value: Any, tile: Any, blend: bool, *, is_cropped: bool = False) -> tuple[Any, Any]:
    """The same verbs for images, or latents, of the size of ``value``, whose networks are computed tile by tile.

    Args:
        view: A VAE, or one with a condition bound.
        name: ``"x"`` of images, ``"z"`` of latents.
        value: ``(B, C, H, W)``.
        tile: Longest side of a tile, in pixels; None for the verbs and the value as they are.
        blend: Whether to blend the tiles of a network without a bound.
        is_cropped: Whether the caller crops what is decoded to the images' size; else a warning says how they differ.

    Returns:
        The verbs, and ``value``; images are reflected at the bottom and on the right, up to whole cells of the latent.

    Raises:
        ValueError: If the model has no latent map, or the shape is wrong.
        TypeError: If ``value`` is no tensor.
    """
    if not tiles_asked(tile, blend):
        return view, value
    model = getattr(view, "model", view)
    multiple = multiple_of(model)
    if multiple is None:
        raise ValueError(
            "`tile` must be None for a model whose latent is no map of the image, by a whole factor: its `image_shape`"
            f" is {tuple(model.image_shape)}, its `latent_shape` {tuple(model.latent_shape)}."
        )
    if getattr(model.latent, "posterior", None) is not None:
        raise ValueError(
            "`tile` must be None for a latent with a flow as its posterior, which is made for one size, got"
            f" posterior={type(model.latent.posterior).__name__}."
        )
    check_tensor(name, value)
    channels = (model.image_shape if name == "x" else model.latent_shape)[0]
    check_shape(name, value.shape, ("B", channels, "H", "W"))
    height, width = value.shape[2:]
    if not height or not width:
        raise ValueError(f"`{name}` must have a height and a width of at least 1, got {tuple(value.shape)}.")
    if name == "x":
        value = to_whole_steps(value, multiple)
        if value.shape[2:] != (height, width) and not is_cropped:
            warnings.warn(
                f"`x` of {height} x {width} is reflected at the bottom and on the right to {value.shape[2]} x"
                f" {value.shape[3]}, multiples of {multiple}: crop what you decode of it.",
                UserWarning,
                stacklevel=4,
            )
    rows, columns = (size // multiple if name == "x" else size for size in value.shape[2:])
    tiled = _of_size(model, rows, columns, multiple)
    for network in (tiled.encoder, tiled.decoder):
        free_axes(network)
    tiled.encoder = InTiles("encoder", tiled.encoder, (multiple, 1), tile, blend)
    if blend:  # images are blended, as OnnxVAE does, not parameters of p(x|z), whose mean is another
        finish, tiled.likelihood = partial(image_of, model.likelihood), None
    else:
        finish = None
    tiled.decoder = InTiles("decoder", tiled.decoder, (1, multiple), tile, blend, finish)
    if model is not view:
        view = copy.copy(view)
        view.model = tiled
        return view, value
    return tiled, value


def _of_size(model: Any, rows: int, columns: int, multiple: int) -> Any:
    """A copy with the same weights for a latent map of this size."""
    tiled = sharing_copy(model)
    tiled.image_shape = (model.image_shape[0], rows * multiple, columns * multiple)
    tiled.latent_shape = (model.latent_shape[0], rows, columns)
    for part in tiled.latent.modules():
        if getattr(part, "latent_shape", None) == model.latent_shape:
            part.latent_shape = tiled.latent_shape
    if hasattr(tiled.latent, "num_positions"):
        depth = model.latent.num_positions // math.prod(model.latent_shape[1:])
        tiled.latent.num_positions = depth * rows * columns
    return tiled
