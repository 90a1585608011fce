"""The trainer: what is needed around a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vaelib._checks import check_bool, check_choice, check_float, check_int, check_module, check_type
from vaelib.data import ImageDataset
from vaelib.objectives import Objective
from vaelib.schedules import Schedule, as_schedule, constant, one_cycle, warmup_cosine
from vaelib.training.arguments import check_callbacks, check_objective, check_output_dir
from vaelib.training.fit import Fit
from vaelib.training.flat import flattened
from vaelib.training.groups import parameter_groups
from vaelib.training.hardware import PRECISIONS
from vaelib.training.history import EpochRecord

__all__ = ["Trainer"]

_BETAS = (0.9, 0.99)  # a shorter memory of squares than torch's lets short runs use a high learning rate
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": functools.partial(torch.optim.Adam, betas=_BETAS, fused=True),
    "adamw": functools.partial(torch.optim.AdamW, betas=_BETAS, fused=True),
}
LR_SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "cosine": warmup_cosine,
    "one_cycle": one_cycle,
    "constant": lambda steps: constant(1.0),
}


class Trainer:
    """Trains a model on images by any objective, on whatever hardware ``accelerate`` finds.

    Args:
        objective: What is minimised; :class:`Elbo`, for an :class:`AutoEncoder` :class:`Reconstruction`, if None. The
            weights of one that is a module, such as :class:`FactorLoss`, are trained and resumed with the model's.
        max_epochs: Passes over the training images.
        batch_size: Images per step, over all processes and pieces.
        learning_rate: At its peak.
        lr_schedule: ``"cosine"``, a linear warm-up over the first twentieth and half a cosine to zero; ``"one_cycle"``;
            ``"constant"``; or a schedule, step to a factor of ``learning_rate``.
        optimizer: ``"adam"`` or ``"adamw"``, with betas (0.9, 0.99), fused, over all weights as one tensor; or a
            callable such as a torch optimiser class, called as ``optimizer(parameters, lr=learning_rate)``.
        accumulate: Pieces into which each process cuts its part of a batch, to need less memory; the gradient is
            that of the whole batch, batch normalisation sees the pieces.
        clip_norm: Total norm to which larger gradients are scaled down, or None.
        skip_norm: Total gradient norm above which a step is left out, or None. Steps with gradients that are not
            finite are always left out; 20 in a row end the run.
        precision: ``"fp32"``; ``"tf32"`` lets CUDA round factors of products; ``"bf16"`` or ``"fp16"`` (with a loss
            scale) run the networks in mixed precision, while the objective stays in float32. None is what
            ``accelerate launch`` says, else ``"fp32"`` with torch's settings.
        compile: Compile the step with ``torch.compile``, on CUDA as graphs, the update included; None compiles long
            runs on a CPU.
        sync_batch_norm: Batch normalisation over all processes' images (CUDA only) instead of each one's own.
        seed: Of the order of images, the draws and dropout. The weights are the model's own: seed before making it.
        output_dir: Where ``history.csv``, ``checkpoints``, the ``best`` and ``last`` model, images and
            ``curves.png`` go; nothing is written if None. ``best`` is the epoch of the lowest
            :attr:`EpochRecord.criterion` on ``val``: the bound at ``beta`` 1, without free bits, capacity or penalties.
        callbacks: Objects with some of ``on_start``, ``on_step``, ``on_epoch``, ``on_end``, such as :class:`EMA`,
            :class:`EarlyStopping`, :class:`Trackers`; see :mod:`vaelib.training`.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> import vaelib as vl
        >>> trainer = Trainer(max_epochs=2, batch_size=8)
        >>> history = trainer.fit(vl.conv_vae((1, 8, 8), 2), torch.rand(32, 1, 8, 8), progress=False)
        >>> len(history), history[-1].step, history[-1].train.loss > 0
        (2, 8, True)
    """

    def __init__(
        self,
        objective: Objective | None = None,
        *,
        max_epochs: int = 10,
        batch_size: int = 64,
        learning_rate: float = 5e-3,
        lr_schedule: str | Schedule = "cosine",
        optimizer: str | Callable[..., torch.optim.Optimizer] = "adam",
        accumulate: int = 1,
        clip_norm: float | None = None,
        skip_norm: float | None = None,
        precision: str | None = None,
        compile: bool | None = None,
        sync_batch_norm: bool = False,
        seed: int = 0,
        output_dir: str | Path | None = None,
        callbacks: Iterable[Any] = (),
    ) -> None:
        check_objective(objective)
        self.objective = objective
        self.max_epochs = check_int("max_epochs", max_epochs)
        self.batch_size = check_int("batch_size", batch_size)
        self.learning_rate = check_float("learning_rate", learning_rate, 0.0, above=True)
        if callable(lr_schedule):
            as_schedule("lr_schedule", lr_schedule)
        else:
            check_choice("lr_schedule", lr_schedule, LR_SCHEDULES)
        if isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"`optimizer` must be a class such as torch.optim.SGD, got an object of {type(optimizer)}.")
        if not callable(optimizer):
            check_choice("optimizer", optimizer, OPTIMIZERS)
        self.lr_schedule, self.optimizer = lr_schedule, optimizer
        self.accumulate = check_int("accumulate", accumulate)
        self.clip_norm, self.skip_norm = (
            None if norm is None else check_float(name, norm, 0.0, above=True)
            for name, norm in (("clip_norm", clip_norm), ("skip_norm", skip_norm))
        )
        check_choice("precision", precision, (None, *PRECISIONS))
        self.precision, self.compile, self.sync_batch_norm = precision, compile, sync_batch_norm
        check_type("compile", compile, bool | None, "True, False or None")
        check_bool("sync_batch_norm", sync_batch_norm)
        self.seed = check_int("seed", seed, minimum=0, maximum=2**32 - 1)  # what numpy's generator takes
        check_output_dir(output_dir)
        self.output_dir, self.callbacks = output_dir, check_callbacks(callbacks)

    def fit(
        self,
        model: nn.Module,
        train: Tensor | ImageDataset | Iterable[Any],
        val: Tensor | ImageDataset | Iterable[Any] | None = None,
        *,
        resume: bool = False,
        progress: bool = True,
    ) -> list[EpochRecord]:
        """Train ``model`` in place; it ends in eval mode, with its last weights (with :class:`EMA`, the averaged ones).

        It stays on the device of the training, such as a GPU that is there; ``model.cpu()`` brings it back.

        The same seed gives bitwise the same weights on the same machine, whatever was drawn before, and however often
        the run was stopped and resumed; torch's, numpy's and Python's global generators come back as they were.

        Args:
            model: A :class:`VAE`, an :class:`AutoEncoder`, or whatever the objective runs.
            train: Images ``(N, C, H, W)``, a tensor or numpy array, 8-bit or floats in [0, 1]; an
                :class:`ImageDataset` (kept on the training device if it fits); a stream (:func:`vaelib.data.stream`);
                a ``TensorDataset`` whose first tensor is images, or a ``Subset`` of these; or a loader that yields
                batches, tuples that begin with one, or dicts with one under ``image``, ``images``, ``pixel_values``,
                ``img`` or ``x``. A loader brings its own batch size and order.
            val: The same; evaluated after each epoch with the same draws each time, and with the values that schedules
                have at the last step of the run. A warning reports schedules that still change there.
            resume: Go on from the newest checkpoint in ``output_dir`` that can be read; from the start if none is.
            progress: Show a bar and a line per epoch on standard error.

        Returns:
            One :class:`EpochRecord` per epoch.

        Raises:
            ValueError: If images and model do not fit, there is no image, or a checkpoint is of another recipe or of
                other images.
            TrainingError: A ``ValueError``: if the loss or too many gradients are not finite.
            FileExistsError: If ``output_dir`` has checkpoints and ``resume`` is false, or holds files or folders of
                the names that a run writes and no run has written them.
            OSError: If ``output_dir`` cannot be written; a ``BlockingIOError`` if another process trains into it.
            TypeError: If ``train`` or ``val`` hold no images, or ``output_dir`` is given and a class of the model is
                not known to :func:`vaelib.save`.
            TrainingInterrupted: A ``SystemExit`` with code 130 or 143: after SIGINT or SIGTERM, the step finished and
                a checkpoint written. Without ``output_dir`` signals act as always.
        """
        check_module("model", model)
        check_bool("resume", resume)
        check_bool("progress", progress)
        return Fit(self, model, train, val).run(resume, progress)

    def make_optimizer(self, model: nn.Module, graphs: bool = False) -> torch.optim.Optimizer:
        """The optimiser of ``model``'s weights; one known by name makes them views of one tensor.

        For CUDA ``graphs`` all that changes between steps, the learning rate too, is on the device.
        """
        groups = parameter_groups(model)
        if not isinstance(self.optimizer, str):
            alike = len(groups) == 1 and groups[0].keys() == {"params"}
            return self.optimizer(groups[0]["params"] if alike else groups, lr=self.learning_rate)
        flat = [{**group, "params": flattened(group["params"])} for group in groups]
        lr = torch.tensor(self.learning_rate, device=flat[0]["params"][0].device) if graphs else self.learning_rate
        return OPTIMIZERS[self.optimizer](flat, lr=lr, capturable=graphs)

    def learning_rate_schedule(self, total_steps: int) -> Schedule:
        """Step to learning rate."""
        named = self.lr_schedule
        factor = LR_SCHEDULES[named](total_steps) if isinstance(named, str) else named
        return lambda step: self.learning_rate * check_float(f"lr_schedule({step})", factor(step), 0.0)
