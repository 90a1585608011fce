"""What a training run was: one record per epoch."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vaelib._files import written_whole

__all__ = ["EpochRecord", "curves", "write_csv"]


class EpochRecord(NamedTuple):
    """One epoch: the objective's terms as means over images, in nats."""

    epoch: int
    """Counted from 1."""
    step: int
    """Optimiser steps since the start."""
    train: Any
    """The objective's named tuple with floats, as the weights moved during the epoch."""
    val: Any
    """The same after the epoch, in eval mode, its schedules at their end; None without validation data."""
    learning_rate: float
    """At the end of the epoch."""
    seconds: float
    """Wall time of the training part."""
    images_per_second: float


def flatten(record: EpochRecord) -> dict[str, float]:
    """Columns of one record: ``train_loss``, ``val_kl`` and so on."""
    row: dict[str, float] = {"epoch": record.epoch, "step": record.step}
    for split, terms in (("train", record.train), ("val", record.val)):
        if terms is not None:
            row |= {f"{split}_{name}": value for name, value in terms._asdict().items()}
    return row | {
        "learning_rate": record.learning_rate,
        "seconds": round(record.seconds, 3),
        "images_per_second": round(record.images_per_second, 1),
    }


def write_csv(history: Sequence[EpochRecord], path: str | Path) -> None:
    """All records, one row each, with a header."""
    rows = [flatten(record) for record in history]
    with written_whole(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def curves(history: Sequence[EpochRecord]) -> dict[str, list[float]]:
    """Every term of both splits over the epochs, for :func:`vaelib.plots.save_curves`."""
    return {
        f"{split} {name}": [getattr(getattr(record, split), name) for record in history]
        for split in ("train", "val")
        if getattr(history[0], split) is not None
        for name in history[0].train._fields
    }
