"""One call of ``Trainer.fit``: from a recipe, a model and images to a finished run."""

from __future__ import annotations

import functools
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from vaelib._files import writable_directory
from vaelib._images import ImageSet, as_batches, opened
from vaelib.data import ImageDataset
from vaelib.functional import check_levels
from vaelib.likelihoods import DiscretizedLogistic
from vaelib.objectives.elbo import default_objective
from vaelib.serialization import describe, save
from vaelib.training import randomness
from vaelib.training.batches import IndexedBatches, LoaderBatches, Share
from vaelib.training.checkpoints import Checkpoints
from vaelib.training.fingerprint import fingerprint, fingerprint_of_loader
from vaelib.training.hardware import compiled, compiles, make_accelerator, tuned
from vaelib.training.heartbeat import watched
from vaelib.training.history import EpochRecord, Means, write_csv
from vaelib.training.interruption import Interruption, TrainingInterrupted, agreed_stop
from vaelib.training.lock import locked
from vaelib.training.optimization import Optimization
from vaelib.training.pictures import CollapseWarning, Pictures
from vaelib.training.progress import ProgressReport
from vaelib.training.recipe import check_recipe, checkpoint_to_resume, recipe_of
from vaelib.training.run import ObjectiveModule, Run
from vaelib.training.validation import over_processes, validate, warn_of_moving_schedules

if TYPE_CHECKING:
    from vaelib.training.trainer import Trainer

__all__ = ["Fit"]
_READ_EVERY = 50  # steps between looks at the loss, since each waits for the device
_EXAMPLES = 256  # images for pictures and for the count of dead latents


