"""Callbacks: EMA, early stopping, experiment trackers; checks of the callbacks and objective of a Trainer."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate.tracking import filter_trackers
from accelerate.utils import LoggerType
from torch import nn

from vaelib._checks import MissingExtraError, check_callable, check_float, check_int, shown
from vaelib.training.checkpoints import Checkpoints
from vaelib.training.history import criterion_terms, flatten
from vaelib.training.run import schedules_of
from vaelib.vae import VAE

__all__ = ["EMA", "HOOKS", "EarlyStopping", "Trackers", "check_callbacks", "check_objective"]

HOOKS = ("on_start", "on_step", "on_epoch", "on_end")
_CALL = "objective(model, x, step=...)"


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
        # torch's AveragedModel would copy its counter to the device at each step.
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
        """Continue from ``state``."""
        if self._average is not None:
            self._average.load_state_dict(state)


class EarlyStopping:
    """Ends a run that no longer improves on `val`, once weight and capacity of the KL have reached their end.

    Epochs are compared as for ``best/``, by :attr:`EpochRecord.criterion`: the bound itself, without ``beta``, free
    bits or penalties. Where the loss is meant to end far from the bound, such as with ``beta=10``, train for a fixed
    number of epochs instead.

    Args:
        patience: Epochs without a new best before the run ends.
        min_delta: Nats by which a best must be better than the one before.

    Raises:
        ValueError: If an argument is out of its range, or the run has no ``val`` or no bound (:class:`Adversarial`).

    Examples:
        >>> import vaelib as vl
        >>> trainer = vl.Trainer(max_epochs=200, callbacks=[EarlyStopping(patience=10, min_delta=0.1)])
    """

    def __init__(self, patience: int = 5, min_delta: float = 0.0) -> None:
        self.patience, self.min_delta = check_int("patience", patience), check_float("min_delta", min_delta, 0.0)

    def on_start(self, run: Any) -> None:
        """Find the step from which the schedules of ``beta`` and ``capacity`` no longer change."""
        schedules = schedules_of(run.objective).values()
        self._from_step = max((steps_until_constant(schedule, run.total_steps) for schedule in schedules), default=0)

    def on_epoch(self, run: Any) -> None:
        """Compare the last epoch with the best one."""
        if run.history[-1].val is None:
            raise ValueError("`callbacks` has an EarlyStopping, which needs `val` images; `val` is None.")
        if run.history[-1].criterion is None:
            raise ValueError("`callbacks` has an EarlyStopping, which needs a bound to compare; Adversarial has none.")
        best, since = math.inf, 0
        for record in run.history:
            if record.step <= self._from_step:
                continue
            if record.criterion < best - self.min_delta:
                best, since = record.criterion, 0
            else:
                since += 1
        if since >= self.patience:
            compared = " + ".join(criterion_terms(run.history[-1].val))
            run.stop_reason = f"no {compared} below {best:.2f} on `val` for {since} epochs"

    def state_dict(self) -> dict[str, Any]:
        """Nothing: all follows from the history, which every checkpoint holds."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing; version 0.1 kept its best here, by a loss that depended on the length of the run."""


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
        if not names:
            raise ValueError(f"`names` must hold at least one of {', '.join(LoggerType.list())}, got none.")
        for name in names:
            if name not in LoggerType.list():
                raise ValueError(f"`names` must be of {', '.join(LoggerType.list())}, got {name!r}.")
        self.names, self.project = names, project

    def on_start(self, run: Any) -> None:
        """Open the trackers, with the run's recipe as their configuration."""
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


def check_objective(objective: Any) -> None:
    """Raise ``TypeError`` unless it is None or can be called as the Trainer calls it."""
    if objective is None:
        return
    if isinstance(objective, VAE):
        raise TypeError(
            "`objective` must be an objective such as Elbo(), got a model, which belongs in fit(model, ...)."
        )
    check_callable("objective", objective, f"an objective such as Elbo(), called as {_CALL}")
    try:
        inspect.signature(objective.forward if isinstance(objective, nn.Module) else objective).bind(None, None, step=0)
    except ValueError:  # some builtin functions have no signature
        return
    except TypeError as error:
        raise TypeError(f"`objective` must be callable as {_CALL}, got {shown(objective)}: {error}.") from None


def check_callbacks(callbacks: Any) -> tuple[Any, ...]:
    """Return them as a tuple; ``TypeError`` or ``ValueError`` unless each has hooks, all of them known."""
    is_scalar = getattr(callbacks, "ndim", 1) == 0  # an array without axes has an iterator that raises
    if is_scalar or not isinstance(callbacks, Iterable) or isinstance(callbacks, str | bytes | Mapping):
        raise TypeError(f"`callbacks` must be a list of callbacks, got {shown(callbacks)}.")
    callbacks = tuple(callbacks)
    hooks = f"{', '.join(HOOKS[:-1])} and {HOOKS[-1]}"
    for name, callback in ((f"callbacks[{index}]", callback) for index, callback in enumerate(callbacks)):
        if isinstance(callback, type):
            raise TypeError(
                f"`{name}` must be an object, got the class {callback.__name__}: give {callback.__name__}(...)."
            )
        given = [method for method in dir(callback) if method.startswith("on_") and callable(getattr(callback, method))]
        unknown = [method for method in given if method not in HOOKS]
        if unknown:
            raise TypeError(
                f"`{name}` must have no hooks but {hooks}, got {type(callback).__name__} with {', '.join(unknown)},"
                " which would never be called."
            )
        # Asked for by name, since an object that makes its methods on demand, such as a mock, does not list them.
        has_hook = any(callable(getattr(callback, hook, None)) for hook in HOOKS)
        if not has_hook and not isinstance(callback, Checkpoints):
            raise TypeError(f"`{name}` must have some of the methods {hooks}, got {shown(callback)}, which has none.")
    for kind in (Checkpoints, EMA):
        count = sum(isinstance(callback, kind) for callback in callbacks)
        if count > 1:
            raise ValueError(f"`callbacks` must hold at most one {kind.__name__}, got {count}.")
    return callbacks
