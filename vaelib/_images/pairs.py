"""The condition of images: that it is there where a model takes one, one row per image, each within the rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from vaelib._images.batches import ImageSet

__all__ = ["ConditionPart", "check_condition", "checked_rows", "condition_in", "missing"]

CONDITION_KEYS = ("condition", "label", "labels")
"""Names under which batches that are dicts may hold the condition."""


class ConditionPart(Protocol):
    """What a model makes of conditions, of which data are asked one thing: :class:`vaelib.Labels`, ``Vector``."""

    def check(self, condition: Any) -> Tensor:
        """One row per image, or an error that names the value."""


def check_condition(name: str, data: Any, condition: ConditionPart | None) -> None:
    """Raise ``ValueError`` unless a set of images has a condition exactly where the model takes one, and a fitting one.

    Args:
        name: What the error calls the set.
        data: A set of images; what yields batches is checked with each batch.
        condition: The model's part, or None.
    """
    if not isinstance(data, ImageSet):
        return
    found = getattr(data, "condition", None)
    if condition is None:
        if found is not None:
            raise ValueError(
                f"`{name}` must have no condition for a model without one: build the model with"
                " condition=vl.Labels(num_classes) or vl.Vector(size), or open the images without `condition`."
            )
        return
    if found is None:
        raise missing(name, "images alone")
    classes, wanted = getattr(data, "class_names", ()), getattr(condition, "names", None)
    if classes and wanted and tuple(classes) != tuple(wanted):
        raise ValueError(
            f"`{name}` must have the classes of the model, {', '.join(wanted)}, got {', '.join(classes)}: the number of"
            " a class would mean another one."
        )
    checked_rows(name, found, condition, getattr(data, "names", ()))


def missing(name: str, found: str) -> ValueError:
    """The error of images without a condition for a model that takes one."""
    return ValueError(
        f"`{name}` must have a condition for a model that takes one, got {found}: open images by"
        ' vl.data.load(..., condition="labels"), or give a loader of pairs (images, condition) or of dicts with one of'
        f" the keys {', '.join(CONDITION_KEYS)}."
    )


def checked_rows(
    name: str, found: Any, condition: ConditionPart, names: Sequence[str] = (), *, count: int | None = None
) -> Tensor:
    """One row of a condition per image; an error names the first image whose row breaks a rule."""
    try:
        rows = condition.check(found)
    except (TypeError, ValueError) as error:
        for index in range(len(found) if hasattr(found, "__len__") else 0):
            try:
                condition.check(found[index : index + 1])
            except (TypeError, ValueError) as reason:
                image = f"image {index} ({names[index]})" if names else f"image {index}"
                raise type(reason)(f"`{name}`, {image}: {reason}") from error
        raise
    if count is not None and len(rows) != count:
        raise ValueError(f"`{name}` must have one condition per image, got {len(rows)} for {count} images.")
    return rows


def condition_in(name: str, batch: Any, count: int, condition: ConditionPart) -> Tensor:
    """The condition of what a loader yields: the second of a tuple, or under one of ``CONDITION_KEYS`` in a dict."""
    if isinstance(batch, Mapping):
        keys = [key for key in CONDITION_KEYS if key in batch]
        if len(keys) != 1:
            raise missing(name, f"the keys {', '.join(map(str, batch))}")
        found = batch[keys[0]]
    else:
        found = batch[1] if isinstance(batch, list | tuple) and len(batch) > 1 else None
    if found is None:
        raise missing(name, "images alone")
    return checked_rows(name, found, condition, count=count)
