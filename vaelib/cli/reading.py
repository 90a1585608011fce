"""Options that say how files of one's own are read; the record of a run keeps them for the commands that follow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import typer

__all__ = ["ChannelsLast", "Frames", "ImagesKey", "ValueRange", "images_of", "reading_of_run", "reading_options"]

_NAMES = ("value_range", "channels_last", "frames", "images_key")


class Range(NamedTuple):
    """Values of black and white; typer would take a plain pair for an option with two values."""

    low: float
    high: float


def _range(text: str) -> Range:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"must be two numbers such as 0,4095, got {text!r}.") from None
    if not low < high < float("inf") or low == -float("inf"):
        raise typer.BadParameter(f"must be two finite numbers, the first below the second, got {text!r}.")
    return Range(low, high)


ValueRange = Annotated[
    Range | None,
    typer.Option(
        help="Values of black and white in files of your own, such as 0,4095; asked for where they are in doubt.",
        parser=_range,
        metavar="LOW,HIGH",
    ),
]
ChannelsLast = Annotated[
    bool | None,
    typer.Option(
        "--channels-last/--channels-first",
        help="Order of an array's axes, (N, H, W, C) or (N, C, H, W); asked for where its shape leaves it in doubt.",
    ),
]
Frames = Annotated[
    Literal["first", "all"] | None,
    typer.Option(help="Which images of animations and of files of several pages are used."),
]
ImagesKey = Annotated[
    str | None,
    typer.Option(help="Name of the images in a .npz or .pt file of several arrays."),
]


def reading_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that say how files are read, as far as they are given."""
    return {name: options[name] for name in _NAMES if options.get(name) is not None}


def reading_of_run(record: Mapping[str, Any], data: str | None) -> dict[str, Any]:
    """How a run has read its data, if ``data`` are those."""
    is_same = data is None or data == record.get("data") or os.path.abspath(data) == record.get("data")
    return reading_options(record) if is_same else {}


def images_of(options: dict[str, Any], split: str) -> Any:
    """One split of the data that the options of ``train`` name, in memory or as a stream."""
    from vaelib.data import load, stream

    chosen = {name: options[name] for name in ("image_size", "binarize", "condition")} | {
        "flip": options["flip"] and split == "train"
    }
    chosen |= reading_options(options)
    if options["stream"]:
        if {"channels_last", "images_key"} & set(chosen):
            raise ValueError("`--channels-last` and `--images-key` are for arrays, which `--stream` does not read.")
        return stream(options["data"], split, **chosen)
    return load(options["data"], split, download=options["download"], **chosen)