class Fit:
    """One call of :meth:`Trainer.fit`."""

    def __init__(self, trainer: Trainer, model: nn.Module, train: Any, val: Any) -> None:
        self.trainer, self.model = trainer, model
        self.accelerator = make_accelerator(trainer.precision)
        self.device = self.accelerator.device
        self.objective = trainer.objective or default_objective(model)
        self.module = ObjectiveModule(model, self.objective)
        share = Share(self.accelerator.process_index, self.accelerator.num_processes, trainer.accumulate)
        sources = {name: _source(name, data, model) for name, data in (("train", train), ("val", val))}
        self.train, self.val = (_moved(data, self.device) for data in sources.values())
        self.batches = (
            IndexedBatches(self.train, trainer.batch_size, share, trainer.seed, self.device)
            if isinstance(self.train, ImageSet)
            else LoaderBatches(self.train, share, self.device)
        )
        self.compiled = compiles(trainer.compile, trainer.max_epochs * len(self.batches), self.device)
        self.output_dir: Path | None = None
        if trainer.output_dir is not None:
            describe(model)
            self.output_dir = Path(trainer.output_dir)
            if self.accelerator.is_main_process:  # of several machines, the others' disks are left alone
                writable_directory("output_dir", self.output_dir)
        self.marks = {} if self.output_dir is None else {name: _marks(name, data) for name, data in sources.items()}
        self.callbacks = _callbacks(trainer)
        self.checkpoints = next((part for part in self.callbacks if isinstance(part, Checkpoints)), None)

    def run(self, resume: bool, progress: bool) -> list[EpochRecord]:
        """Train from the start or from a checkpoint to the end."""
        written = self.output_dir if self.accelerator.is_main_process else None
        with watched(), nullcontext() if written is None else locked(written):
            return self._run(resume, progress)

    def _run(self, resume: bool, progress: bool) -> list[EpochRecord]:
        found = checkpoint_to_resume(self.output_dir, resume, self.accelerator)
        if found is not None and self.trainer.compile is None:  # a longer run is compiled if the one so far was
            self.compiled = found[1]["recipe"]["compile"]
        main = self.accelerator.is_main_process
        with randomness.isolated(self.device), tuned(self.module, self.device, self.trainer.precision):
            set_seed(self.trainer.seed, device_specific=True)  # dropout and draws are of the global generators
            run = _started(self)
            if found is not None:
                check_recipe(run, *found)
            if self.val is not None and main:
                warn_of_moving_schedules(run)
            self._tell("on_start", run)
            with (
                ProgressReport(progress and main, run.total_steps, run.max_epochs) as report,
                Interruption(enabled=self.output_dir is not None) as interruption,
            ):
                if found is not None:
                    self._restore(run, *found)
                    report.line(f"resumed from {found[0]}, step {run.step} of {run.total_steps}")
                # An epoch that has begun is finished, whatever set `stop_reason` in it.
                while run.epoch <= run.max_epochs and (run.stop_reason is None or run.position > 0):
                    self._epoch(run, report, interruption)
                if run.stop_reason is not None:
                    report.line(f"ended before the last epoch: {run.stop_reason}")
            self._tell("on_end", run)
        self.accelerator.wait_for_everyone()  # the first process may still be drawing
        self.model.eval()
        return run.history

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
            if self.checkpoints is not None and self.checkpoints.due(run):
                run.checkpoint()
            self._stop_if_interrupted(run, interruption, must_ask=run.epoch_is_over)
        run.history.append(_record(self, run, started))
        run.means, run.seconds = Means(), 0.0
        report.epoch(run.history[-1])
        self._tell("on_epoch", run)
        run.stop_reason = agreed_stop(run.stop_reason, self.accelerator)
        if run.output_dir is not None:
            _write_models(run, run.output_dir)
        run.checkpoint()
        self._stop_if_interrupted(run, interruption, must_ask=True)  # a signal may have come in validation

    def _tell(self, event: str, run: Run) -> None:
        for callback in self.callbacks:
            if hasattr(callback, event):
                getattr(callback, event)(run)

    def _stop_if_interrupted(self, run: Run, interruption: Interruption, must_ask: bool) -> None:
        signal_number = interruption.agreed(self.accelerator, run.step, must_ask)
        if signal_number:
            if run.position > 0:  # the end of an epoch has its own
                run.checkpoint()
            self.accelerator.wait_for_everyone()  # torchrun ends all processes when one has ended
            raise TrainingInterrupted(signal_number, run.step, run.last_checkpoint)

    def _restore(self, run: Run, path: Path, state: dict[str, Any]) -> None:
        for callback, kept in zip(self._stateful(), state["callbacks"], strict=True):
            callback.load_state_dict(kept)
        if isinstance(self.batches, LoaderBatches):
            self.batches.load_state_dict(state["loader"])
        run.load_state_dict(state)
        run.last_checkpoint = path

    def _write_checkpoint(self, run: Run) -> None:
        if self.checkpoints is None or self.output_dir is None:
            return
        loader = self.batches.state_dict() if isinstance(self.batches, LoaderBatches) else {}
        callbacks = [callback.state_dict() for callback in self._stateful()]
        state = {"recipe": run.recipe, "callbacks": callbacks, "loader": loader} | run.state_dict()
        if run.output_dir is not None:
            run.last_checkpoint = self.checkpoints.write(run.output_dir, run.step, state)

    def _stateful(self) -> list[Any]:
        return [callback for callback in self.callbacks if hasattr(callback, "state_dict")]


def _callbacks(trainer: Trainer) -> list[Any]:
    """Those given, and those that belong to every run that is written."""
    given = list(trainer.callbacks)
    if trainer.output_dir is None:
        return given
    kinds = {type(callback) for callback in given}
    return given + [part() for part in (CollapseWarning, Pictures, Checkpoints) if part not in kinds]


def _record(fit: Fit, run: Run, started: float) -> EpochRecord:
    """Of the epoch whose steps are done; validates."""
    (train, num_images), skipped = over_processes(run.means, fit.accelerator), run.read()[1]
    seconds = time.perf_counter() - started
    trainer = fit.trainer
    return EpochRecord(
        epoch=run.epoch,
        step=run.step,
        train=train,
        val=None if fit.val is None else validate(run, fit.val, 4 * trainer.batch_size, trainer.seed),
        learning_rate=float(run.optimization.optimizer.param_groups[0]["lr"]),
        skipped=skipped,
        num_images=num_images,
        seconds=seconds,
        images_per_second=num_images / seconds,
    )


