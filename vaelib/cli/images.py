"""The commands that run a model on images: reconstruct, sample, encode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vaelib._checks import IMAGE_FORMATS, LARGEST_GRID
from vaelib._files import written_whole
from vaelib._tiles import tiles_asked
from vaelib.cli.common import (
    load_data,
    load_model,
    output_file,
    print_json,
    print_table,
    reading_of_files,
    reading_options,
    rows_at,
    with_condition,
)
from vaelib.cli.large import reconstruct_in_tiles
from vaelib.cli.options import (
    ChannelsLast,
    Condition,
    Data,
    Download,
    Frames,
    ImagesKey,
    Json,
    Model,
    Seed,
    Split,
    ValueRange,
    a_path,
)

_MOST_COLUMNS = 64
"""Conditions that have a column each in a grid of samples."""
_BATCH = 256
"""Images that a model is given at a time."""


def reconstruct(
    context: typer.Context,
    model: Model,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Your image files, any size and format, and folders of them.",
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
    condition: Condition = None,
    tile: Annotated[
        int | None,
        typer.Option(
            help="Reconstruct one image at its own size, in tiles of at most so many pixels a side; also by a bundle"
            " that was exported with --dynamic-size. The reconstruction alone is written.",
            min=1,
        ),
    ] = None,
    blend: Annotated[
        bool,
        typer.Option(
            "--blend", help="With --tile, take a model that looks at the whole image: its tiles are blended, not exact."
        ),
    ] = False,
    value_range: ValueRange = None,
    frames: Frames = None,
    json_output: Json = False,
) -> None:
    """Send your own images through a model, and say how well it explains each (nats; lower is more typical)."""
    target = output_file(out, IMAGE_FORMATS)
    _check_exist(files)
    if tiles_asked(tile, blend):
        reconstruct_in_tiles(context, model, files, target, tile=tile, blend=blend)
        return
    trained = load_model(model)
    import torch

    from vaelib import plots
    from vaelib.data.dataset import changed
    from vaelib.data.folders import readable
    from vaelib.evaluation import per_image_terms
    from vaelib.evaluation.inputs import ImageValues, batches_for, check_model_finite
    from vaelib.objectives.elbo import default_objective

    images, skipped = _read(trained, model, files, reading_options(context.params))
    view, rows = with_condition(trained, model, condition, len(images))
    images = changed(images, condition=rows)
    shown = images.batch(slice(0, max(1, LARGEST_GRID // (4 * math.prod(images.image_shape[1:])))))
    parts = zip(shown.split(_BATCH), range(0, len(shown), _BATCH), strict=True)
    reconstructed = [view.reconstruct(x, condition=rows_at(rows, first, len(x))) for x, first in parts]
    plots.save_pairs(shown, torch.cat(reconstructed), target)
    objective = default_objective(trained)
    generator = torch.Generator().manual_seed(0)
    values = ImageValues(trained.likelihood)
    terms = per_image_terms(view, values.watched(batches_for(view, images, _BATCH)), objective, generator=generator)
    names = [name for name in terms._fields if name != "loss"]
    check_model_finite("model", "the loss", *(getattr(terms, name) for name in names))
    columns = [getattr(terms, name).tolist() for name in names]
    rows = {file: dict(zip(names, row, strict=True)) for file, *row in zip(images.names, *columns, strict=True)}
    if json_output:
        print_json({"out": str(out), "images": rows, "skipped": len(skipped), "note": values.note_on_nats})
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
    from vaelib.data.files import read_files

    channels, height, width = trained.image_shape
    if {"channels_last", "images_key"} & set(reading):
        raise ValueError("`--channels-last` and `--images-key` are for arrays, FILES_OR_FOLDERS are images.")
    reading = reading_of_files(model, channels, reading)
    images, skipped = read_files(paths, (height, width), channels, **reading)
    skipped.warn(", ".join(map(str, paths)))
    return images, skipped


def _embedding(trained: Any, view: Any, images: Any) -> tuple[dict[str, Any], Any]:
    """What `encode` gives of all images, by its names, and one point for each."""
    import torch

    from vaelib import evaluation

    found = evaluation.encode(view, images, generator=torch.Generator().manual_seed(0))
    if not isinstance(found, torch.Tensor):
        mu, logvar = found
        return {"mu": mu, "logvar": logvar}, mu.flatten(1)
    if found.is_floating_point():
        return {"z": found}, found.flatten(1)
    return {"codes": found}, trained.latent.embed(found).detach().flatten(1)


def sample(
    model: Model,
    num: Annotated[int, typer.Option(help="How many images.", min=1, max=LARGEST_GRID)] = 64,
    condition: Condition = None,
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
    from vaelib.priors import UniformCodes
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
    view, rows = with_condition(vae, model, condition, num)
    counts = [(start, min(_BATCH, num - start)) for start in range(0, num, _BATCH)]
    parts = [view.sample(n, condition=rows_at(rows, start, n), generator=generator) for start, n in counts]
    labels = len(condition or ())
    plots.save_grid(torch.cat(parts), target, columns=labels if 1 < labels <= _MOST_COLUMNS else 8)
    typer.echo(f"{num} images written to {out}")
    if isinstance(vae.prior, UniformCodes):
        typer.echo(
            "The codes were drawn uniformly, as no prior was fitted to them, so these images look like none of the"
            " data. In Python: vae.prior = vl.fit_prior(vl.AutoregressiveCodes(num_codes, num_positions),"
            " vl.evaluation.encode(vae, data)), then vl.save(vae, ...)."
        )


def encode(
    context: typer.Context,
    model: Model,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Your image files and folders of them, instead of --data.",
            parser=a_path,
            metavar="[FILES_OR_FOLDERS]...",
        ),
    ] = None,
    data: Data = None,
    split: Split = "test",
    condition: Condition = None,
    value_range: ValueRange = None,
    channels_last: ChannelsLast = None,
    frames: Frames = None,
    images_key: ImagesKey = None,
    out: Annotated[
        Path,
        typer.Option(
            help="The .npz file: mu and logvar (of an autoencoder z; of a model of codes codes, int64); file names,"
            " labels, class names and factors, where there are.",
            parser=a_path,
        ),
    ] = Path("embedding.npz"),
    plot: Annotated[
        bool, typer.Option("--plot", help="Also draw the embedding in the plane, beside the .npz.")
    ] = False,
    download: Download = False,
) -> None:
    """Write the embedding of a data set, or of your own images: the posterior mean and log variance, or the codes."""
    target = output_file(out, (".npz",))
    if files and data is not None:
        raise ValueError(f"`--data` must not be given beside files, got {data!r}.")
    if condition and not files:
        raise ValueError("`--condition` is for files of your own: a data set has its labels.")
    _check_exist(files or ())
    trained = load_model(model)
    import numpy as np

    from vaelib import plots
    from vaelib.data.dataset import changed

    reading = reading_options(context.params)
    if files:
        images, _ = _read(trained, model, files, reading)
        view, rows = with_condition(trained, model, condition, len(images))
        images = changed(images, condition=rows)
    else:
        view = trained
        images = load_data(model, trained, data, split, download=download, reading=reading)
    tensors, points = _embedding(trained, view, images)
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
