"""What the commands share: the run record, models and their data, and how results are printed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vaelib._checks import ModelFileError, shown
from vaelib._files import committed, read_json, writable_directory, written_whole

if TYPE_CHECKING:
    from vaelib.data import ImageDataset

RECORD_NAME = "run.json"
_CONFIG_NAME, _MANIFEST_NAME = "config.json", "manifest.json"
_RECORDED = {"data": str, "binarize": str}
_READING = ("value_range", "channels_last", "frames", "images_key")
_WIDEST = 200


def write_record(directory: Path, record: Mapping[str, Any]) -> None:
    """Keep how the run was made, its data and the training options, beside its model."""
    with written_whole(directory / RECORD_NAME) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


def read_record(directory: Path) -> dict[str, Any]:
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


def reading_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that say how files are read, as far as they are given."""
    return {name: options[name] for name in _READING if options.get(name) is not None}


def reading_of_run(record: Mapping[str, Any], data: str | None) -> dict[str, Any]:
    """How a run has read its data, if ``data`` are those."""
    is_same = data is None or data == record.get("data") or os.path.abspath(data) == record.get("data")
    return reading_options(record) if is_same else {}


def reading_of_files(directory: Path, channels: int, reading: dict[str, Any]) -> dict[str, Any]:
    """How image files are read for the model of a directory: as those of its run, if these were files too.

    Raises:
        ValueError: If the model's images have other channels than files have.
    """
    from vaelib.data.entries import ARRAY_SUFFIXES

    if channels not in (1, 3):
        raise ValueError(f"Image files have 1 or 3 channels, the model in {directory} has {channels}.")
    record = read_record(directory)
    is_of_arrays = Path(record.get("data") or "").suffix in ARRAY_SUFFIXES
    return reading if is_of_arrays else reading_of_run(record, None) | reading


def rows_at(rows: Any, first: int, count: int) -> Any:
    """The rows of some images."""
    return None if rows is None else rows[first : first + count]


def kind_of_condition(model: Any) -> str | None:
    """What data are asked for: ``"labels"``, ``"factors"`` or nothing."""
    from vaelib.conditions import Labels

    if model.condition is None:
        return None
    return "labels" if isinstance(model.condition, Labels) else "factors"


def with_condition(model: Any, directory: Path, texts: list[str] | None, count: int) -> tuple[Any, Any]:
    """A model, or a view of it without a label where it may do without, and the conditions of ``count`` images.

    These are taken in turn, and again from the first.
    """
    part = model.condition
    if part is None:
        if texts:
            raise ValueError(f"`--condition` must not be given: the model in {directory} takes none, got {texts[0]!r}.")
        return model, None
    if not texts:
        if part.null is not None:
            return model.given(None), None
        names = f" ({', '.join(part.names)})" if getattr(part, "names", None) else ""
        raise ValueError(f"`--condition` must be given: the model in {directory} takes {part}{names}.")
    if len(texts) > count:
        raise ValueError(f"`--condition` must be given at most once for each of {count} images, got {len(texts)}.")
    import torch

    values = [_label(text, part) for text in texts] if kind_of_condition(model) == "labels" else _vectors(texts)
    return model, part.check(values)[torch.arange(count) % len(texts)]


def condition_of(texts: list[str], described: Mapping[str, Any] | None) -> Any:
    """What ``OnnxVAE.given`` takes, of a bundle whose condition is ``described`` so."""
    if described is not None and described["kind"] == "vector":
        return _vectors(texts)
    names = (described or {}).get("names") or ()
    return [int(text) if text.isascii() and text.isdecimal() and text not in names else text for text in texts]


def _label(text: str, labels: Any) -> int | str:
    """A number unless a class has that name."""
    is_number = text.isascii() and text.removeprefix("-").isdecimal() and text not in (labels.names or ())
    return int(text) if is_number else text


def _vectors(texts: list[str]) -> list[list[float]]:
    try:
        return [[float(number) for number in text.split(",")] for text in texts]
    except ValueError:
        raise ValueError(f"`--condition` must be numbers such as 0.2,1, got {', '.join(map(repr, texts))}.") from None


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
