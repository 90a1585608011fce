"""The condition of a model, from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

__all__ = ["Condition", "kind_of_condition", "rows_at", "with_condition"]

Condition = Annotated[
    list[str] | None,
    typer.Option(
        "--condition",
        help="The condition of a conditional model: a label by its number or the name of its class, or the numbers of a"
        " vector such as 0.2,1. Several times for several: one after the other, for one image each.",
    ),
]


class Conditioned(NamedTuple):
    """A model and its condition."""

    model: Any
    """The model, or a view of it without a label for one that may do without."""
    rows: Any
    """One for each image, or None."""


def rows_at(rows: Any, first: int, count: int) -> Any:
    """The rows of some images."""
    return None if rows is None else rows[first : first + count]


def kind_of_condition(model: Any) -> str | None:
    """What data are asked for: ``"labels"``, ``"factors"`` or nothing."""
    from vaelib.conditions import Labels

    if model.condition is None:
        return None
    return "labels" if isinstance(model.condition, Labels) else "factors"


def with_condition(model: Any, directory: Path, texts: list[str] | None, count: int) -> Conditioned:
    """A model with the condition of ``count`` images bound: each in turn, and again from the first."""
    part = model.condition
    if part is None:
        if texts:
            raise ValueError(f"`--condition` must not be given: the model in {directory} takes none, got {texts[0]!r}.")
        return Conditioned(model, None)
    if not texts:
        if part.null is not None:
            return Conditioned(model.given(None), None)
        names = f" ({', '.join(part.names)})" if getattr(part, "names", None) else ""
        raise ValueError(f"`--condition` must be given: the model in {directory} takes {part}{names}.")
    if len(texts) > count:
        raise ValueError(f"`--condition` must be given at most once for each of {count} images, got {len(texts)}.")
    import torch

    values = [_label(text, part) for text in texts] if kind_of_condition(model) == "labels" else _vectors(texts)
    return Conditioned(model, part.check(values)[torch.arange(count) % len(texts)])


def _label(text: str, labels: Any) -> int | str:
    """A number unless a class has that name."""
    is_number = text.isascii() and text.removeprefix("-").isdecimal() and text not in (labels.names or ())
    return int(text) if is_number else text


def _vectors(texts: list[str]) -> list[list[float]]:
    try:
        return [[float(number) for number in text.split(",")] for text in texts]
    except ValueError:
        raise ValueError(f"`--condition` must be numbers such as 0.2,1, got {', '.join(map(repr, texts))}.") from None
