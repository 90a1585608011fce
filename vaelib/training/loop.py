"""The loop itself: batches in, moved weights and mean terms out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from vaelib._checks import DataError, TrainingError
from vaelib.objectives import Objective
from vaelib.training.progress import ProgressReport

__all__ = ["Loop", "Means", "check_terms"]

_READ_EVERY = 50  # steps between looks at the loss, since each waits for the device


class Means:
    """Running means of an objective's terms over images; nothing waits for the device until they are read."""

    def __init__(self) -> None:
        self.num_images = 0
        self._kind: Any = None
        self._pending: list[Tensor] = []
        self._sums: Tensor | float = 0.0

    def add(self, terms: Any, num_images: int) -> None:
        """Count the terms of one batch; ``loss`` is its mean already."""
        self._kind = type(terms)
        sums = [terms.loss * num_images, *(values.sum() for values in terms[1:])]
        self._pending.append(torch.stack([value.detach() for value in sums]))
        self.num_images += num_images

    def read(self) -> Any:
        """The objective's named tuple with floats; waits for the device."""
        if self._pending:
            # Summed in double precision on the CPU, since not every device has it.
            self._sums = self._sums + torch.stack(self._pending).cpu().double().sum(0)
            self._pending.clear()
        if not isinstance(self._sums, Tensor):
            raise DataError("`train` must hold at least one image, got none.")
        return self._kind(*(self._sums / self.num_images).tolist())


class Loop:
    """Everything that changes while training."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler,
        accelerator: Accelerator,
        generator: torch.Generator,
    ) -> None:
        self.model = model
        self.objective = objective
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.accelerator = accelerator
        self.generator = generator
        self.step = 0

    def run(self, batches: Iterable[Tensor], report: ProgressReport) -> Means:
        """One pass: a step per batch."""
        self.model.train()
        means = Means()
        for batch in batches:
            x = batch.to(self.accelerator.device)
            terms = self.objective(self.model, x, step=self.step, generator=self.generator)
            self.optimizer.zero_grad()
            self.accelerator.backward(terms.loss)
            self.optimizer.step()
            self.scheduler.step()
            self.step += 1
            means.add(terms, len(x))
            if self.step % _READ_EVERY == 0:
                report.steps(self.step, self._checked(means).loss)
        report.steps(self.step, self._checked(means).loss)
        return means

    def _checked(self, means: Means) -> Any:
        return check_terms(means.read(), f"within the {_READ_EVERY} steps before step {self.step}")


def check_terms(terms: Any, when: str) -> Any:
    """The terms, floats; a :class:`TrainingError` that names the first that is not finite."""
    for name, value in terms._asdict().items():
        if not math.isfinite(value):
            raise TrainingError(
                f"The {name} became {value} {when}. Try a smaller `learning_rate`, and look for NaN among the images."
            )
    return terms
