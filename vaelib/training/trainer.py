"""The trainer: what is needed around a run."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from vaelib._checks import check_choice, check_float, check_int
from vaelib._files import writable_directory
from vaelib.data import ImageDataset
from vaelib.data.dataset import even_parts
from vaelib.evaluation.bound import as_batches
from vaelib.objectives import Elbo, Objective, Reconstruction
from vaelib.schedules import Schedule, constant, one_cycle, warmup_cosine
from vaelib.serialization import describe, save
from vaelib.training import randomness
from vaelib.training.batches import Indexed, IndexedBatches, LoaderBatches, Share
from vaelib.training.checkpoints import Checkpoints, newest_checkpoint
from vaelib.training.gradients import GradientGuard
from vaelib.training.hardware import PRECISIONS, compiles, make_accelerator, tuned
from vaelib.training.history import EpochRecord, Means, write_csv
from vaelib.training.interruption import Interruption, TrainingInterrupted
from vaelib.training.pictures import CollapseWarning, Pictures
from vaelib.training.progress import ProgressReport
from vaelib.training.run import ObjectiveModule, Run, check_terms
from vaelib.vae import AutoEncoder, eval_mode

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
_READ_EVERY = 50  # steps between looks at the loss, since each waits for the device
_EXAMPLES = 256  # images for pictures and for the count of dead latents
_logger = logging.getLogger("vaelib.training")


class Trainer:
    """Trains a model on images by any objective, on whatever hardware ``accelerate`` finds.

    Args:
        objective: What is minimised; :class:`Elbo`, for an :class:`AutoEncoder` :class:`Reconstruction`, if None.
        max_epochs: Passes over the training images.
        batch_size: Images per step, over all processes and pieces.
        learning_rate: At its peak.
        lr_schedule: ``"cosine"``, a linear warm-up over the first twentieth and half a cosine to zero; ``"one_cycle"``;
            ``"constant"``; or a schedule, step to a factor of ``learning_rate``.
        optimizer: ``"adam"`` or ``"adamw"``, with betas (0.9, 0.99), fused; or a callable such as a torch optimiser
            class, called as ``optimizer(parameters, lr=learning_rate)``.
        accumulate: Pieces into which each process cuts its part of a batch, to need less memory; the gradient is
            that of the whole batch, batch normalisation sees the pieces.
        clip_norm: Total norm to which larger gradients are scaled down, or None.
        skip_norm: Total gradient norm above which a step is left out, or None. Steps with gradients that are not
            finite are always left out; 20 in a row end the run.
        precision: ``"fp32"``; ``"tf32"`` lets CUDA round factors of products; ``"bf16"`` or ``"fp16"`` (with a loss
            scale) run the networks in mixed precision, while the objective stays in float32. None is what
            ``accelerate launch`` says, else ``"fp32"`` with torch's settings.
        compile: Compile the step with ``torch.compile``; None decides by the length of the run and the device.
        sync_batch_norm: Batch normalisation over all processes' images (CUDA only) instead of each one's own.
        seed: Of the order of images, the draws and dropout. The weights are the model's own: seed before making it.
        output_dir: Where ``history.csv``, ``checkpoints``, the ``best`` and ``last`` model, pictures and
            ``curves.png`` go; nothing is written if None.
        callbacks: Objects with some of ``on_start``, ``on_step``, ``on_epoch``, ``on_end``, such as :class:`EMA`,
            :class:`EarlyStopping`, :class:`Trackers`; see :mod:`vaelib.training.callbacks`.

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
        callbacks: Sequence[Any] = (),
    ) -> None:
        self.objective = objective
        self.max_epochs = check_int("max_epochs", max_epochs)
        self.batch_size = check_int("batch_size", batch_size)
        self.learning_rate = check_float("learning_rate", learning_rate, 0.0, above=True)
        if not callable(lr_schedule):
            check_choice("lr_schedule", lr_schedule, LR_SCHEDULES)
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
        self.seed = check_int("seed", seed, minimum=0)
        self.output_dir, self.callbacks = output_dir, tuple(callbacks)

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

        The same seed gives bitwise the same weights on the same machine, whatever was drawn before, and however often
        the run was stopped and resumed; torch's, numpy's and Python's global generators come back as they were.

        Args:
            model: A :class:`VAE`, an :class:`AutoEncoder`, or whatever the objective runs.
            train: Images ``(N, C, H, W)``, an :class:`ImageDataset` (kept on the training device if it fits), a stream
                (:func:`vaelib.data.stream`), or a loader that yields batches (or tuples that begin with one). A loader
                brings its own batch size and order.
            val: The same; evaluated after each epoch with the same draws each time.
            resume: Go on from the newest checkpoint in ``output_dir`` that can be read, from the start if there is none.
            progress: Show a bar and a line per epoch on standard error.

        Returns:
            One :class:`EpochRecord` per epoch.

        Raises:
            ValueError: If images and model do not fit, there is no image, or a checkpoint is of another recipe.
            TrainingError: A ``ValueError``: if the loss or too many gradients are not finite.
            FileExistsError: If ``output_dir`` has checkpoints and ``resume`` is false.
            OSError: If ``output_dir`` cannot be written.
            TypeError: If ``output_dir`` is given and a class of the model is not known to :func:`vaelib.save`.
            TrainingInterrupted: A ``SystemExit`` with code 130 or 143: after SIGINT or SIGTERM, the step finished and
                a checkpoint written. Without ``output_dir`` signals act as always.
        """
        return Fit(self, model, train, val).run(resume, progress)


class Fit:
    """One call of :meth:`Trainer.fit`."""

    def __init__(self, trainer: Trainer, model: nn.Module, train: Any, val: Any) -> None:
        self.trainer, self.model = trainer, model
        self.accelerator = make_accelerator(trainer.precision)
        self.device = self.accelerator.device
        self.objective = trainer.objective or (Reconstruction() if isinstance(model, AutoEncoder) else Elbo())
        share = Share(self.accelerator.process_index, self.accelerator.num_processes, trainer.accumulate)
        self.train, self.val = (_source(n, d, model, self.device) for n, d in (("train", train), ("val", val)))
        self.batches = (
            IndexedBatches(self.train, trainer.batch_size, share, trainer.seed, self.device)
            if isinstance(self.train, Indexed)
            else LoaderBatches(self.train, share, self.device)
        )
        self.compiled = compiles(trainer.compile, trainer.max_epochs * len(self.batches), self.device)
        self.callbacks = list(trainer.callbacks)
        self.output_dir: Path | None = None
        if trainer.output_dir is not None:
            describe(model)
            self.output_dir = writable_directory("output_dir", trainer.output_dir)
            parts = [CollapseWarning, Pictures, Checkpoints]
            given = {type(callback) for callback in self.callbacks}
            self.callbacks += [part() for part in parts if part not in given]
        self.checkpoints = next((part for part in self.callbacks if isinstance(part, Checkpoints)), None)

    def run(self, resume: bool, progress: bool) -> list[EpochRecord]:
        """Train from the start or from a checkpoint to the end."""
        found = self._checkpoint_to_resume(resume)
        main = self.accelerator.is_main_process
        with randomness.isolated(self.device), tuned(self.model, self.device, self.trainer.precision):
            set_seed(self.trainer.seed, device_specific=True)  # dropout and draws are of the global generators
            run = self._start()
            self._tell("on_start", run)
            with (
                ProgressReport(progress and main, run.total_steps, run.max_epochs) as report,
                Interruption(enabled=self.output_dir is not None) as interruption,
            ):
                if found is not None:
                    self._restore(run, *found)
                    report.line(f"resumed from {found[0]}, step {run.step} of {run.total_steps}")
                while run.epoch <= run.max_epochs and run.stop_reason is None:
                    self._epoch(run, report, interruption)
            self._tell("on_end", run)
        self.model.eval()
        return run.history

    def _start(self) -> Run:
        trainer = self.trainer
        model = self.model.to(self.device)
        if trainer.sync_batch_norm:
            model = self.model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        module: nn.Module = ObjectiveModule(model, self.objective)
        if self.compiled:
            module.forward = torch.compile(module.forward)  # type: ignore[method-assign]
        guard = GradientGuard(model, trainer.clip_norm, trainer.skip_norm)
        make = OPTIMIZERS[trainer.optimizer] if isinstance(trainer.optimizer, str) else trainer.optimizer
        optimizer = make(model.parameters(), lr=trainer.learning_rate)
        total_steps = trainer.max_epochs * len(self.batches)
        named = trainer.lr_schedule
        factor = LR_SCHEDULES[named](total_steps) if isinstance(named, str) else named
        run = Run(
            model,
            self.accelerator.prepare_model(module),
            optimizer,
            lambda step: trainer.learning_rate * factor(step),
            guard,
            self.accelerator,
            steps_per_epoch=len(self.batches),
            max_epochs=trainer.max_epochs,
        )
        run.objective, run.recipe = self.objective, self._recipe()
        run.examples = _examples(self.train if self.val is None else self.val, self.device)
        run.output_dir = self.output_dir if self.accelerator.is_main_process else None
        run.checkpoint = functools.partial(self._write_checkpoint, run)
        return run

    def _epoch(self, run: Run, report: ProgressReport, interruption: Interruption) -> None:
        started = time.perf_counter() - run.seconds
        run.model.train()
        for pieces in self.batches.epoch(run.epoch, run.position):
            run.take_step(pieces)
            run.seconds = time.perf_counter() - started
            reading = run.step % _READ_EVERY == 0 or run.epoch_is_over
            if reading:
                report.steps(run.step, run.read()[0], run.means.totals()[-1])
            self._tell("on_step", run)
            self._stop_if_interrupted(run, interruption, reading)
        (train, num_images), skipped = self._over_processes(run.means), run.read()[1]
        seconds = time.perf_counter() - started
        run.history.append(
            EpochRecord(
                epoch=run.epoch,
                step=run.step,
                train=train,
                val=None if self.val is None else self._validate(run),
                learning_rate=run.optimizer.param_groups[0]["lr"],
                skipped=skipped,
                num_images=num_images,
                seconds=seconds,
                images_per_second=num_images / seconds,
            )
        )
        run.means, run.seconds = Means(), 0.0
        report.epoch(run.history[-1])
        self._tell("on_epoch", run)
        if run.output_dir is not None:
            _write_models(run, run.output_dir)
        run.checkpoint()

    def _validate(self, run: Run) -> Any:
        """Means over the validation images, with the same draws and the schedules' last values each time."""
        means, counts = Means(), torch.ones((), dtype=torch.bool, device=self.device)
        with randomness.isolated(self.device), eval_mode(run.evaluated), self.accelerator.autocast():
            set_seed(self.trainer.seed, device_specific=True)
            for x in self._val_batches():
                terms = self.objective(run.evaluated, x, step=run.total_steps - 1)
                means.add(terms, len(x), counts)
        return check_terms(self._over_processes(means)[0], f"on `val` after step {run.step}")

    def _val_batches(self) -> Iterable[Tensor]:
        """This process's part of the validation images."""
        if not isinstance(self.val, Indexed):
            return (x.to(self.device) for x in as_batches(self.val, 4 * self.trainer.batch_size))
        mine = torch.arange(len(self.val)).tensor_split(self.accelerator.num_processes)[self.accelerator.process_index]
        return self.val.fetch((mine[a:b] for a, b in even_parts(len(mine), 4 * self.trainer.batch_size)), self.device)

    def _over_processes(self, means: Means) -> tuple[Any, int]:
        """The means over the images of all processes, and how many there are."""
        totals = torch.tensor(means.totals(), dtype=torch.float64)
        if self.accelerator.num_processes > 1:
            totals = self.accelerator.reduce(totals.to(self.device), "sum").cpu()
        return means.read(totals.tolist()), int(totals[-1])

    def _tell(self, event: str, run: Run) -> None:
        for callback in self.callbacks:
            if hasattr(callback, event):
                getattr(callback, event)(run)

    def _stop_if_interrupted(self, run: Run, interruption: Interruption, reading: bool) -> None:
        signal_number = interruption.signal
        if self.accelerator.num_processes > 1:
            if not reading:  # all processes must stop at the same step, and asking them takes time
                return
            signals = self.accelerator.gather(torch.tensor([signal_number], device=self.device))
            signal_number = int(signals.max())
        if signal_number:
            run.checkpoint()
            raise TrainingInterrupted(signal_number)

    def _checkpoint_to_resume(self, resume: bool) -> tuple[Path, dict[str, Any]] | None:
        if self.output_dir is None:
            if resume:
                raise ValueError("`resume` needs the `output_dir` of the run to go on with, got None.")
            return None
        self.accelerator.wait_for_everyone()
        found = newest_checkpoint(self.output_dir)
        if found is not None and not resume:
            raise FileExistsError(
                f"`output_dir` {self.output_dir} has the checkpoints of a run: go on with resume=True"
                " (vaelib train --resume), or give another directory."
            )
        self.accelerator.wait_for_everyone()
        return found

    def _restore(self, run: Run, path: Path, state: dict[str, Any]) -> None:
        for name, value in run.recipe.items():
            if state["recipe"][name] != value:
                raise ValueError(
                    f"`{name}` must be {state['recipe'][name]!r} as in {path}, got {value!r};"
                    " give another `output_dir` for another run."
                )
        for callback, kept in zip(self._stateful(), state["callbacks"], strict=True):
            callback.load_state_dict(kept)
        if isinstance(self.batches, LoaderBatches):
            self.batches.load_state_dict(state["loader"])
        run.load_state_dict(state)

    def _write_checkpoint(self, run: Run) -> None:
        if self.checkpoints is None or self.output_dir is None:
            return
        loader = self.batches.state_dict() if isinstance(self.batches, LoaderBatches) else {}
        callbacks = [callback.state_dict() for callback in self._stateful()]
        state = {"recipe": run.recipe, "callbacks": callbacks, "loader": loader} | run.state_dict()
        if run.output_dir is not None:
            self.checkpoints.write(run.output_dir, run.step, state)

    def _stateful(self) -> list[Any]:
        return [callback for callback in self.callbacks if hasattr(callback, "state_dict")]

    def _recipe(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be resumed; ``max_epochs`` may change."""
        trainer = self.trainer
        names = ("batch_size", "learning_rate", "accumulate", "clip_norm", "skip_norm", "precision", "seed")
        return {name: getattr(trainer, name) for name in names} | {
            "model": describe(self.model) if self.output_dir is not None else None,
            "objective": type(self.objective).__name__,
            "lr_schedule": trainer.lr_schedule if isinstance(trainer.lr_schedule, str) else "callable",
            "optimizer": trainer.optimizer if isinstance(trainer.optimizer, str) else "callable",
            "compile": self.compiled,
            "processes": self.accelerator.num_processes,
            "callbacks": [type(callback).__name__ for callback in self.callbacks],
            "steps_per_epoch": len(self.batches),
            "num_images": getattr(self.batches, "num_images", None),
        }


def _source(name: str, data: Any, model: nn.Module, device: torch.device) -> Any:
    """In-memory images move to the device once and for all, if they fit; streams and loaders stay what they are."""
    if isinstance(data, Tensor):
        data = ImageDataset(data)
    if not isinstance(data, Indexed):
        if data is not None and iter(data) is data:
            raise TypeError(f"`{name}` must be images, or a loader that can be passed over again, got an iterator.")
        return data
    wanted = tuple(getattr(model, "image_shape", data.image_shape))
    if tuple(data.image_shape) != wanted:
        raise ValueError(
            f"`{name}` must have images of the model's shape {wanted}, got {tuple(data.image_shape)};"
            " vaelib.data.load(..., image_size=...) resizes."
        )
    return data.to(device) if isinstance(data, ImageDataset) and _fits(data.images, device) else data


def _fits(images: Tensor, device: torch.device) -> bool:
    return device.type != "cuda" or images.nbytes < torch.cuda.mem_get_info(device)[0] // 2


def _examples(data: Any, device: torch.device) -> Tensor:
    """The first images, with fixed draws of their own."""
    with randomness.isolated(device):
        torch.manual_seed(0)
        if isinstance(data, Indexed):
            return next(data.fetch([torch.arange(min(_EXAMPLES, len(data)))], device))
        return next(as_batches(data, _EXAMPLES))[:_EXAMPLES].to(device)


def _write_models(run: Run, output: Path) -> None:
    """The models of an epoch. The best is the one of the lowest validation loss; without validation, the last."""
    save(run.evaluated, output / "last")
    validated = [record.val.loss for record in run.history if record.val is not None]
    if not validated or validated[-1] == min(validated):
        save(run.evaluated, output / "best")
    write_csv(run.history, output / "history.csv")
