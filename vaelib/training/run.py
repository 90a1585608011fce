"""A run: everything that changes while training, the step that changes it, and its terms on `val`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from torch import Tensor, nn

from vaelib._checks import TrainingError, check_shape, check_type, shown
from vaelib._images import ImageSet, as_batches, even_parts
from vaelib.objectives import Objective
from vaelib.schedules import Schedule
from vaelib.serialization import save
from vaelib.training.batches import Batches, LoaderBatches, Piece
from vaelib.training.checkpoints import Checkpoints
from vaelib.training.hardware import isolated, random_states, restore_random
from vaelib.training.history import EpochRecord, Means, check_terms, totals_of, write_csv
from vaelib.training.optimization import Optimization
from vaelib.vae import bound, condition_of, eval_mode

__all__ = [
    "ObjectiveModule",
    "Run",
    "resume",
    "scheduled",
    "schedules_of",
    "validate",
    "warn_of_moving_schedules",
    "write_models",
]

_logger = logging.getLogger("vaelib.training")


class ObjectiveModule(nn.Module):
    """Model and objective as one module, so that all that a step runs is wrapped: precision, processes, compilation."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor, condition: Tensor | None, step: int) -> tuple[Any, Tensor]:
        """The objective's terms of a batch, of which only the loss has a gradient, and their totals."""
        terms = self.objective(bound(self.model, condition), x, step=step)
        names = getattr(terms, "_fields", ("",)) if isinstance(terms, tuple) else ("",)
        if names[0] != "loss":
            raise TypeError(f"`objective` must return a named tuple whose first term is `loss`, got {shown(terms)}.")
        for name, value in zip(names, terms, strict=True):
            check_type(f"objective(...).{name}", value, Tensor, "a tensor")
            check_shape(f"objective(...).{name}", value.shape, () if name == "loss" else (len(x),))
        return type(terms)(terms.loss, *(values.detach() for values in terms[1:])), totals_of(terms, len(x))


