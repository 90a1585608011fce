"""A run: everything that changes while training, and the step that changes it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vaelib._checks import TrainingError
from vaelib.objectives import Objective
from vaelib.schedules import Schedule
from vaelib.training import randomness
from vaelib.training.batches import Piece
from vaelib.training.checkpoints import Checkpoints
from vaelib.training.gradients import GradientGuard, parameters_to_blame
from vaelib.training.history import EpochRecord, Means

__all__ = ["ObjectiveModule", "Run", "check_terms"]

MAX_SKIPPED = 20  # in a row; a GradScaler that starts too high needs up to 16


class ObjectiveModule(nn.Module):
    """Model and objective as one module, so that all that a step runs is wrapped: precision, processes, compilation."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor, step: int) -> Any:
        """The objective's terms of a batch."""
        return self.objective(self.model, x, step=step)


class Run:
    """What callbacks are given."""

    def __init__(
        self,
        model: nn.Module,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        learning_rate: Schedule,
        guard: GradientGuard,
        accelerator: Accelerator,
        *,
        steps_per_epoch: int,
        max_epochs: int,
    ) -> None:
        self.model = model
        """The model that is trained, its weights moving."""
        self.evaluated = model
        """What is validated, drawn and saved as best and last; a callback may put an average of the weights here."""
        self.optimizer, self.accelerator = optimizer, accelerator
        self.steps_per_epoch, self.max_epochs = steps_per_epoch, max_epochs
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
        self.stop_reason: str | None = None
        """Set it to end the run after this epoch."""
        self.means, self.seconds = Means(), 0.0
        self._module, self._learning_rate, self._guard = module, learning_rate, guard
        self._skipped = torch.zeros(2, dtype=torch.int64, device=accelerator.device)  # in all, in a row
        self._last_terms: Any = None

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
        """Move the weights once, by the gradient over all pieces; nothing here waits for the device."""
        self._set_learning_rate()
        self._guard.keep_buffers()
        self.optimizer.zero_grad()
        collected = []
        for index, piece in enumerate(pieces):
            last = index == len(pieces) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self._module):
                terms = self._module(piece.x, self.step)
                self.accelerator.backward(terms.loss * piece.weight if piece.weight != 1.0 else terms.loss)
            collected.append((terms, len(piece.x)))
        ok = self._update()
        self._guard.restore_buffers_unless(ok)
        self._skipped = torch.stack([self._skipped[0] + ~ok, (self._skipped[1] + 1) * ~ok])
        for terms, count in collected:
            self.means.add(terms, count, ok)
        self._last_terms = terms
        self.step += 1

    def _set_learning_rate(self) -> None:
        rate = self._learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _update(self) -> Tensor:
        """The optimiser's step, if the gradients allow it; a boolean scalar whether they did."""
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        ok = self._guard.check()
        if scaler is not None:
            if ok:
                scaler.step(self.optimizer)
            scaler.update()
        elif self.optimizer.defaults.get("fused"):
            # Fused kernels look at this flag on the device, as they do for torch's GradScaler.
            self.optimizer.found_inf = (~ok).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif ok:
            self.optimizer.step()
        return ok

    def read(self) -> tuple[Any, int]:
        """Means of the epoch so far and steps skipped since the start; an error if training cannot go on."""
        skipped, in_a_row = self._skipped.tolist()
        if in_a_row >= MAX_SKIPPED:
            raise TrainingError(f"{in_a_row} steps in a row were skipped before step {self.step}: {self._blame()}.")
        terms = check_terms(self.means.read(), f"before step {self.step}")
        return terms, skipped

    def _blame(self) -> str:
        if self._last_terms is None:
            return "each made a gradient that is not finite"
        bad = [name for name, value in self._last_terms._asdict().items() if not value.isfinite().all()]
        parameters = parameters_to_blame(self.model)
        if not bad and not parameters:
            return "the norm of their gradients is above `skip_norm`"
        listed = ", ".join(parameters[:5]) + (f" and {len(parameters) - 5} more" if len(parameters) > 5 else "")
        return "; ".join(
            [f"{', '.join(bad)} not finite"] * bool(bad) + [f"gradient not finite in {listed}"] * bool(parameters)
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that must be as it was for the run to go on as if never stopped."""
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "seconds": self.seconds,
            "history": [record.state_dict() for record in self.history],
            "means": self._of_all_processes(self.means.state_dict()),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "skipped": self._skipped,
            "random": self._of_all_processes(randomness.capture(self.accelerator.device)),
        }

    def _of_all_processes(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each tensor with a leading axis over processes."""
        device = self.accelerator.device
        return {name: self.accelerator.gather(value[None].to(device)) for name, value in tensors.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        device = self.accelerator.device
        self.step, self.seconds = state["step"], state["seconds"]
        self.history = [EpochRecord.from_state_dict(record) for record in state["history"]]
        rank = self.accelerator.process_index
        self.means.load_state_dict({name: values[rank] for name, values in state["means"].items()})
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self._skipped = state["skipped"].to(device)
        randomness.restore({name: values[rank] for name, values in state["random"].items()}, device)


def check_terms(terms: Any, when: str) -> Any:
    """The terms, floats; a :class:`TrainingError` that names the first that is not finite."""
    for name, value in terms._asdict().items():
        if not math.isfinite(value):
            raise TrainingError(
                f"The {name} became {value} {when}. Try a smaller `learning_rate`, and look for NaN among the images."
            )
    return terms
