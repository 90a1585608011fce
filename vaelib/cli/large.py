"""``vaelib reconstruct --tile``: one image at its own size, by a trained model or a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from vaelib.cli.common import (
    condition_of,
    is_bundle,
    load_model,
    print_json,
    reading_of_files,
    reading_options,
    with_condition,
)

__all__ = ["reconstruct_in_tiles"]


def reconstruct_in_tiles(
    context: typer.Context, directory: Path, files: Sequence[Path], target: Path, *, tile: int | None, blend: bool
) -> None:
    """Write the reconstruction of one image, and say how close it is.

    Raises:
        ValueError: If there are several files, or the model cannot compute tiles.
    """
    if len(files) != 1 or files[0].is_dir():
        raise ValueError(f"`--tile` is for one image file, which keeps its size, got {', '.join(map(str, files))}.")
    given = context.params["condition"]
    model: Any
    if is_bundle(directory):
        from vaelib.runtime import OnnxVAE

        model = OnnxVAE(directory)
        model = model.given(condition=condition_of(given, model.metadata["condition"])) if given else model
    else:
        model, given = with_condition(load_model(directory), directory, given, 1)
    import torch

    from vaelib import plots
    from vaelib.data import read_images

    channels = model.image_shape[0]
    reading = reading_of_files(directory, channels, reading_options(context.params))
    images = read_images(files, channels=channels, **reading).float() / 255
    if is_bundle(directory):
        found = torch.from_numpy(model.reconstruct(images.numpy(), tile=tile, blend=blend))
    else:
        found = model.reconstruct(images, condition=given, tile=tile, blend=blend)
    plots.save_grid(found, target, columns=1)
    height, width = images.shape[2:]
    psnr = -10 * torch.log10((found - images).square().mean()).item()
    multiple = model.image_shape[1] // model.latent_shape[1]
    rest = [-(-side // multiple) * multiple for side in (height, width)]
    note = "" if rest == [height, width] else f"; reflected to {rest[0]} x {rest[1]} for it, and cropped"
    if context.params["json_output"]:
        print_json({"out": str(target), "height": height, "width": width, "computed": rest, "tile": tile, "psnr": psnr})
        return
    typer.echo(f"{height} x {width} in tiles of {tile} written to {target}{note}. PSNR {psnr:.2f} dB.")
