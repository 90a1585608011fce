"""What acts beside the loop."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from vaelib._checks import MissingExtraError, check_float, check_int
from vaelib.training.history import flatten

__all__ = ["EMA", "EarlyStopping", "Trackers"]


class EMA:
    """An exponential moving average of the weights, which is what is validated, drawn and saved.

    At the end the model itself gets the averaged weights; those that moved are in the last checkpoint.

    Args:
        decay: Share of the average that each step keeps, in [0, 1]. In the first steps it is
            ``(1 + step) / (10 + step)`` if that is less, so that the average does not remember the first weights.

    Raises:
        ValueError: If ``decay`` is out of its range.

    Examples:
        >>> import vaelib as vl
        >>> trainer = vl.Trainer(max_epochs=20, callbacks=[EMA(0.999)])

    References:
        Polyak & Juditsky (1992); the ramp is that of TensorFlow's ``ExponentialMovingAverage``.
    """

    def __init__(self, decay: float = 0.999) -> None:
        self.decay = check_float("decay", decay, 0.0, 1.0)
        self._average: nn.Module | None = None

    def on_start(self, run: Any) -> None:
        """Begin with the weights as they are."""
        self._average = run.evaluated = copy.deepcopy(run.model).eval()
        self._pairs = list(zip(self._average.parameters(), run.model.parameters(), strict=True))
        self._buffers = list(zip(self._average.buffers(), run.model.buffers(), strict=True))

    @torch.no_grad()
    def on_step(self, run: Any) -> None:
        """Move the average; buffers, such as running statistics, are taken as they are."""
        decay = min(self.decay, (1 + run.step) / (10 + run.step))
        averages, values = zip(*self._pairs, strict=True)
        torch._foreach_lerp_(averages, values, 1 - decay)
        for average, value in self._buffers:
            average.copy_(value)

    def on_end(self, run: Any) -> None:
        """Give the model the averaged weights."""
        if self._average is not None:
            run.model.load_state_dict(self._average.state_dict())
            run.evaluated, self._average = run.model, None

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights."""
        return {} if self._average is None else dict(self._average.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        if self._average is not None:
            self._average.load_state_dict(state)


class EarlyStopping:
    """Ends a run whose validation loss no longer falls, once weight and capacity of the KL have reached their end.

    Args:
        patience: Epochs without a new best before the run ends.
        min_delta: Nats by which a best must be better than the one before.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> import vaelib as vl
        >>> trainer = vl.Trainer(max_epochs=200, callbacks=[EarlyStopping(patience=10, min_delta=0.1)])
    """

    def __init__(self, patience: int = 5, min_delta: float = 0.0) -> None:
        self.patience, self.min_delta = check_int("patience", patience), check_float("min_delta", min_delta, 0.0)
        self._best, self._since = math.inf, 0

    def on_start(self, run: Any) -> None:
        """Find the step from which the schedules of ``beta`` and ``capacity`` no longer change."""
        schedules = [getattr(run.objective, name, None) for name in ("beta", "capacity")]
        self._from_step = max(steps_until_constant(s, run.total_steps) if callable(s) else 0 for s in schedules)
        self._best, self._since = math.inf, 0

    def on_epoch(self, run: Any) -> None:
        """Compare the last epoch with the best one."""
        record = run.history[-1]
        if record.val is None:
            raise ValueError("`callbacks` has an EarlyStopping, which needs `val` images; `val` is None.")
        if record.step <= self._from_step:
            return
        if record.val.loss < self._best - self.min_delta:
            self._best, self._since = record.val.loss, 0
        else:
            self._since += 1
        if self._since >= self.patience:
            run.stop_reason = f"no validation loss below {self._best:.2f} for {self._since} epochs"

    def state_dict(self) -> dict[str, Any]:
        """The best loss and the epochs since."""
        return {"best": self._best, "since": self._since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self._best, self._since = state["best"], state["since"]


class Trackers:
    """Sends every epoch's record to experiment trackers, by accelerate's names for them.

    Args:
        *names: Such as ``"tensorboard"``, ``"wandb"``, ``"mlflow"``; their packages must be installed.
        project: What they call the run.

    Raises:
        ValueError: If accelerate knows no tracker of that name.
        MissingExtraError: If its package is not installed.

    Examples:
        >>> import vaelib as vl
        >>> trainer = vl.Trainer(output_dir="runs/tracked", callbacks=[Trackers("tensorboard")])
    """

    def __init__(self, *names: str, project: str = "vaelib") -> None:
        from accelerate.utils import LoggerType

        for name in names:
            if name not in LoggerType.list():
                raise ValueError(f"`names` must be of {', '.join(LoggerType.list())}, got {name!r}.")
        self.names, self.project = names, project

    def on_start(self, run: Any) -> None:
        """Open the trackers, with the run's recipe as their configuration."""
        from accelerate.tracking import filter_trackers

        directory = run.output_dir or "."
        accelerator = run.accelerator
        opened = filter_trackers(list(self.names), directory)
        missing = set(self.names) - {str(name) for name in opened}
        if missing:
            raise MissingExtraError(f"Tracking with {', '.join(sorted(missing))}", "track")
        accelerator.log_with, accelerator.project_configuration.logging_dir = opened, str(directory)
        plain = {name: value for name, value in run.recipe.items() if isinstance(value, int | float | str)}
        accelerator.init_trackers(self.project, config=plain)

    def on_epoch(self, run: Any) -> None:
        """Send the record."""
        run.accelerator.log(flatten(run.history[-1]), step=run.step)

    def on_end(self, run: Any) -> None:
        """Close the trackers."""
        for tracker in run.accelerator.trackers:
            tracker.finish()


def steps_until_constant(schedule: Any, total_steps: int) -> int:
    """The first step from which ``schedule`` keeps the value of the last step."""
    final = schedule(total_steps - 1)
    return next((step + 1 for step in range(total_steps - 1, -1, -1) if schedule(step) != final), 0)
