"""The commands that run a model on images: reconstruct, sample, encode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vaelib._checks import IMAGE_FORMATS, LARGEST_GRID
from vaelib._files import written_whole
from vaelib.cli.common import (
    Data,
    Download,
    Json,
    Model,
    Seed,
    Split,
    a_path,
    load_data,
    load_model,
    output_file,
    print_json,
    print_table,
    read_record,
)
from vaelib.cli.reading import ChannelsLast, Frames, ImagesKey, ValueRange, reading_of_run, reading_options

__all__ = ["encode", "reconstruct", "sample"]

_BATCH = 256
"""Images that a model is given at a time."""


def reconstruct(
    context: typer.Context,
    model: Model,
    pictures: Annotated[
        list[Path],
        typer.Argument(
            help="Your image files, any size and format, and folders of them.",
            show_default=False,
            parser=a_path,
            metavar="FILES_OR_FOLDERS...",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="The image: originals above, reconstructions below; .png, .jpg, .webp or .tif.", parser=a_path
        ),
    ] = Path("reconstructions.png"),
    value_range: ValueRange = None,
    frames: Frames = None,
    json_output: Json = False,
) -> None:
    """Send your own images through a model, and say how well it explains each (nats; lower is more typical)."""
    target = output_file(out, IMAGE_FORMATS)
    _check_exist(pictures)
    trained = load_model(model)
    import torch

    from vaelib import plots
    from vaelib.data.skipped import readable
    from vaelib.evaluation import per_image_terms
    from vaelib.evaluation.inputs import batches_for
    from vaelib.evaluation.values import ImageValues, check_model_finite
    from vaelib.objectives.elbo import default_objective

    images, skipped = _read(trained, model, pictures, reading_options(context.params))
    shown = images.batch(slice(0, max(1, LARGEST_GRID // (4 * math.prod(images.image_shape[1:])))))
    plots.save_pairs(shown, torch.cat([trained.reconstruct(x) for x in shown.split(_BATCH)]), target)
    objective = default_objective(trained)
    generator = torch.Generator().manual_seed(0)
    values = ImageValues(trained.likelihood)
    terms = per_image_terms(
        trained, values.watched(batches_for(trained, images, _BATCH)), objective, generator=generator
    )
    names = [name for name in terms._fields if name != "loss"]
    check_model_finite("model", "the loss", *(getattr(terms, name) for name in names))
    columns = [getattr(terms, name).tolist() for name in names]
    rows = {file: dict(zip(names, row, strict=True)) for file, *row in zip(images.names, *columns, strict=True)}
    if json_output:
        print_json({"out": str(out), "pictures": rows, "skipped": len(skipped), "note": values.note_on_nats})
        return
    print_table(
        f"Written to {out}; nats per image",
        ["image", *names],
        [[readable(file), *(f"{value:.1f}" for value in row.values())] for file, row in rows.items()],
    )
    if values.note_on_nats:
        typer.echo(values.note_on_nats)


def _check_exist(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"`FILES_OR_FOLDERS` must exist; there is no {path}.")


def _read(trained: Any, model: Path, paths: Sequence[Path], reading: dict[str, Any]) -> tuple[Any, Any]:
    """One's own images at the model's size and with its channels; what was skipped is reported, and returned.

    They are read as those of the run were, if these were image files too.
    """
    from vaelib.data.entries import ARRAY_SUFFIXES
    from vaelib.data.files import read_files

    channels, height, width = trained.image_shape
    if channels not in (1, 3):
        raise ValueError(f"Image files have 1 or 3 channels, the model in {model} has {channels}.")
    if {"channels_last", "images_key"} & set(reading):
        raise ValueError("`--channels-last` and `--images-key` are for arrays, FILES_OR_FOLDERS are images.")
    record = read_record(model)
    if Path(record.get("data") or "").suffix not in ARRAY_SUFFIXES:
        reading = reading_of_run(record, None) | reading
    images, skipped = read_files(paths, (height, width), channels, **reading)
    skipped.warn(", ".join(map(str, paths)))
    return images, skipped


def sample(
    model: Model,
    num: Annotated[int, typer.Option(help="How many images.", min=1, max=LARGEST_GRID)] = 64,
    seed: Seed = 0,
    out: Annotated[
        Path, typer.Option(help="The image, a grid of them: .png, .jpg, .webp or .tif.", parser=a_path)
    ] = Path("samples.png"),
) -> None:
    """Draw new images from a model's prior."""
    target = output_file(out, IMAGE_FORMATS)
    vae = load_model(model)
    import torch

    from vaelib import plots
    from vaelib.vae import VAE

    if not (isinstance(vae, VAE) and vae.latent.has_prior):
        raise TypeError(f"Only a VAE has a prior to sample from, {model} holds a {type(vae).__name__}.")
    _, height, width = vae.image_shape
    if num > LARGEST_GRID // (height * width):
        raise ValueError(
            f"`--num` must be at most {LARGEST_GRID // (height * width)} for images of {height} x {width}, which fill"
            f" {LARGEST_GRID} pixels, got {num}."
        )
    generator = torch.Generator().manual_seed(seed)
    parts = [vae.sample(min(_BATCH, num - start), generator=generator) for start in range(0, num, _BATCH)]
    plots.save_grid(torch.cat(parts), target)
    typer.echo(f"{num} images written to {out}")


