"""A progress bar and a line per epoch, on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from vaelib.training.history import EpochRecord, criterion_terms

__all__ = ["ProgressReport", "reported"]


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
