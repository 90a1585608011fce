"""The commands that use a trained model."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vaelib import __version__
from vaelib._files import writable_directory, written_whole
from vaelib.cli.common import Data, Download, Json, Model, Seed, Split, load_data, print_json, print_table, read_record
from vaelib.cli.evaluate import evaluation_of

__all__ = ["encode", "export", "info", "reconstruct", "sample"]


def reconstruct(
    model: Model,
    pictures: Annotated[
        list[Path], typer.Argument(help="Your picture files, any size and format.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The PNG: originals above, reconstructions below.")] = Path(
        "reconstructions.png"
    ),
    json_output: Json = False,
) -> None:
    """Send your own pictures through a model, and say how well it explains each (nats; lower is more typical)."""
    import torch

    from vaelib import plots, serialization
    from vaelib.data import ImageDataset, read_pictures
    from vaelib.evaluation import per_image_terms
    from vaelib.objectives import Elbo, Reconstruction
    from vaelib.vae import VAE

    directory = writable_directory("--out", out.parent)
    trained = serialization.load(model)
    channels, *size = trained.image_shape
    if channels not in (1, 3):
        raise ValueError(f"Picture files have 1 or 3 channels, the model in {model} has {channels}.")
    x = ImageDataset(read_pictures(pictures, image_size=(size[0], size[1]), channels=channels)).batch(slice(None))
    plots.save_pairs(x, trained.reconstruct(x), directory / out.name)
    objective = Elbo() if isinstance(trained, VAE) else Reconstruction()
    terms = per_image_terms(trained, [x], objective, generator=torch.Generator().manual_seed(0))
    names = [name for name in terms._fields if name != "loss"]
    rows = {str(file): {name: getattr(terms, name)[i].item() for name in names} for i, file in enumerate(pictures)}
    if json_output:
        print_json({"out": str(out), "pictures": rows})
        return
    print_table(
        f"Written to {out}; nats per image",
        ["picture", *names],
        [[file, *(f"{value:.1f}" for value in row.values())] for file, row in rows.items()],
    )


def sample(
    model: Model,
    num: Annotated[int, typer.Option(help="How many pictures.", min=1)] = 64,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="The PNG: a grid of pictures.")] = Path("samples.png"),
) -> None:
    """Draw new pictures from a model's prior."""
    import torch

    from vaelib import plots, serialization
    from vaelib.vae import VAE

    directory = writable_directory("--out", out.parent)
    vae = serialization.load(model)
    if not isinstance(vae, VAE):
        raise TypeError(f"Only a VAE has a prior to sample from, {model} holds a {type(vae).__name__}.")
    plots.save_grid(vae.sample(num, generator=torch.Generator().manual_seed(seed)), directory / out.name)
    typer.echo(f"{num} pictures written to {out}")


def encode(
    model: Model,
    data: Data = None,
    split: Split = "test",
    out: Annotated[
        Path, typer.Option(help="The .npz file: mu and logvar (of an autoencoder: z), labels, factors.")
    ] = Path("embedding.npz"),
    plot: Annotated[
        bool, typer.Option("--plot", help="Also draw the embedding in the plane, beside the .npz.")
    ] = False,
    download: Download = False,
) -> None:
    """Write the embedding of a data set: the posterior mean and log variance of every image."""
    import numpy as np
    import torch

    from vaelib import evaluation, plots, serialization

    directory = writable_directory("--out", out.parent)
    target = directory / out.with_suffix(".npz").name
    trained = serialization.load(model)
    images = load_data(model, trained, data, split, download=download)
    generator = torch.Generator().manual_seed(0)
    codes = evaluation.encode(trained, images, generator=generator)
    arrays = {"z": codes} if isinstance(codes, torch.Tensor) else dict(zip(("mu", "logvar"), codes, strict=True))
    points = next(iter(arrays.values())).flatten(1)
    known = {"labels": images.labels, "factors": images.factors}
    arrays |= {name: values for name, values in known.items() if values is not None}
    with written_whole(target) as temporary:
        np.savez(temporary, **{name: values.numpy() for name, values in arrays.items()})  # type: ignore[arg-type]
    typer.echo(f"{len(images)} images written to {target}: {', '.join(arrays)}")
    if plot:
        plots.save_embedding(points, images.labels, target.with_suffix(".png"))
        typer.echo(f"drawn in {target.with_suffix('.png')}")