def encode(
    context: typer.Context,
    model: Model,
    pictures: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Your image files and folders of them, instead of --data.",
            show_default=False,
            parser=a_path,
            metavar="[FILES_OR_FOLDERS]...",
        ),
    ] = None,
    data: Data = None,
    split: Split = "test",
    value_range: ValueRange = None,
    channels_last: ChannelsLast = None,
    frames: Frames = None,
    images_key: ImagesKey = None,
    out: Annotated[
        Path,
        typer.Option(
            help="The .npz file: mu and logvar (of an autoencoder: z); file names, labels, class names and factors,"
            " where there are.",
            parser=a_path,
        ),
    ] = Path("embedding.npz"),
    plot: Annotated[
        bool, typer.Option("--plot", help="Also draw the embedding in the plane, beside the .npz.")
    ] = False,
    download: Download = False,
) -> None:
    """Write the embedding of a data set, or of your own images: the posterior mean and log variance of each."""
    target = output_file(out, (".npz",))
    if pictures and data is not None:
        raise ValueError(f"`--data` must not be given beside files, got {data!r}.")
    _check_exist(pictures or ())
    trained = load_model(model)
    import numpy as np
    import torch

    from vaelib import evaluation, plots

    reading = reading_options(context.params)
    if pictures:
        images, _ = _read(trained, model, pictures, reading)
    else:
        images = load_data(model, trained, data, split, download=download, reading=reading)
    codes = evaluation.encode(trained, images, generator=torch.Generator().manual_seed(0))
    tensors = {"z": codes} if isinstance(codes, torch.Tensor) else dict(zip(("mu", "logvar"), codes, strict=True))
    points = next(iter(tensors.values())).flatten(1)
    known = {"labels": images.labels, "factors": images.factors}
    tensors |= {name: values for name, values in known.items() if values is not None}
    arrays: dict[str, Any] = {name: values.numpy() for name, values in tensors.items()}
    words = {"names": images.names, "class_names": images.class_names, "factor_names": images.factor_names}
    arrays |= {name: np.array(strings) for name, strings in words.items() if strings}
    with written_whole(target) as temporary:
        np.savez(temporary, **arrays)
    typer.echo(f"{len(images)} images written to {target}: {', '.join(arrays)}")
    if plot:
        plots.save_embedding(points, images.labels, target.with_suffix(".png"), class_names=images.class_names)
        typer.echo(f"drawn in {target.with_suffix('.png')}")
