"""``vaelib train``; the same under ``accelerate launch`` and ``torchrun``."""

from __future__ import annotations

import os
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vaelib._files import check_claimed, claim, writable_directory
from vaelib.cli.common import RECORD_NAME, check_record, print_json, read_record, write_record
from vaelib.cli.making import check_latent, images_of, make_model, make_trainer
from vaelib.cli.options import (
    DATA_HELP,
    ChannelsLast,
    Download,
    Frames,
    ImageSize,
    ImagesKey,
    Json,
    Latent,
    Levels,
    Likelihood,
    Seed,
    ValueRange,
    a_name,
    a_path,
    finite,
    positive,
)

_VALIDATION = {
    "val": "the split `val`",
    "held out": "a fixed random tenth of the training images",
    "test": "the split `test`, since version 0.1 began the run so",
}


def train(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Option(help=DATA_HELP, parser=a_name, metavar="NAME_OR_PATH"),
    ] = "shapes",
    epochs: Annotated[int, typer.Option(help="Passes over the training images.", min=1)] = 10,
    batch_size: Annotated[int, typer.Option(help="Images per step.", min=1)] = 64,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory of the run; runs/NAME if not given.", parser=a_path),
    ] = None,
    preset: Annotated[
        Literal["conv", "autoencoder_kl", "article"],
        typer.Option(
            help="conv: vaelib's own network. autoencoder_kl: the first stage of a latent generator, with a latent map."
            " article: the 2021 tutorial's for 32x32, with its recipe (Adam, constant learning rate 1e-3)."
        ),
    ] = "conv",
    factor: Annotated[
        int | None,
        typer.Option(
            help="How many times smaller than the image the latent map is: 1, 2, 4, 8, 16 or 32; 8 if not given (preset"
            " autoencoder_kl).",
            min=1,
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(help="Channels at the image's resolution (preset autoencoder_kl); 128 if not given.", min=1),
    ] = None,
    adversarial: Annotated[
        bool,
        typer.Option(
            "--adversarial",
            help="Train with a perceptual term, and a discriminator whose term enters after a quarter of the steps, for"
            " sharp images.",
        ),
    ] = False,
    image_size: ImageSize = None,
    latent_dim: Annotated[
        int | None,
        typer.Option(help="Size of the latent vector (preset conv); 32 if not given.", min=1),
    ] = None,
    likelihood: Annotated[
        Likelihood | None,
        typer.Option(
            help="p(x|z) (not preset article); if not given, bernoulli, and for preset autoencoder_kl laplace."
        ),
    ] = None,
    latent: Annotated[
        Latent | None,
        typer.Option(
            help="gaussian if not given; or codes, one for each 4 x 4 pixels (preset conv) or place of the map: vq (a"
            " learned codebook), rvq (4 of them, each for what is left), fsq (levels), bsq (bits). Not preset article."
        ),
    ] = None,
    num_codes: Annotated[
        int | None,
        typer.Option(help="Codes to choose from (latent vq, rvq, bsq); 512 if not given.", min=2, max=2**24),
    ] = None,
    levels: Levels = None,
    condition: Annotated[
        Literal["labels", "factors"] | None,
        typer.Option(
            help="Given to the model in addition to each image: labels (class folders, named sets) or factors (shapes)."
        ),
    ] = None,
    beta: Annotated[float, typer.Option(help="Weight of the KL; 1 is the ELBO.", min=0, callback=finite)] = 1.0,
    kl_warmup: Annotated[int, typer.Option(help="Steps over which beta rises from 0; 0 for none.", min=0)] = 0,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate; if not given, 5e-3, for preset autoencoder_kl 3e-4, for article 1e-3.",
            callback=positive,
        ),
    ] = None,
    binarize: Annotated[
        str | None,
        typer.Option(help="static or dynamic: black and white pixels drawn once, or again each time."),
    ] = None,
    value_range: ValueRange = None,
    channels_last: ChannelsLast = None,
    frames: Frames = None,
    images_key: ImagesKey = None,
    lr_schedule: Annotated[
        Literal["cosine", "one_cycle", "constant"] | None,
        typer.Option(help="Schedule of the learning rate; if not given, cosine, and for preset article constant."),
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror training images left to right at random.")] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Leave images on disk: for folders and shards larger than memory.")
    ] = False,
    ema: Annotated[
        float | None,
        typer.Option(help="Average the weights with this decay, such as 0.999.", min=0, max=1, callback=finite),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="End after this many epochs without a new best.", min=1),
    ] = None,
    clip_norm: Annotated[
        float | None,
        typer.Option(help="Scale larger gradients down to this norm.", callback=positive),
    ] = None,
    accumulate: Annotated[
        int, typer.Option(help="Number of pieces that each batch is cut into, to need less memory.", min=1)
    ] = 1,
    precision: Annotated[
        Literal["fp32", "tf32", "bf16", "fp16"] | None,
        typer.Option(help="Precision of the networks; what `accelerate launch` says if not given."),
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="Compile the step, but for --adversarial; by the run's length if not given."
        ),
    ] = None,
    sync_batch_norm: Annotated[
        bool, typer.Option("--sync-batch-norm", help="Batch norm over all processes' images (CUDA).")
    ] = False,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(help="Steps between checkpoints, besides one per epoch.", min=1),
    ] = None,
    keep_last: Annotated[int, typer.Option(help="Checkpoints to keep.", min=1)] = 2,
    tracker: Annotated[
        list[str] | None,
        typer.Option(help="tensorboard, wandb, ...: a tracker by accelerate's name; repeatable."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume the run in --out with its options, but for those that are given. With --data it starts the run"
            " where there is none, so the same command serves both.",
        ),
    ] = False,
    download: Download = False,
    json_output: Json = False,
) -> None:
    """Train a VAE on images, and keep its best and last weights, its history, checkpoints and image grids.

    Validation, and so the choice of the best weights, is on the `val` split of data that have one, else on a fixed
    random tenth of the training images. The test split is left to `vaelib evaluate`.
    """
    options = dict(context.params)
    out = out or Path("runs") / Path(data).stem
    record = read_record(out)
    given = {name for name in options if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    if resume and not record and "data" not in given:
        raise FileNotFoundError(
            f"`--resume` needs a run in --out, and {out} holds none. With --data it starts the run if there is none."
        )
    if resume and record:
        kept = {name: value for name, value in record.items() if name in options and name not in given}
        check_record(train, out, kept)
        options |= kept
        options["validation"] = record.get("validation", "test")  # as version 0.1 did
    elif options["preset"] == "article":
        options["image_size"] = (32, 32) if image_size is None else image_size
    check_latent(options)
    options["out"] = out
    _train(options, begins=not (resume and record), json_output=json_output)


def _train(options: dict[str, Any], *, begins: bool, json_output: bool) -> None:
    import torch

    from vaelib.evaluation.inputs import ImageValues
    from vaelib.training import TrainingInterrupted
    from vaelib.training.hardware import is_main_process
    from vaelib.training.processes import locked
    from vaelib.training.recipe import OUTPUTS

    main, out = is_main_process(), options["out"]
    if main and not options["resume"] and (out / RECORD_NAME).exists() and (out / "history.csv").exists():
        raise FileExistsError(f"`--out` must not hold a run already, got {out}; give another, or --resume it.")
    if main and begins:
        check_claimed("--out", out, (RECORD_NAME, *OUTPUTS))
    train_images, val_images = _train_and_val(options)
    if main and begins and options["resume"]:
        typer.echo(f"{out} holds no run: it starts.", err=True)
    if main and not json_output:
        typer.echo(f"Validation on {len(val_images):,} images: {_VALIDATION[options['validation']]}.", err=True)
    torch.manual_seed(options["seed"])
    model = make_model(options, train_images)
    trainer = make_trainer(options, train_images.image_shape)
    if main:
        writable_directory("--out", out)
    record = _record(options, train_images.image_shape)
    try:
        with locked(out) if main else nullcontext():  # before anything of a run that is under way is changed
            if main and begins:
                claim(out, (RECORD_NAME, *OUTPUTS))
                write_record(out, record)
            history = trainer.fit(
                model, train_images, val_images, resume=options["resume"], progress=main and not json_output
            )
    except TrainingInterrupted:
        if main:
            write_record(out, record)
            typer.echo(f"Resume with: vaelib train --out {shlex.quote(str(out))} --resume", err=True)
        raise
    if not main:
        return
    write_record(out, record)  # of a resumed run only now, since options that do not fit it are refused by then
    final, epochs = history[-1], len(history)
    if json_output:
        print_json({"out": str(out), "epochs": epochs, "train": final.train._asdict(), "val": final.val._asdict()})
    else:
        typer.echo(
            f"{final.val.reconstruction + final.val.kl:.2f} nats per validation image after {epochs} epochs."
            f" The run is in {out}. Next: vaelib evaluate {out}"
        )
        values = ImageValues(model.likelihood)
        values.watch(next(val_images.fetch([torch.arange(min(64, len(val_images)))], torch.device("cpu"))).x)
        if values.note_on_nats:
            typer.echo(values.note_on_nats)


def _record(options: dict[str, Any], image_shape: tuple[int, ...]) -> dict[str, Any]:
    """The options as JSON, the data by their absolute path and with the size that the images have."""
    from vaelib.data.named import BUILT_IN

    data = options["data"] if options["data"] in BUILT_IN else os.path.abspath(options["data"])
    left_out = ("out", "resume", "json_output", "download")
    kept = {name: value for name, value in options.items() if name not in left_out}
    return kept | {"data": data, "image_size": list(image_shape[1:])}


def _train_and_val(options: dict[str, Any]) -> tuple[Any, Any]:
    """The images to train on and those to validate on; ``validation`` among the options says which those are."""
    from vaelib.data import hold_out, splits

    found = splits(options["data"], images_key=options["images_key"])
    options.setdefault("validation", "val" if "val" in found else "held out")
    train = images_of(options, "train")
    if options["validation"] == "held out":
        return hold_out(train)
    return train, images_of(options, options["validation"])
