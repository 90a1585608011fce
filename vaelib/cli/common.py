"""What the commands share: their options' words, the run record, and how results are printed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vaelib._checks import LARGEST_INT, ModelFileError, shown
from vaelib._files import committed, read_json, writable_directory, written_whole

if TYPE_CHECKING:
    from vaelib.data import ImageDataset

__all__ = [
    "RECORD_NAME",
    "RunRecord",
    "check_bundle",
    "check_model",
    "is_bundle",
    "load_data",
    "load_model",
    "output_file",
    "print_json",
    "print_table",
    "read_record",
    "write_record",
]

RECORD_NAME = "run.json"
LARGEST_IMAGE = 2**24
"""Pixels of a size that an option names, 4096 x 4096."""
_CONFIG_NAME, _MANIFEST_NAME = "config.json", "manifest.json"
_RECORDED = {"data": str, "binarize": str}
_WIDEST = 200


def a_path(text: str | Path) -> Path:
    """The path that an option names; the empty one would be the working directory."""
    if not str(text) or "\0" in str(text):
        raise typer.BadParameter(f"must be the path of a file or directory, got {str(text)!r}.")
    return Path(text)


def a_name(text: str) -> str:
    """A name or path that is not empty."""
    a_path(text)
    return text


class Size(NamedTuple):
    """Of an image, in pixels."""

    height: int
    width: int


def image_size(text: str) -> Size:
    """Height and width from ``"28"`` or ``"28,36"``."""
    sides = str(text).split(",")
    if not 1 <= len(sides) <= 2 or not all(re.fullmatch(r"\s*[0-9]{1,6}\s*", side) for side in sides):
        raise typer.BadParameter(f"must be a number of pixels, or height,width such as 28,36, got {text!r}.")
    height, width = int(sides[0]), int(sides[-1])
    if not 0 < height * width <= LARGEST_IMAGE:
        raise typer.BadParameter(f"must be from 1 to {LARGEST_IMAGE} pixels in all (4096 x 4096), got {text!r}.")
    return Size(height, width)


def finite(value: float | None) -> float | None:
    """A callback that refuses nan and inf."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"must be a finite number, got {value}.")
    return value


def positive(value: float | None) -> float | None:
    """A callback that refuses what is not above 0, nan and inf too."""
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"must be a finite number above 0, got {value}.")
    return value


