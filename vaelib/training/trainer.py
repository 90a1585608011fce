"""The trainer: what is asked of a run, made ready and looped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from vaelib._checks import check_bool, check_choice, check_float, check_int, check_module, check_path, check_type
from vaelib._files import writable_directory
from vaelib.data import ImageDataset
from vaelib.functional import check_levels
from vaelib.likelihoods import DiscretizedLogistic
from vaelib.objectives import Objective
from vaelib.objectives.elbo import default_objective
from vaelib.schedules import Schedule, as_schedule
from vaelib.serialization import describe
from vaelib.training.batches import Batches, Share, batches_of, first_batch, on_device
from vaelib.training.callbacks import check_callbacks, check_objective
from vaelib.training.checkpoints import Checkpoints
from vaelib.training.hardware import (
    PRECISIONS,
    compiled,
    compiles,
    isolated,
    make_accelerator,
    tuned,
)
from vaelib.training.history import EpochRecord, ProgressReport, reported
from vaelib.training.images import CollapseWarning, Pictures
from vaelib.training.optimization import LR_SCHEDULES, OPTIMIZERS, Optimization, make_optimizer, make_schedule
from vaelib.training.processes import Interruption, TrainingInterrupted, agreed_stop, locked, watched
from vaelib.training.recipe import check_recipe, checkpoint_to_resume, recipe_of
from vaelib.training.run import ObjectiveModule, Run, resume, validate, warn_of_moving_schedules, write_models
from vaelib.vae import condition_of

__all__ = ["Trainer"]

_READ_EVERY = 50  # steps between looks at the loss, since each waits for the device


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
        optimizer: ``"adam"`` or ``"adamw"``, with betas (0.9, 0.99), fused; or a callable such as a torch optimiser
            class, called as ``optimizer(parameters, lr=learning_rate)``.
        accumulate: Pieces into which each process cuts its part of a batch, to need less memory; the gradient is
            that of the whole batch, batch normalisation sees the pieces.
        clip_norm: Total norm to which larger gradients are scaled down, or None; an objective's own weights apart.
        skip_norm: Norm of the model's gradient above which a step is skipped, or None. Steps with gradients that are
            not finite are always skipped; 20 in a row end the run.
        precision: ``"fp32"``; ``"tf32"`` lets CUDA round factors of products; ``"bf16"`` or ``"fp16"`` (with a loss
            scale) run the networks in mixed precision, while the objective stays in float32. None is what
            ``accelerate launch`` says, else ``"fp32"`` with torch's settings.
        compile: Compile the step with ``torch.compile``, on CUDA as graphs; None compiles long runs on a CPU.
            An objective that cannot be compiled, such as :class:`Adversarial`, runs eagerly, with a warning.
        sync_batch_norm: Batch normalisation over all processes' images (CUDA only) instead of each one's own.
        seed: Seed of image order, draws and dropout. The weights are the model's own: seed before making it.
        output_dir: Directory for ``history.csv``, ``checkpoints``, the ``best`` and ``last`` model, images and
            ``curves.png``; nothing is written if None. ``best`` is the epoch of the lowest
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
        if output_dir is not None:
            check_path(output_dir, "output_dir")
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
                ``img`` or ``x``. A loader brings its own batch size and order. For a model with a condition: a set
                opened with ``condition=``, or pairs; in dicts it is under ``condition``, ``label`` or ``labels``.
            val: The same; evaluated after each epoch with the same draws each time, and with the values that schedules
                have at the last step of the run. A warning reports schedules that still change there.
            resume: Continue from the newest checkpoint in ``output_dir`` that can be read; from the start if none is.
            progress: Show a bar and a line per epoch on standard error.

        Returns:
            One :class:`EpochRecord` per epoch.

        Raises:
            ValueError: If images or their conditions do not fit the model, there is no image, or a checkpoint is of
                another recipe or of other images.
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
        accelerator = make_accelerator(self.precision)
        device, main = accelerator.device, accelerator.is_main_process
        module = ObjectiveModule(model, self.objective or default_objective(model))
        images = {name: on_device(name, data, model, device) for name, data in (("train", train), ("val", val))}
        share = Share(accelerator.process_index, accelerator.num_processes, self.accumulate)
        batches = batches_of(images["train"], self.batch_size, share, self.seed, device, condition_of(model))
        output_dir = None if self.output_dir is None else Path(self.output_dir)
        if output_dir is not None:
            describe(model)
            if main:  # of several machines, the others' disks are left alone
                writable_directory("output_dir", output_dir)
        with watched(), locked(output_dir) if main and output_dir is not None else nullcontext():
            found = checkpoint_to_resume(output_dir, resume, accelerator)
            with isolated(device), tuned(module, device, self.precision):
                set_seed(self.seed, device_specific=True)  # dropout and draws are of the global generators
                run = _started(self, module, accelerator, batches, images, found)
                _loop(self, run, images["val"], found, progress and main)
            accelerator.wait_for_everyone()  # the first process may still be drawing
        module.model.eval()
        return run.history


def _started(
    trainer: Trainer,
    module: ObjectiveModule,
    accelerator: Accelerator,
    batches: Batches,
    images: dict[str, Any],
    found: tuple[Path, dict[str, Any]] | None,
) -> Run:
    """The run before its first step; an error if the checkpoint that was ``found`` is of another."""
    device, total_steps = accelerator.device, trainer.max_epochs * len(batches)
    # A longer run is compiled if the one so far was.
    wanted = found[1]["recipe"]["compile"] if found is not None and trainer.compile is None else trainer.compile
    compile = compiles(wanted, total_steps, device, module.objective)
    module.to(device)
    if trainer.sync_batch_norm:
        module.model = nn.SyncBatchNorm.convert_sync_batchnorm(module.model)
    if compile:
        module.forward = compiled(module.forward, device)  # type: ignore[method-assign]
    optimization = Optimization(
        module,
        make_optimizer(trainer.optimizer, module, trainer.learning_rate),
        make_schedule(trainer.lr_schedule, trainer.learning_rate, total_steps),
        accelerator,
        trainer.clip_norm,
        trainer.skip_norm,
        keep_gradients=compile and device.type == "cuda",
        seed=trainer.seed,
    )
    kinds = {type(callback) for callback in trainer.callbacks}
    own = () if trainer.output_dir is None else (CollapseWarning, Pictures, Checkpoints)  # of every run that is written
    callbacks = [*trainer.callbacks, *(part() for part in own if part not in kinds)]
    run = Run(module, optimization, accelerator, batches, trainer.max_epochs, callbacks, trainer.output_dir)
    shown = "train" if images["val"] is None else "val"
    run.examples, run.condition = first_batch(shown, images[shown], device, condition_of(module.model))
    if isinstance(getattr(module.model, "likelihood", None), DiscretizedLogistic):  # a step waits for no device to look
        check_levels("train", first_batch("train", images["train"], device, condition_of(module.model)).x)
    run.recipe = recipe_of(vars(trainer), run, images, compile)
    if found is not None:
        check_recipe(run, *found)
    return run


def _loop(trainer: Trainer, run: Run, val: Any, found: tuple[Path, dict[str, Any]] | None, progress: bool) -> None:
    """From the start, or from the checkpoint that was ``found``, to the end."""
    if val is not None and run.accelerator.is_main_process:
        warn_of_moving_schedules(run)
    run.tell("on_start")
    with (
        reported(progress, run.total_steps, run.max_epochs) as report,
        Interruption(enabled=trainer.output_dir is not None) as interruption,
    ):
        if found is not None:
            resume(run, *found)
            report.line(f"resumed from {found[0]}, step {run.step} of {run.total_steps}")
        # An epoch that has begun is finished, whatever set `stop_reason` in it.
        while run.epoch <= run.max_epochs and (run.stop_reason is None or run.position > 0):
            _epoch(trainer, run, val, report, interruption)
        if run.stop_reason is not None:
            report.line(f"ended before the last epoch: {run.stop_reason}")
    run.tell("on_end")


def _epoch(trainer: Trainer, run: Run, val: Any, report: ProgressReport, interruption: Interruption) -> None:
    started = time.perf_counter() - run.seconds
    run.model.train()
    for pieces in run.batches.epoch(run.epoch, run.position):
        run.take_step(pieces)
        if run.step % _READ_EVERY == 0 or run.epoch_is_over:
            report.steps(run.step, run.read()[0], run.means.totals()[-1] / (time.perf_counter() - started))
        run.seconds = time.perf_counter() - started
        run.end_step()
        _stop_if_interrupted(run, interruption, must_ask=run.epoch_is_over)
    run.end_epoch(None if val is None else validate(run, val, 4 * trainer.batch_size, trainer.seed))
    report.epoch(run.history[-1])
    run.tell("on_epoch")
    run.stop_reason = agreed_stop(run.stop_reason, run.accelerator)
    if run.output_dir is not None:
        write_models(run, run.output_dir)
    run.checkpoint()
    _stop_if_interrupted(run, interruption, must_ask=True)  # a signal may have come in validation


def _stop_if_interrupted(run: Run, interruption: Interruption, must_ask: bool) -> None:
    signal_number = interruption.agreed(run.accelerator, run.step, must_ask)
    if signal_number:
        if run.position > 0:  # the end of an epoch has its own
            run.checkpoint()
        run.accelerator.wait_for_everyone()  # torchrun ends all processes when one has ended
        raise TrainingInterrupted(signal_number, run.step, run.last_checkpoint)
