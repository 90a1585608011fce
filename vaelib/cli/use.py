"""``vaelib export`` and ``vaelib info``."""

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
from vaelib.cli.common import (
    Data,
    Download,
    Json,
    Model,
    Split,
    a_path,
    finite,
    is_bundle,
    load_data,
    load_model,
    print_json,
    print_table,
    read_record,
)
from vaelib.cli.evaluate import evaluation_of

__all__ = ["export", "info"]


def export(
    model: Model,
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
        typer.Option(help="fp16: for GPUs. int8: for CPUs, calibrated on the data, refused unless it is worth it."),
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
    trained = load_model(model)
    from vaelib.export import export_onnx
    from vaelib.export.lint import lint

    evaluation = calibration = None
    if precision == "int8":
        calibration = load_data(model, trained, data, "train", download=download)[slice(1024)]
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
        facts = _bundle(model)
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


def _bundle(directory: Path) -> dict[str, object]:
    from vaelib.runtime import OnnxVAE

    model = OnnxVAE(directory)
    return {**model.metadata, "graphs": {part: graph.as_json() for part, graph in model.contract.items()}}