class Run:
    """What callbacks are given, made by ``Trainer.fit``; calls them and keeps its own state.

    Args:
        module: The model that is trained, its weights moving, in its objective.
        optimization: What moves them.
        accelerator: Devices and processes.
        batches: The steps of an epoch.
        max_epochs: Epochs, if nothing ends the run early.
        callbacks: Objects with hooks, in the order of their calls.
        output_dir: Directory of the run, or None.
    """

    def __init__(
        self,
        module: ObjectiveModule,
        optimization: Optimization,
        accelerator: Accelerator,
        batches: Batches,
        max_epochs: int,
        callbacks: Sequence[Any],
        output_dir: str | Path | None,
    ) -> None:
        self.model, self.optimization = module.model, optimization
        self.objective: Any = module.objective
        self.accelerator, self.batches, self.max_epochs, self.callbacks = accelerator, batches, max_epochs, callbacks
        self.steps_per_epoch = len(batches)
        """Optimiser steps in an epoch."""
        self.evaluated = module.model
        """What is validated, drawn and saved; a callback may put an average of the weights here."""
        self.step = 0
        """Optimiser steps done."""
        self.history: list[EpochRecord] = []
        """One record per finished epoch."""
        self.examples: Tensor | None = None
        """Images to draw and for diagnoses, the same throughout, on the training device."""
        self.condition: Tensor | None = None
        """The condition of ``examples``."""
        self.recipe: dict[str, Any] = {}
        """What the run was asked for, as plain values."""
        self.output_dir = None if output_dir is None or not accelerator.is_main_process else Path(output_dir)
        """Where to write; None on every process but the first."""
        self.last_checkpoint: Path | None = None
        self.stop_reason: str | None = None
        """Set it to end the run after this epoch."""
        self.means, self.seconds = Means(), 0.0
        self._checkpoints = None if output_dir is None else next(c for c in callbacks if isinstance(c, Checkpoints))
        self._module = accelerator.prepare_model(module)
        self._terms: Any = None
        if hasattr(self.objective, "set_total_steps"):
            self.objective.set_total_steps(self.total_steps)

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
                terms, totals = self._module(*piece.batch, self.step)
                self.accelerator.backward(terms.loss if piece.weight == 1.0 else terms.loss * piece.weight)
            collected.append(totals if last else totals.clone())  # the next pass may write over them
        ok = self.optimization.finish(terms.loss)
        for totals in collected:
            self.means.add(terms._fields, totals, ok)
        self._terms = terms
        self.step += 1

    def read(self) -> tuple[Any, int]:
        """Means of the epoch so far and steps skipped since the start; an error if training cannot continue."""
        try:
            skipped = self.optimization.skipped(self._terms, self.steps_per_epoch)
            return check_terms(self.means.read(), "in training"), skipped
        except TrainingError as error:
            kept = "There is no checkpoint" if self.last_checkpoint is None else f"The last is {self.last_checkpoint}"
            raise TrainingError(
                f"Before step {self.step}: {error} Try a smaller `learning_rate`, and look for NaN among the images."
                f" {kept}."
            ) from error

    def tell(self, event: str) -> None:
        """Call the callbacks that have a method of this name."""
        for callback in self.callbacks:
            if hasattr(callback, event):
                getattr(callback, event)(self)

    def end_step(self) -> None:
        """Tell the callbacks, and keep the state where :class:`Checkpoints` ask for it."""
        self.tell("on_step")
        if self._checkpoints is not None and self._checkpoints.due(self):
            self.checkpoint()

    def end_epoch(self, val: Any) -> None:
        """Note the epoch whose steps are done; ``val`` are the terms over the validation images, or None."""
        train, num_images = self.means.over_processes(self.accelerator)
        rate, skipped = float(self.optimization.optimizer.param_groups[0]["lr"]), self.read()[1]
        speed = num_images / self.seconds
        self.history.append(
            EpochRecord(self.epoch, self.step, train, val, rate, skipped, num_images, self.seconds, speed)
        )
        self.means, self.seconds = Means(), 0.0

    def checkpoint(self) -> None:
        """Keep the state of this moment; does nothing without an output directory."""
        if self._checkpoints is None:
            return
        state = _state_of(self)  # of all processes
        if self.output_dir is not None:
            self.last_checkpoint = self._checkpoints.write(self.output_dir, self.step, state)


def _state_of(run: Run) -> dict[str, Any]:
    """Everything that a resumed run needs to end as if never stopped."""
    return {
        "recipe": run.recipe,
        "callbacks": [callback.state_dict() for callback in run.callbacks if hasattr(callback, "state_dict")],
        "loader": run.batches.state_dict() if isinstance(run.batches, LoaderBatches) else {},
        "step": run.step,
        "max_epochs": run.max_epochs,
        "scheduled": scheduled(run.objective, run.step),
        "seconds": run.seconds,
        "stop_reason": run.stop_reason,
        "history": [record.state_dict() for record in run.history],
        "terms": list(run.means.names),
        "means": _of_all_processes(run.accelerator, run.means.state_dict()),
        "model": run.model.state_dict(),
        "objective": run.objective.state_dict() if hasattr(run.objective, "state_dict") else {},
        "optimization": run.optimization.state_dict(),
        "random": _of_all_processes(run.accelerator, random_states(run.accelerator.device)),
    }


