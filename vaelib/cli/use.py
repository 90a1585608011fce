"""``vaelib export``, ``vaelib benchmark`` and ``vaelib info``."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vaelib import __version__
from vaelib.cli.common import is_bundle, load_data, load_model, print_json, print_table, read_record
from vaelib.cli.evaluate import evaluation_of
from vaelib.cli.options import Data, Download, Json, Split, a_path, finite

if TYPE_CHECKING:
    from vaelib.benchmark.matrix import Report, Row


def export(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="Directory of a trained model; none with --from-diffusers.", parser=a_path, metavar="MODEL"
        ),
    ] = None,
    from_diffusers: Annotated[
        Path | None,
        typer.Option(
            "--from-diffusers",
            help="Directory of an AutoencoderKL, VQModel or AutoencoderTiny of diffusers, in the place of MODEL.",
            parser=a_path,
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side of the images of a model from diffusers; its sample_size if not given.", min=1),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Directory of the bundle: three graphs, a model card, a manifest.", parser=a_path)
    ] = Path("bundle"),
    opset: Annotated[int, typer.Option(help="ONNX operator set.", min=18, max=23)] = 18,
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
        typer.Option(
            help="fp16: for GPUs; the room for it is measured on the data if --data is given, else on random images."
            " int8: for CPUs, calibrated on the data, refused unless it is worth it."
        ),
    ] = "fp32",
    max_loss: Annotated[
        float, typer.Option(help="What int8 may cost, in nats per image.", min=0, callback=finite)
    ] = 0.5,
    data: Data = None,
    split: Split = "test",
    download: Download = False,
    json_output: Json = False,
) -> None:
    """Export a model to ONNX, prove that onnxruntime agrees with torch, and keep the files only if it does."""
    directory, trained = _to_export(model, from_diffusers, image_size)
    from vaelib.export import export_onnx
    from vaelib.export.lint import lint

    evaluation = calibration = None
    if precision == "int8" or (precision == "fp16" and data is not None):
        calibration = load_data(directory, trained, data, "train", download=download)[slice(1024)]
    if evaluate_too:
        images = load_data(directory, trained, data, split, download=download)
        name = data or read_record(directory)["data"]
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
    graphs = {f"{part}.onnx": (out / f"{part}.onnx").read_bytes() for part in parity}
    findings = [str(finding) for finding in lint(graphs)]
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


def _to_export(model: Path | None, from_diffusers: Path | None, image_size: int | None) -> tuple[Path, Any]:
    """The directory that was named, and its model."""
    if from_diffusers is None:
        if model is None:
            raise ValueError("`MODEL` must be given, or `--from-diffusers`.")
        if image_size is not None:
            raise ValueError("`--image-size` is for `--from-diffusers`: a model of vaelib's has its own.")
        return model, load_model(model)
    if model is not None:
        raise ValueError(f"`MODEL` must not be given with `--from-diffusers`, got {str(model)!r}.")
    from vaelib.interop import from_diffusers as bring

    return from_diffusers, bring(from_diffusers, image_size=image_size)


def benchmark(
    model: Annotated[
        Path,
        typer.Argument(
            help="Directory of a trained model, or of an exported bundle, which torch cannot run.",
            parser=a_path,
            metavar="MODEL_OR_BUNDLE",
        ),
    ],
    quick: Annotated[bool, typer.Option("--quick", help="Fewer batches and shorter turns.")] = False,
    backend: Annotated[list[str] | None, typer.Option(help="Only this one; may be given several times.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of every backend; as many as torch takes if not given.", min=1, max=1024)
    ] = None,
    json_output: Json = False,
) -> None:
    """Measure the ways to run a model on this machine, side by side, with the accuracy of each."""
    subject = model if is_bundle(model) else load_model(model)
    from vaelib.benchmark.backends import BACKENDS
    from vaelib.benchmark.matrix import measure

    report = measure(
        subject,
        backends=backend or tuple(BACKENDS),
        batches=(1, 64) if quick else (1, 8, 64, 256, 1024),
        threads=threads,
        seconds=0.02 if quick else 0.1,
        rounds=3 if quick else 7,
        tell=lambda line: typer.echo(line, err=True),
    )
    if json_output:
        print_json(report.summary())
        return
    _print_report(report)


def _print_report(report: Report) -> None:
    for operation in dict.fromkeys(row.operation for row in report.rows):
        print_table(
            f"{operation}: {report.hardware}, {report.threads} threads each",
            ["batch", "images/s", "p50 ms", "p90 ms", "p99 ms", "first s", "peak MiB", "of products", "error"],
            [_line(row) for row in report.rows if row.operation == operation],
        )
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in report.products.items())
    typer.echo(f"Matrix products here: {rates}.")
    for name, reason in report.skipped.items():
        typer.echo(f"Not measured: {name} ({reason}).")
    for name, reason in report.failed.items():
        typer.echo(f"Failed: {name} ({reason}).")
    if report.noisy:
        typer.echo(f"Something else ran beside this (load {report.load:.1f} before): measure again on a quiet machine.")
    typer.echo(report.recommendation())


def _line(row: Row) -> list[str]:
    return [
        f"{row.batch}, {row.backend}",
        f"{row.images_per_second:,.0f}" if row.correct else "wrong",
        *(f"{value:.3g}" for value in (*row.percentiles, row.first_call)),
        f"{row.peak_mib:,.0f}",
        "" if row.of_products is None else f"{row.of_products:.0%}",
        f"{row.error:.0e}",
    ]


def info(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="A model or bundle directory; versions and machine if not given.",
            parser=a_path,
            metavar="[MODEL_OR_BUNDLE]",
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Say what a model is, or which versions and hardware vaelib runs on."""
    if model is None:
        facts = _machine()
    elif is_bundle(model):
        from vaelib.runtime import OnnxVAE

        opened = OnnxVAE(model)
        facts = {**opened.metadata, "graphs": {part: graph.as_json() for part, graph in opened.contract.items()}}
    else:
        facts = _model(model)
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
    model = load_model(directory)
    from vaelib import serialization

    parts = {name: type(part).__name__ for name, part in model.named_children()}
    return {
        "class": type(model).__name__,
        **parts,
        "image_shape": list(model.image_shape),
        "latent_shape": list(model.latent_shape),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "config": serialization.describe(model),
    }
