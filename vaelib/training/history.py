"""What a training run was: one record per epoch, the means in it, the progress bar."""

from __future__ import annotations

import collections
import csv
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from vaelib._checks import TrainingError
from vaelib._files import written_whole

__all__ = [
    "EpochRecord",
    "Means",
    "ProgressReport",
    "check_terms",
    "criterion_terms",
    "curves",
    "flatten",
    "reported",
    "write_csv",
]


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
    skipped: int
    """Steps skipped since the start, their gradients not finite or above ``skip_norm``."""
    num_images: int
    """Images that the epoch's steps were over, on all processes."""
    seconds: float
    """Wall time of the training part."""
    images_per_second: float

    @property
    def criterion(self) -> float | None:
        """What ``best/`` and :class:`EarlyStopping` compare, lower being better; None without validation data.

        The bound itself, whatever weights, free bits or penalties the loss has: of the terms of ``val``, ``iwae`` if
        there is one, else ``reconstruction + kl``. Of objectives that have no KL, such as :class:`WaeLoss`, the loss.
        None too of :class:`Adversarial`: with a discriminator the bound becomes worse, and images better.
        """
        if self.val is None or "adversarial" in self.val._fields:
            return None
        return sum(getattr(self.val, name) for name in criterion_terms(self.val))

    def state_dict(self) -> dict[str, Any]:
        """As plain values."""
        terms = {
            name: None if kept is None else kept._asdict() for name, kept in (("train", self.train), ("val", self.val))
        }
        return self._asdict() | terms

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> EpochRecord:
        """What :meth:`state_dict` was of."""
        return cls(**state | {name: named_terms(state[name]) for name in ("train", "val")})


def criterion_terms(terms: Any) -> tuple[str, ...]:
    """Names of the terms whose sum is :attr:`EpochRecord.criterion`."""
    for names in (("iwae",), ("reconstruction", "kl")):
        if set(names) <= set(terms._fields):
            return names
    return ("loss",)


def named_terms(values: dict[str, float] | None) -> Any:
    """Floats by name as a named tuple."""
    return None if values is None else collections.namedtuple("Terms", values)(**values)


def totals_of(terms: Any, num_images: int) -> Tensor:
    """Each term summed over the images of a batch, ``loss`` being their mean already; the number of images last."""
    sums = [terms.loss * num_images, *(values.sum() for values in terms[1:])]
    return torch.stack([*sums, terms.loss.new_full((), num_images)]).detach()


def check_terms(terms: Any, where: str) -> Any:
    """The terms, floats; a :class:`TrainingError` that names the first that is not finite."""
    for name, value in terms._asdict().items():
        if not math.isfinite(value):
            raise TrainingError(f"the {name} became {value} {where}.")
    return terms


class Means:
    """Running means of an objective's terms over images; nothing waits for the device until they are read."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        """Of the terms, in order; empty before the first batch."""
        self._pending: list[Tensor] = []
        self._sums: list[float] = []

    def add(self, names: tuple[str, ...], totals: Tensor, counts: Tensor | None = None) -> None:
        """Count what :func:`totals_of` gave for one batch unless ``counts``, a boolean scalar, is false."""
        self.names = names
        self._pending.append(totals if counts is None else torch.where(counts, totals, 0.0))

    def totals(self) -> list[float]:
        """The sums so far, the images last; waits for the device."""
        if self._pending:
            rows = torch.stack(self._pending).tolist()
            self._pending.clear()
            # One after the other in double precision: the same bits, however often they are read in between.
            for row in rows:
                self._sums = [total + value for total, value in zip(self._sums or [0.0] * len(row), row, strict=True)]
        return self._sums

    def read(self) -> Any:
        """The means as a named tuple."""
        return self._of(self.totals())

    def over_processes(self, accelerator: Accelerator) -> tuple[Any, int]:
        """The means over the images of all processes, and how many there are."""
        totals = torch.tensor(self.totals(), dtype=torch.float64)
        if accelerator.num_processes > 1:
            totals = accelerator.reduce(totals.to(accelerator.device), "sum").cpu()
        return self._of(totals.tolist()), int(totals[-1])

    def _of(self, totals: list[float]) -> Any:
        *sums, count = totals
        return named_terms({name: value / max(count, 1.0) for name, value in zip(self.names, sums, strict=True)})

    def state_dict(self) -> dict[str, Tensor]:
        """The sums so far."""
        return {"totals": torch.tensor(self.totals(), dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from ``state``."""
        self._sums = state["totals"].tolist()


def flatten(record: EpochRecord) -> dict[str, float]:
    """Columns of one record: ``train_loss``, ``val_kl`` and so on."""
    row: dict[str, float] = {"epoch": record.epoch, "step": record.step}
    for split, terms in (("train", record.train), ("val", record.val)):
        if terms is not None:
            row |= {f"{split}_{name}": value for name, value in terms._asdict().items()}
    if record.criterion is not None:
        row["criterion"] = record.criterion
    return row | {
        "learning_rate": record.learning_rate,
        "skipped": record.skipped,
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
    rows = [flatten(record) for record in history]
    columns = [name for name in rows[0] if name.startswith(("train_", "val_"))]
    return {name.replace("_", " ", 1): [row[name] for row in rows] for name in columns}


@contextmanager
def reported(enabled: bool, total_steps: int, max_epochs: int) -> Iterator[ProgressReport]:
    """Inside the ``with``, a bar; nothing is shown if not ``enabled``."""
    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=Console(stderr=True),
        disable=not enabled,
    )
    report = ProgressReport(bar, total_steps, max_epochs)
    with bar if enabled else nullcontext():  # rich 14.0 ends a bar that it never drew with an empty line
        yield report


class ProgressReport:
    """Shows how far a run is."""

    def __init__(self, bar: Progress, total_steps: int, max_epochs: int) -> None:
        self._bar, self._max_epochs = bar, max_epochs
        self._task = bar.add_task("training", total=total_steps, text="")

    def steps(self, step: int, terms: Any, images_per_second: float) -> None:
        """``step`` steps are done; the means over the epoch's images so far, in nats, and their speed."""
        self._bar.update(self._task, completed=step, text=f"{_terms(terms)} nats  {images_per_second:,.0f} images/s")

    def epoch(self, record: EpochRecord) -> None:
        """One line for a finished epoch."""
        text = f"epoch {record.epoch}/{self._max_epochs}  train {_terms(record.train)}"
        if record.val is not None:
            text += f"  val {_terms(record.val)}"
        if record.criterion is not None:
            compared = " + ".join(criterion_terms(record.val))
            if record.epoch == 1:
                self.line(f"epochs are compared by {compared} on `val`, in nats")
            if abs(record.criterion - record.val.loss) >= 0.005:
                text += f"  {compared} {record.criterion:.2f}"
        if record.skipped:
            text += f"  {record.skipped} steps skipped"
        self.line(f"{text}  {record.images_per_second:,.0f} images/s")

    def line(self, text: str) -> None:
        """A line above the bar."""
        if not self._bar.disable:
            self._bar.console.print(text, highlight=False, soft_wrap=True, markup=False)


def _terms(terms: Any) -> str:
    """``180.20 (reconstruction 155.10, kl 25.10)``."""
    loss, *parts = terms._asdict().items()
    listed = ", ".join(f"{name} {value:.2f}" for name, value in parts)
    return f"{loss[1]:.2f} ({listed})"