def resume(run: Run, path: Path, state: dict[str, Any]) -> None:
    """Continue from the checkpoint ``state`` at ``path``."""
    run.last_checkpoint = path
    stateful = [callback for callback in run.callbacks if hasattr(callback, "state_dict")]
    for callback, kept in zip(stateful, state["callbacks"], strict=True):
        callback.load_state_dict(kept)
    if isinstance(run.batches, LoaderBatches):
        run.batches.load_state_dict(state["loader"])
    run.step, run.seconds, run.stop_reason = state["step"], state["seconds"], state["stop_reason"]
    run.history = [EpochRecord.from_state_dict(record) for record in state["history"]]
    run.model.load_state_dict(state["model"])
    if hasattr(run.objective, "load_state_dict"):
        run.objective.load_state_dict(state["objective"])
    run.optimization.load_state_dict(state["optimization"])
    means, random = (
        {name: values[run.accelerator.process_index] for name, values in state[part].items()}
        for part in ("means", "random")
    )
    run.means.load_state_dict(means)
    run.means.names = tuple(state["terms"]) if "terms" in state else _names_of_terms(run)
    restore_random(random, run.accelerator.device)


def write_models(run: Run, output: Path) -> None:
    """Those of an epoch, and the history. The best is of the lowest criterion; without validation, the last."""
    save(run.evaluated, output / "last")
    compared = [record.criterion for record in run.history if record.criterion is not None]
    if not compared or compared[-1] == min(compared):
        save(run.evaluated, output / "best")
    write_csv(run.history, output / "history.csv")


def schedules_of(objective: Any) -> dict[str, Schedule]:
    """The schedules of an objective, by its attributes."""
    found = {name: getattr(objective, name, None) for name in ("beta", "capacity", "share")}
    return {name: schedule for name, schedule in found.items() if callable(schedule)}


def scheduled(objective: Any, step: int) -> dict[str, float]:
    """Their values in the last of ``step`` steps, or in the first."""
    return {name: float(schedule(max(step - 1, 0))) for name, schedule in schedules_of(objective).items()}


def _names_of_terms(run: Run) -> tuple[str, ...]:
    """Names of the objective's terms, which checkpoints of version 0.1 do not hold."""
    if run.history:
        return tuple(run.history[-1].train._fields)
    with isolated(run.accelerator.device), eval_mode(run.model):
        return tuple(run.objective(bound(run.model, run.condition), run.examples, step=run.step)._fields)


def _of_all_processes(accelerator: Accelerator, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor with a leading axis over processes."""
    if accelerator.num_processes == 1:
        return {name: value[None] for name, value in tensors.items()}
    return {name: accelerator.gather(value[None].to(accelerator.device)) for name, value in tensors.items()}


def validate(run: Run, data: Any, batch_size: int, seed: int) -> Any:
    """Means over all images of ``data``, with the same draws and the schedules' last values each time."""
    accelerator = run.accelerator
    if accelerator.num_processes > 1:  # of running statistics each process has its own, and the first's are saved
        broadcast(list(run.evaluated.buffers()))
    means, device = Means(), accelerator.device
    with isolated(device), eval_mode(run.evaluated), accelerator.autocast():
        set_seed(seed, device_specific=True)
        if isinstance(data, ImageSet):
            mine = torch.arange(len(data)).tensor_split(accelerator.num_processes)[accelerator.process_index]
            parts = (mine[first:last] for first, last in even_parts(len(mine), batch_size))
            batches = data.fetch(parts, device)
        else:
            batches = as_batches("val", data, batch_size, device, condition=condition_of(run.model))
        for x, condition in batches:
            terms = run.objective(bound(run.evaluated, condition), x, step=run.total_steps - 1)
            means.add(terms._fields, totals_of(terms, len(x)))
    return check_terms(means.over_processes(accelerator)[0], f"on `val` after step {run.step}")


def warn_of_moving_schedules(run: Run) -> None:
    """Warn if ``beta`` or ``capacity`` still change at the last step, whose value validation uses."""
    last = run.total_steps - 1
    for name, schedule in schedules_of(run.objective).items():
        if last > 0 and schedule(last) != schedule(last - 1):
            _logger.warning(
                "`%s` still changes at the last of %s steps, where it is %.4g: the loss on `val` is of this value."
                " best/ and EarlyStopping compare the bound itself, which does not depend on it.",
                *(name, run.total_steps, schedule(last)),
            )
