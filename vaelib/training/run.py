"""A run: everything that changes while training, and the step that changes it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from vaelib._checks import TrainingError, check_shape, check_type, shown
from vaelib.objectives import Objective
from vaelib.training import randomness
from vaelib.training.batches import Piece
from vaelib.training.history import EpochRecord, Means, totals_of
from vaelib.training.optimization import Optimization
from vaelib.vae import eval_mode

__all__ = ["ObjectiveModule", "Run", "check_terms"]


class ObjectiveModule(nn.Module):
    """Model and objective as one module, so that all that a step runs is wrapped: precision, processes, compilation."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor, step: int) -> tuple[Any, Tensor]:
        """The objective's terms of a batch, of which only the loss has a gradient, and their totals."""
        terms = self.objective(self.model, x, step=step)
        check_result(terms, len(x))
        return type(terms)(terms.loss, *(values.detach() for values in terms[1:])), totals_of(terms, len(x))


class Run:
    """What callbacks are given; made by ``Trainer.fit``.

    Args:
        module: The model in its objective, as accelerate prepared it.
        model: The model that is trained, its weights moving.
        optimization: What moves them.
        accelerator: Devices and processes.
        steps_per_epoch: Optimiser steps in an epoch.
        max_epochs: Epochs, if nothing ends the run early.
    """

    def __init__(
        self,
        module: nn.Module,
        model: nn.Module,
        optimization: Optimization,
        accelerator: Accelerator,
        steps_per_epoch: int,
        max_epochs: int,
    ) -> None:
        self.model, self.optimization, self.accelerator = model, optimization, accelerator
        self.steps_per_epoch, self.max_epochs = steps_per_epoch, max_epochs
        self.evaluated = model
        """What is validated, drawn and saved; a callback may put an average of the weights here."""
        self.step = 0
        """Optimiser steps done."""
        self.history: list[EpochRecord] = []
        """One record per finished epoch."""
        self.examples: Tensor | None = None
        """Images for pictures and diagnoses, the same throughout, on the training device."""
        self.objective: Any = None
        self.recipe: dict[str, Any] = {}
        """What the run was asked for, as plain values."""
        self.output_dir: Path | None = None
        """Where to write; None on every process but the first."""
        self.checkpoint: Callable[[], None] = lambda: None
        """Keeps the state of this moment; does nothing without an output directory."""
        self.last_checkpoint: Path | None = None
        self.stop_reason: str | None = None
        """Set it to end the run after this epoch."""
        self.means, self.seconds = Means(), 0.0
        self._module, self._terms = module, None

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, if nothing ends it early."""
        return self.steps_per_epoch * self.max_epochs

    @property
    def epoch(self) -> int:
        """The epoch that is running, counted from 1."""
        return len(self.history) + 1

    @property
    def position(self) -> int:
        """Steps done of this epoch."""
        return self.step - self.steps_per_epoch * len(self.history)

    @property
    def epoch_is_over(self) -> bool:
        """Whether all steps of this epoch are done."""
        return self.position == self.steps_per_epoch

    def take_step(self, pieces: Sequence[Piece]) -> None:
        """Move the weights once, by the gradient over all pieces; nothing here waits for an accelerator."""
        self.optimization.begin(self.step)
        collected = []
        for index, piece in enumerate(pieces):
            last = index == len(pieces) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self._module):
                terms, totals = self._module(piece.batch.x, self.step)
                self.accelerator.backward(terms.loss if piece.weight == 1.0 else terms.loss * piece.weight)
            collected.append(totals if last else totals.clone())  # the next pass may write over them
        ok = self.optimization.finish(terms.loss)
        for totals in collected:
            self.means.add(terms._fields, totals, ok)
        self._terms = terms
        self.step += 1

    def read(self) -> tuple[Any, int]:
        """Means of the epoch so far and steps skipped since the start; an error if training cannot go on."""
        try:
            skipped = self.optimization.skipped(self._terms, self.steps_per_epoch)
            return check_terms(self.means.read(), "in training"), skipped
        except TrainingError as error:
            kept = "There is no checkpoint" if self.last_checkpoint is None else f"The last is {self.last_checkpoint}"
            raise TrainingError(
                f"Before step {self.step}: {error} Try a smaller `learning_rate`, and look for NaN among the images."
                f" {kept}."
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """Everything that must be as it was for the run to go on as if never stopped."""
        return {
            "step": self.step,
            "max_epochs": self.max_epochs,
            "scheduled": scheduled(self.objective, self.step),
            "seconds": self.seconds,
            "stop_reason": self.stop_reason,
            "history": [record.state_dict() for record in self.history],
            "terms": list(self.means.names),
            "means": _of_all_processes(self.accelerator, self.means.state_dict()),
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict() if hasattr(self.objective, "state_dict") else {},
            "optimization": self.optimization.state_dict(),
            "random": _of_all_processes(self.accelerator, randomness.capture(self.accelerator.device)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        rank = self.accelerator.process_index
        self.step, self.seconds, self.stop_reason = state["step"], state["seconds"], state["stop_reason"]
        self.history = [EpochRecord.from_state_dict(record) for record in state["history"]]
        self.means.load_state_dict({name: values[rank] for name, values in state["means"].items()})
        self.means.names = tuple(state["terms"]) if "terms" in state else _names_of_terms(self)
        self.model.load_state_dict(state["model"])
        if hasattr(self.objective, "load_state_dict"):
            self.objective.load_state_dict(state["objective"])
        self.optimization.load_state_dict(state["optimization"])
        random = {name: values[rank] for name, values in state["random"].items()}
        randomness.restore(random, self.accelerator.device)


def scheduled(objective: Any, step: int) -> dict[str, float]:
    """Values of the objective's schedules in the last of ``step`` steps, or in the first."""
    schedules = {name: getattr(objective, name, None) for name in ("beta", "capacity")}
    return {name: float(schedule(max(step - 1, 0))) for name, schedule in schedules.items() if callable(schedule)}


def _names_of_terms(run: Run) -> tuple[str, ...]:
    """Names of the objective's terms, which checkpoints of version 0.1 do not hold."""
    if run.history:
        return tuple(run.history[-1].train._fields)
    with randomness.isolated(run.accelerator.device), eval_mode(run.model):
        return tuple(run.objective(run.model, run.examples, step=run.step)._fields)


def _of_all_processes(accelerator: Accelerator, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor with a leading axis over processes."""
    if accelerator.num_processes == 1:
        return {name: value[None] for name, value in tensors.items()}
    return {name: accelerator.gather(value[None].to(accelerator.device)) for name, value in tensors.items()}


def check_result(terms: Any, num_images: int) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless an objective returned what :class:`Objective` says."""
    names = getattr(terms, "_fields", ("",))
    if not isinstance(terms, tuple) or names[0] != "loss":
        raise TypeError(f"`objective` must return a named tuple whose first term is `loss`, got {shown(terms)}.")
    for name, value in zip(names, terms, strict=True):
        check_type(f"objective(...).{name}", value, Tensor, "a tensor")
        check_shape(f"objective(...).{name}", value.shape, () if name == "loss" else (num_images,))


def check_terms(terms: Any, where: str) -> Any:
    """The terms, floats; a :class:`TrainingError` that names the first that is not finite."""
    for name, value in terms._asdict().items():
        if not math.isfinite(value):
            raise TrainingError(f"the {name} became {value} {where}.")
    return terms
