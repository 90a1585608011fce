"""What the commands share: their options' words, the run record, and how results are printed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from vaelib._checks import ModelFileError
from vaelib._files import written_whole

if TYPE_CHECKING:
    from vaelib.data import ImageDataset

__all__ = ["RECORD_NAME", "RunRecord", "load_data", "print_json", "print_table", "read_record", "write_record"]

RECORD_NAME = "run.json"
_WIDEST = 200

Model = Annotated[
    Path,
    typer.Argument(help="Directory of a trained model: what `vaelib train --out` wrote.", show_default=False),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="shapes, mnist, fashion_mnist, kmnist, cifar10, svhn, celeba (below the folder that the environment"
        " variable VAELIB_DATA names); or a path: a folder of pictures, a .npy, .npz or .pt file, .tar shards."
        " If not given: the data that the model was trained on.",
        show_default=False,
    ),
]
Split = Annotated[Literal["train", "val", "test", "all"], typer.Option(help="Which images.")]
Seed = Annotated[
    int, typer.Option(help="Of the weights, the order and all draws: the same seed, the same result.", min=0)
]
Download = Annotated[bool, typer.Option("--download", help="Fetch a named data set that is missing.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output instead of text.")]

RunRecord = dict[str, Any]
"""How a run was made: data, image_size, binarize and the training options."""


def write_record(directory: Path, record: RunRecord) -> None:
    """Keep how the run was made beside its model."""
    with written_whole(directory / RECORD_NAME) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


def read_record(directory: Path) -> RunRecord:
    """How the run was made; empty for a model that ``vaelib train`` did not make."""
    places = (directory / RECORD_NAME, directory.parent / RECORD_NAME)  # the second for RUN/best and RUN/last
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return {}
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ModelFileError(f"{path} is no JSON: {error}.") from error
    return record if isinstance(record, dict) else {}


def load_data(
    directory: Path,
    model: Any,
    data: str | None,
    split: str,
    *,
    download: bool,
    reading: Mapping[str, Any] | None = None,
) -> ImageDataset:
    """The images to use a model on: those named, or those of its run, read as then, at the model's size."""
    from vaelib.cli.reading import reading_of_run
    from vaelib.data import load

    record = read_record(directory)
    name = data or record.get("data")
    if name is None:
        raise ValueError(f"`--data` must be given: {directory} does not say what the model was trained on.")
    options = reading_of_run(record, data) | dict(reading or {})
    return load(
        name, split, image_size=model.image_shape[1:], binarize=record.get("binarize"), download=download, **options
    )


def print_json(content: Mapping[str, Any]) -> None:
    """One JSON object on standard output; numbers that JSON does not have are null."""
    print(json.dumps(_finite(content), indent=2, allow_nan=False))  # noqa: T201


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on standard output."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    width = Console(width=_WIDEST).measure(table).maximum  # a terminal wraps lines; rich would cut words
    (console if width <= console.width else Console(width=width)).print(table)