Model = Annotated[
    Path,
    typer.Argument(
        help="Directory of a trained model: what `vaelib train --out` wrote.", parser=a_path, metavar="MODEL"
    ),
]
DATA_HELP = (
    "shapes, mnist, fashion_mnist, kmnist, cifar10, svhn, celeba (below the folder that the environment variable"
    " VAELIB_DATA names); or a path: a folder of images, a .npy, .npz or .pt file, .tar shards."
)
Data = Annotated[
    str | None,
    typer.Option(
        help=f"{DATA_HELP} If not given: the data that the model was trained on.", parser=a_name, metavar="NAME_OR_PATH"
    ),
]
ImageSize = Annotated[
    Size | None,  # typer would take a plain pair for an option with two values
    typer.Option(
        help="Resize to this height and width, one number for a square; the data's own size if not given.",
        parser=image_size,
        metavar="N or H,W",
    ),
]
Split = Annotated[Literal["train", "val", "test", "all"], typer.Option(help="Which images.")]
Seed = Annotated[
    int,
    typer.Option(
        help="Of the weights, the order and all draws: the same seed, the same result.", min=0, max=LARGEST_INT
    ),
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
    """How the run was made; empty for a model that ``vaelib train`` did not make.

    Raises:
        ModelFileError: A ``ValueError``: if the record is torn, or its values cannot be those of a run.
    """
    places = (directory / RECORD_NAME, directory.parent / RECORD_NAME)  # the second for RUN/best and RUN/last
    path = next((place for place in places if place.exists()), None)
    if path is None:
        return {}
    try:
        record = read_json(path, 2**20)
    except ValueError as error:
        raise ModelFileError(f"{error} It is the record of a run; without it, give `--data`.") from error
    if not isinstance(record, dict):
        raise ModelFileError(f"{path} must hold a JSON object, got {shown(record)}.")
    for name, kinds in _RECORDED.items():
        if not isinstance(record.get(name), kinds | None):
            raise ModelFileError(f"`{name}` in {path} must be {kinds.__name__} or null, got {shown(record[name])}.")
    return record


def check_record(command: Callable[..., Any], out: Path, kept: Mapping[str, Any]) -> None:
    """Raise ``ModelFileError`` unless each of these values of a run's record is of the type of its option."""
    types = get_type_hints(command)
    for name, value in kept.items():
        if not _fits(types[name], value):
            words = " | ".join(map(repr, get_args(types[name]))) or types[name].__name__
            raise ModelFileError(f"`{name}` in {out / RECORD_NAME} must be {words}, got {shown(value)}.")


def _fits(kind: Any, value: Any) -> bool:
    """Whether a JSON value is of the type of an option; pairs and lists are checked by what reads them."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_args(kind) and get_origin(kind) is not list:
        return any(_fits(part, value) for part in get_args(kind))
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in (str, bool, type(None)) else isinstance(value, list)


def check_model(directory: Path) -> None:
    """Raise ``FileNotFoundError`` if no model is there, before torch is loaded to find that out."""
    if any(committed(place, _CONFIG_NAME, _CONFIG_NAME).is_file() for place in (directory, directory / "best")):
        return
    hint = "."
    if (directory / _MANIFEST_NAME).is_file():
        hint = f": {directory} is an exported bundle, this needs the model that it was exported from."
    raise FileNotFoundError(
        f"`MODEL` must hold config.json and model.safetensors; there is no {directory / _CONFIG_NAME}{hint}"
    )


def load_model(directory: Path) -> Any:
    """The model of a directory; torch is loaded once it is known that one is there."""
    check_model(directory)
    from vaelib import serialization

    return serialization.load(directory)


def is_bundle(directory: Path) -> bool:
    """Whether only a bundle is there; a model beside it goes first."""
    return (directory / _MANIFEST_NAME).is_file() and not (directory / _CONFIG_NAME).is_file()


def check_bundle(directory: Path) -> None:
    """The same of a bundle, before onnxruntime is loaded."""
    if not committed(directory, _MANIFEST_NAME, _MANIFEST_NAME).is_file():
        hint = "."
        if (directory / _CONFIG_NAME).is_file() or (directory / "best" / _CONFIG_NAME).is_file():
            hint = f": {directory} is a trained model, export it first with `vaelib export`."
        raise FileNotFoundError(
            f"`BUNDLE` must be a bundle of vaelib's; there is no {directory / _MANIFEST_NAME}{hint}"
        )


def output_file(path: Path, suffixes: Collection[str]) -> Path:
    """``path`` once it is known that a file of that name can be written; its suffix says what it will be."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"`--out` must end in {', '.join(suffixes)}, got {str(path)!r}.")
    if path.is_dir():
        raise IsADirectoryError(f"`--out` must be a file, got the directory {path}.")
    return writable_directory("--out", path.parent) / path.name


def load_data(
    directory: Path,
    model: Any,
    data: str | None,
    split: str,
    *,
    download: bool,
    reading: Mapping[str, Any] | None = None,
    condition: str | None = None,
) -> ImageDataset:
    """The images to use a model on: those named, or those of its run, read as then, at the model's size.

    They have the ``condition`` that is named, or the one that the model takes.
    """
    from vaelib.cli.conditions import kind_of_condition
    from vaelib.cli.reading import reading_of_run
    from vaelib.data import load

    record = read_record(directory)
    name = data or record.get("data")
    if name is None:
        raise ValueError(f"`--data` must be given: {directory} does not say what the model was trained on.")
    options = reading_of_run(record, data) | dict(reading or {})
    images = load(
        name,
        split,
        image_size=model.image_shape[1:],
        binarize=record.get("binarize"),
        condition=condition or kind_of_condition(model),
        download=download,
        **options,
    )
    check_channels(images, model, directory, name)
    return images


def check_channels(images: ImageDataset, model: Any, directory: Path, name: str) -> None:
    """Raise ``ValueError`` if images, of data called ``name``, have other channels than the model of a directory."""
    channels, wanted = images.image_shape[0], model.image_shape[0]
    if channels != wanted:
        raise ValueError(
            f"`--data` must have images of as many channels as the model in {directory}, {wanted},"
            f" got {channels} in {name}."
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
        table.add_row(*map(Text, row))  # a file name in brackets is no markup
    console = Console()
    width = Console(width=_WIDEST).measure(table).maximum  # a terminal wraps lines; rich would cut words
    (console if width <= console.width else Console(width=width)).print(table)