def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="Directory of the bundle: three graphs, a model card, a manifest.")] = Path(
        "bundle"
    ),
    opset: Annotated[int, typer.Option(help="ONNX operator set, 18 to 23.")] = 18,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Leave height and width free; for models with a latent map.")
    ] = False,
    evaluate_too: Annotated[
        bool, typer.Option("--evaluate", help="Measure the ELBO on the data and write it on the model card.")
    ] = False,
    speed: Annotated[
        bool, typer.Option("--speed", help="Measure the speed on this CPU and write it on the model card.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a model that onnxruntime could run faster if built otherwise.")
    ] = False,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option(help="fp16: for GPUs. int8: for CPUs, calibrated on the data, refused unless it is worth it."),
    ] = "fp32",
    max_loss: Annotated[float, typer.Option(help="What int8 may cost, in nats per image.", min=0)] = 0.5,
    data: Data = None,
    split: Split = "test",
    download: Download = False,
    json_output: Json = False,
) -> None:
    """Export a model to ONNX, prove that onnxruntime agrees with torch, and keep the files only if it does."""
    from vaelib import serialization
    from vaelib.export import export_onnx
    from vaelib.export.lint import lint

    trained = serialization.load(model)
    evaluation = calibration = None
    if precision == "int8":
        calibration = load_data(model, trained, data, "train", download=download).batch(slice(1024))
    if evaluate_too:
        images = load_data(model, trained, data, split, download=download)
        name = data or read_record(model)["data"]
        found = {
            name: entry for name, entry in evaluation_of(trained, images, seed=0).items() if entry not in (None, "")
        }
        evaluation = {"data": f"{Path(name).name}, {split}", **found}
    parity = export_onnx(
        trained,
        out,
        opset=opset,
        dynamic_size=dynamic_size,
        evaluation=evaluation,
        benchmark=speed,
        strict=strict,
        precision=precision,
        calibration=calibration,
        max_loss=max_loss,
    )
    findings = [str(finding) for finding in lint({path.name: path.read_bytes() for path in out.glob("*.onnx")})]
    if json_output:
        figures = {part: {name: p._asdict() for name, p in outputs.items()} for part, outputs in parity.items()}
        print_json(figures | {"lint": findings})
        return
    print_table(
        f"Written to {out}; largest difference from torch",
        ["output", "absolute", "of the output's scale"],
        [
            [f"{part}.onnx {name}", f"{p.max_abs:.1e}", f"{p.max_rel:.1e}"]
            for part, outputs in parity.items()
            for name, p in outputs.items()
        ],
    )
    for finding in findings:
        typer.echo(f"Not at onnxruntime's fastest: {finding}")


def info(
    model: Annotated[
        Path | None,
        typer.Argument(help="A model or bundle directory; versions and machine if not given.", show_default=False),
    ] = None,
    json_output: Json = False,
) -> None:
    """Say what a model is, or which versions and hardware vaelib runs on."""
    facts = _machine() if model is None else _bundle(model) if (model / "decoder.onnx").is_file() else _model(model)
    if json_output:
        print_json(facts)
    else:
        list_of_facts = Table.grid(padding=(0, 2))
        for name, value in facts.items():
            list_of_facts.add_row(Text(name), Text(value if isinstance(value, str) else json.dumps(value)))
        Console().print(list_of_facts)


def _machine() -> dict[str, object]:
    import torch

    packages = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy", "accelerate", "safetensors")
    versions: dict[str, object] = {"vaelib": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return versions | {"cpu threads": torch.get_num_threads(), "gpus": gpus or "none"}


def _model(directory: Path) -> dict[str, object]:
    from vaelib import serialization

    model = serialization.load(directory)
    parts = {name: type(part).__name__ for name, part in model.named_children()}
    return {
        "class": type(model).__name__,
        **parts,
        "image_shape": list(model.image_shape),
        "latent_shape": list(model.latent_shape),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "config": serialization.describe(model),
    }


def _bundle(directory: Path) -> dict[str, object]:
    from vaelib.runtime import OnnxVAE

    return dict(OnnxVAE(directory).metadata)
