"""A progress bar and a line per epoch, on standard error."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from vaelib.training.history import EpochRecord, criterion_terms

__all__ = ["ProgressReport"]


class ProgressReport:
    """Shows how far a run is; silent if not ``enabled``."""

    def __init__(self, enabled: bool, total_steps: int, max_epochs: int) -> None:
        self._max_epochs = max_epochs
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(stderr=True),
            disable=not enabled,
        )
        self._task = self._bar.add_task("training", total=total_steps, text="")
        self._mark = (time.perf_counter(), 0.0)

    def __enter__(self) -> ProgressReport:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._bar.disable:  # rich 14.0 ends a bar that it never drew with an empty line
            self._bar.stop()

    def steps(self, step: int, terms: Any, num_images: float) -> None:
        """``step`` steps are done; ``terms`` are the means over the epoch's ``num_images`` so far, in nats."""
        now = time.perf_counter()
        since, images = self._mark
        self._mark = now, num_images
        speed = f"{(num_images - images) / (now - since):,.0f} images/s" if num_images > images else ""
        self._bar.update(self._task, completed=step, text=f"{_terms(terms)} nats  {speed}")

    def epoch(self, record: EpochRecord) -> None:
        """One line for a finished epoch."""
        self._mark = (time.perf_counter(), 0.0)
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
