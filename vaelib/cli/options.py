"""The options of the commands: their types, parsers and help."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vaelib._checks import LARGEST_INT

LARGEST_IMAGE = 2**24
"""Pixels of a size that an option names, 4096 x 4096."""


class Numbers(tuple[Any, ...]):
    """Numbers between commas; typer would take a plain tuple for an option with several values."""


def a_path(text: str | Path) -> Path:
    """The path that an option names; the empty one would be the working directory."""
    if not str(text) or "\0" in str(text):
        raise typer.BadParameter(f"must be the path of a file or directory, got {str(text)!r}.")
    return Path(text)


def a_name(text: str) -> str:
    """A name or path that is not empty."""
    a_path(text)
    return text


def image_size(text: str) -> Numbers:
    """Height and width from ``"28"`` or ``"28,36"``."""
    sides = str(text).split(",")
    if not 1 <= len(sides) <= 2 or not all(re.fullmatch(r"\s*[0-9]{1,6}\s*", side) for side in sides):
        raise typer.BadParameter(f"must be a number of pixels, or height,width such as 28,36, got {text!r}.")
    height, width = int(sides[0]), int(sides[-1])
    if not 0 < height * width <= LARGEST_IMAGE:
        raise typer.BadParameter(f"must be from 1 to {LARGEST_IMAGE} pixels in all (4096 x 4096), got {text!r}.")
    return Numbers((height, width))


def value_range(text: str) -> Numbers:
    """Values of black and white from ``"0,4095"``."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"must be two numbers such as 0,4095, got {text!r}.") from None
    if not low < high < float("inf") or low == -float("inf"):
        raise typer.BadParameter(f"must be two finite numbers, the first below the second, got {text!r}.")
    return Numbers((low, high))


def levels(text: str) -> Numbers:
    """Levels of each channel of a code from ``"8,5,5,5"``."""
    parts = text.split(",")
    if not all(part.strip().isascii() and part.strip().isdecimal() for part in parts):
        raise typer.BadParameter(f"must be numbers such as 8,5,5,5, got {text!r}.")
    return Numbers(map(int, parts))


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
    Numbers | None,
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
        help="Seed of the weights, the order and all draws: the same seed, the same result.", min=0, max=LARGEST_INT
    ),
]
Download = Annotated[bool, typer.Option("--download", help="Fetch a named data set that is missing.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output instead of text.")]
ValueRange = Annotated[
    Numbers | None,
    typer.Option(
        help="Values of black and white in files of your own, such as 0,4095; asked for where they are in doubt.",
        parser=value_range,
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
Condition = Annotated[
    list[str] | None,
    typer.Option(
        "--condition",
        help="The condition of a conditional model: a label by its number or the name of its class, or the numbers of a"
        " vector such as 0.2,1. Several times for several: one after the other, for one image each.",
    ),
]
Likelihood = Literal["bernoulli", "continuous_bernoulli", "gaussian", "laplace", "discretized_logistic"]
Latent = Literal["gaussian", "vq", "rvq", "fsq", "bsq"]
Levels = Annotated[
    Numbers | None,
    typer.Option(
        help="Levels of each channel of a code (latent fsq); 8,5,5,5 if not given, 1000 codes.",
        parser=levels,
        metavar="L,L,...",
    ),
]
