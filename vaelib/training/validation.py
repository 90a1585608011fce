"""The objective's terms over the validation images, on all processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import broadcast, set_seed

from vaelib._images import Batch, ImageSet, as_batches, even_parts
from vaelib.training import randomness
from vaelib.training.batches import bound, condition_of
from vaelib.training.history import Means, totals_of
from vaelib.training.run import Run, check_terms
from vaelib.vae import eval_mode

__all__ = ["validate", "warn_of_moving_schedules"]

_logger = logging.getLogger("vaelib.training")


def validate(run: Run, data: Any, batch_size: int, seed: int) -> Any:
    """Means over all images of ``data``, with the same draws and the schedules' last values each time."""
    accelerator = run.accelerator
    if accelerator.num_processes > 1:  # of running statistics each process has its own, and the first's are saved
        broadcast(list(run.evaluated.buffers()))
    means, counts = Means(), torch.ones((), dtype=torch.bool, device=accelerator.device)
    with randomness.isolated(accelerator.device), eval_mode(run.evaluated), accelerator.autocast():
        set_seed(seed, device_specific=True)
        for x, condition in _batches(data, batch_size, run):
            terms = run.objective(bound(run.evaluated, condition), x, step=run.total_steps - 1)
            means.add(terms._fields, totals_of(terms, len(x)), counts)
    return check_terms(means.over_processes(accelerator)[0], f"on `val` after step {run.step}")


def warn_of_moving_schedules(run: Run) -> None:
    """Warn if ``beta`` or ``capacity`` still change at the last step, whose value validation uses."""
    last = run.total_steps - 1
    for name in ("beta", "capacity"):
        schedule = getattr(run.objective, name, None)
        if callable(schedule) and last > 0 and schedule(last) != schedule(last - 1):
            _logger.warning(
                "`%s` still changes at the last of %s steps, where it is %.4g: the loss on `val` is of this value."
                " best/ and EarlyStopping compare the bound itself, which does not depend on it.",
                *(name, run.total_steps, schedule(last)),
            )


def _batches(data: Any, batch_size: int, run: Run) -> Iterator[Batch]:
    """This process's part of the images."""
    accelerator, device = run.accelerator, run.accelerator.device
    if not isinstance(data, ImageSet):
        yield from as_batches("val", data, batch_size, device, condition=condition_of(run.model))
        return
    mine = torch.arange(len(data)).tensor_split(accelerator.num_processes)[accelerator.process_index]
    yield from data.fetch((mine[first:last] for first, last in even_parts(len(mine), batch_size)), device)
