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

__all__ = ["Loop", "Means"]

_READ_EVERY = 50  # steps between looks at the loss, since each waits for the device


class Means:
    """Running means of an objective's terms over images, kept on the device."""

    def __init__(self) -> None:
        self.num_images = 0
        self._sums: Any = None

    def add(self, terms: Any, num_images: int) -> None:
        """Count the terms of one batch; ``loss`` is its mean already."""
        sums = [terms.loss * num_images, *(values.sum() for values in terms[1:])]
        stacked = torch.stack([value.detach().double() for value in sums])
        self._sums = type(terms)(*(stacked if self._sums is None else torch.stack(self._sums) + stacked))
        self.num_images += num_images

    def read(self) -> Any:
        """The objective's named tuple with floats; waits for the device."""
        if self._sums is None:
            raise DataError("`train` must hold at least one image, got none.")
        return type(self._sums)(*(torch.stack(self._sums) / self.num_images).tolist())


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
        terms = means.read()
        for name, value in terms._asdict().items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"The {name} became {value} within the {_READ_EVERY} steps before step {self.step}."
                    " Try a smaller `learning_rate`, and look for NaN among the images."
                )
        return terms
