"""A progress bar and a line per epoch, on standard error."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from vaelib.training.history import EpochRecord

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
            TextColumn("loss {task.fields[loss]:.1f}"),
            console=Console(stderr=True),
            disable=not enabled,
        )
        self._task = self._bar.add_task("training", total=total_steps, loss=float("nan"))

    def __enter__(self) -> ProgressReport:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._bar.disable:  # rich 14.0 ends a bar that it never drew with an empty line
            self._bar.stop()

    def steps(self, step: int, loss: float) -> None:
        """``step`` steps are done; ``loss`` is the epoch's mean so far."""
        self._bar.update(self._task, completed=step, loss=loss)

    def epoch(self, record: EpochRecord) -> None:
        """One line for a finished epoch."""
        if self._bar.disable:
            return
        text = f"epoch {record.epoch}/{self._max_epochs}  train {_terms(record.train)}"
        if record.val is not None:
            text += f"  val {_terms(record.val)}"
        self._bar.console.print(f"{text}  {record.images_per_second:.0f} images/s", highlight=False, soft_wrap=True)


def _terms(terms: Any) -> str:
    """``180.20 (reconstruction 155.10, kl 25.10)``."""
    loss, *parts = terms._asdict().items()
    listed = ", ".join(f"{name} {value:.2f}" for name, value in parts)
    return f"{loss[1]:.2f} ({listed})"
