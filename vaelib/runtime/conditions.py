"""Conditions: labels by number or name, or a vector, as the rows that graphs take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaelib._checks import check_finite, check_shape

__all__ = ["checked_condition", "rows_for"]


def checked_condition(described: Mapping[str, Any] | None, value: Any, name: str = "condition") -> NDArray[Any]:
    """The condition as rows: int64 ``(B,)`` of labels, float32 ``(B, size)`` of a vector.

    Args:
        described: What the bundle says of the model's condition; None if it takes none.
        value: A label by number or by name, one vector, or many of them.
        name: The caller's word for it, for the errors.

    Raises:
        ValueError: If the model takes no condition, a label is unknown, or a shape or value is wrong.
        TypeError: If it is neither numbers nor names.
    """
    if described is None:
        raise ValueError(f"`{name}` must be None: the model takes no condition, got {value!r:.80}.")
    if described["kind"] == "labels":
        return _labels(described, value, name)
    if name == "labels":
        raise ValueError("`labels` must be None: the model's condition is a vector, give it as `condition`.")
    rows = np.asarray(value)
    if rows.dtype.kind not in "fiu":
        raise TypeError(f"`{name}` must be numbers, got {value!r:.80}.")
    if rows.ndim == 1 or (rows.ndim == 0 and described["size"] == 1):
        rows = rows.reshape(1, -1)
    check_shape(name, rows.shape, ("B", described["size"]))
    rows = np.ascontiguousarray(rows, np.float32)
    check_finite(name, rows)
    return rows


def _labels(described: Mapping[str, Any], value: Any, name: str) -> NDArray[np.int64]:
    if isinstance(value, list | tuple):  # numpy would make names of all
        value = [_number_of(each, described["names"], name) if isinstance(each, str) else each for each in value]
    rows = np.atleast_1d(np.asarray(value))
    if rows.dtype.kind == "U":
        rows = np.array([_number_of(text, described["names"], name) for text in rows.ravel().tolist()]).reshape(
            rows.shape
        )
    if rows.dtype.kind not in "iu":
        raise TypeError(
            f"`{name}` must be whole numbers{' or names' if described['names'] else ''}, got {value!r:.80}."
        )
    check_shape(name, rows.shape, ("B",))
    count = described["num_classes"]
    if unknown := [label for label in rows.tolist() if not 0 <= label < count]:
        raise ValueError(f"`{name}` must be labels in [0, {count}), got {unknown[0]}.")
    return np.ascontiguousarray(rows, np.int64)


def _number_of(text: str, names: Sequence[str] | None, name: str) -> int:
    if not names:
        raise ValueError(f"`{name}` must be labels by number: the bundle has no names of classes, got {text!r:.40}.")
    if text not in names:
        shown = ", ".join(names[:20]) + ("" if len(names) <= 20 else " and more")
        raise ValueError(f"`{name}` must be among {shown}, got {text!r:.40}.")
    return names.index(text)


def rows_for(rows: NDArray[Any] | None, count: int, *, draws: bool) -> NDArray[Any]:
    """The rows for ``count`` items: one serves all; B serve K * B ``draws``, the B rows again for each of K.

    Raises:
        ValueError: If there are none, or another number of rows.
    """
    if rows is None:
        raise ValueError("The model takes a condition: pass `condition=`, or call `model.given(...)`.")
    if len(rows) == count:
        return rows
    if len(rows) == 0 or count % len(rows) or (len(rows) > 1 and not draws):
        raise ValueError(f"`condition` must have one row, or one for each of the {count} images, got {len(rows)}.")
    return np.tile(rows, (count // len(rows), *[1] * (rows.ndim - 1)))