def _started(fit: Fit) -> Run:
    trainer = fit.trainer
    module: nn.Module = fit.module.to(fit.device)
    if trainer.sync_batch_norm:
        module.model = fit.model = nn.SyncBatchNorm.convert_sync_batchnorm(fit.model)
    if fit.compiled:
        module.forward = compiled(module.forward, fit.device)
    by_name = isinstance(trainer.optimizer, str)
    graphs = fit.compiled and fit.device.type == "cuda" and by_name and fit.accelerator.scaler is None
    total_steps = trainer.max_epochs * len(fit.batches)
    optimization = Optimization(
        module,
        trainer.make_optimizer(module, graphs),
        trainer.learning_rate_schedule(total_steps),
        fit.accelerator,
        trainer.clip_norm,
        trainer.skip_norm,
        graphs,
    )
    prepared = fit.accelerator.prepare_model(module, device_placement=False)  # it is there, as views
    run = Run(prepared, fit.model, optimization, fit.accelerator, len(fit.batches), trainer.max_epochs)
    run.objective, run.recipe = fit.objective, recipe_of(fit)
    shown = ("train", fit.train) if fit.val is None else ("val", fit.val)
    run.examples = _examples(*shown, fit.device)
    if isinstance(getattr(fit.model, "likelihood", None), DiscretizedLogistic):  # a step waits for no device to look
        check_levels("train", _examples("train", fit.train, fit.device))
    run.output_dir = fit.output_dir if fit.accelerator.is_main_process else None
    run.checkpoint = functools.partial(fit._write_checkpoint, run)
    return run


def _source(name: str, data: Any, model: nn.Module) -> Any:
    """Images by number, of the model's shape, or somebody else's loader."""
    if data is None and name == "val":
        return None
    data = opened(name, data)
    if isinstance(data, Tensor):
        data = ImageDataset(data)
    if not isinstance(data, ImageSet):
        if iter(data) is data:
            raise TypeError(f"`{name}` must be images, or a loader that can be passed over again, got an iterator.")
        return data
    wanted = tuple(getattr(model, "image_shape", data.image_shape))
    if tuple(data.image_shape) != wanted:
        raise ValueError(
            f"`{name}` must have images of the model's shape {wanted}, got {tuple(data.image_shape)};"
            " vaelib.data.load(..., image_size=...) resizes."
        )
    return data


def _moved(data: Any, device: torch.device) -> Any:
    """In-memory images move to the device once and for all, if they fit; streams and loaders stay what they are."""
    if not isinstance(data, ImageDataset):
        return data
    if device.type == "cuda" and data.images.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return data
    return data.to(device)


def _marks(name: str, data: Any) -> dict[str, Any] | None:
    """What a checkpoint keeps of the images, to refuse others."""
    if data is None or isinstance(data, ImageSet):
        return None if data is None else fingerprint(data)
    return fingerprint_of_loader(data, _examples(name, data, torch.device("cpu")))


def _examples(name: str, data: Any, device: torch.device) -> Tensor:
    """The first images, with fixed draws of their own."""
    with randomness.isolated(device):
        set_seed(0)
        if isinstance(data, ImageSet):
            return next(data.fetch([torch.arange(min(_EXAMPLES, len(data)))], device)).x
        generator = getattr(data, "generator", None)
        state = None if generator is None else generator.get_state()
        first = next(as_batches(name, data, _EXAMPLES, device)).x[:_EXAMPLES]
        if generator is not None:
            generator.set_state(state)
        return first


def _write_models(run: Run, output: Path) -> None:
    """The models of an epoch. The best is the one of the lowest criterion; without validation, the last."""
    save(run.evaluated, output / "last")
    compared = [record.criterion for record in run.history if record.criterion is not None]
    if not compared or compared[-1] == min(compared):
        save(run.evaluated, output / "best")
    write_csv(run.history, output / "history.csv")
