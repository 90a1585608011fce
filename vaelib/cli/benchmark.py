"""``vaelib benchmark``: which way to run a model is fastest here, and still right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vaelib.cli.common import Json, Model, print_json, print_table

if TYPE_CHECKING:
    from vaelib.benchmark.matrix import Report, Row

__all__ = ["benchmark"]


def benchmark(
    model: Model,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer batches and shorter turns.")] = False,
    backend: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be given several times.", show_default=False)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Of every way to run it; as many as torch takes if not given.", min=1)
    ] = None,
    json_output: Json = False,
) -> None:
    """Measure the ways to run a model on this machine, side by side, with the accuracy of each."""
    from vaelib import serialization
    from vaelib.benchmark.backends import BACKENDS
    from vaelib.benchmark.matrix import measure

    report = measure(
        serialization.load(model),
        backends=backend or tuple(BACKENDS),
        batches=(1, 64) if quick else (1, 8, 64, 256, 1024),
        threads=threads,
        seconds=0.02 if quick else 0.1,
        tell=lambda line: typer.echo(line, err=True),
    )
    if json_output:
        print_json(
            report._asdict()
            | {
                "rows": [row._asdict() for row in report.rows],
                "noisy": report.noisy,
                "recommendation": report.recommendation(),
            }
        )
        return
    _print(report)


def _print(report: Report) -> None:
    for operation in dict.fromkeys(row.operation for row in report.rows):
        print_table(
            f"{operation}: {report.hardware}, {report.threads} threads each",
            ["batch", "images/s", "p50 ms", "p90 ms", "p99 ms", "first s", "error"],
            [_line(row) for row in report.rows if row.operation == operation],
        )
    print_table("Memory", ["", "peak MiB"], [[name, f"{peak:,.0f}"] for name, peak in report.peak_mib.items()])
    for name, reason in report.skipped.items():
        typer.echo(f"Not measured: {name} ({reason}).")
    if report.noisy:
        typer.echo(f"Something else ran beside this (load {report.load:.1f} before): measure again on a quiet machine.")
    typer.echo(report.recommendation())


def _line(row: Row) -> list[str]:
    return [
        f"{row.batch}, {row.backend}",
        f"{row.images_per_second:,.0f}" if row.correct else "wrong",
        *(f"{value:.3g}" for value in (row.p50, row.p90, row.p99, row.first_call)),
        f"{row.error:.0e}",
    ]
