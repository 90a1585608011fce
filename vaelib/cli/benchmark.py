"""``vaelib benchmark``: which way to run a model is fastest here, and still right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaelib.cli.common import Json, a_path, is_bundle, load_model, print_json, print_table

if TYPE_CHECKING:
    from vaelib.benchmark.matrix import Report, Row

__all__ = ["benchmark"]


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
        int | None, typer.Option(help="Of every way to run it; as many as torch takes if not given.", min=1, max=1024)
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
    _print(report)


def _print(report: Report) -> None:
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
