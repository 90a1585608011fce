"""The trainer: what is needed around the loop."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from vaelib._checks import check_choice, check_float, check_int
from vaelib._files import writable_directory
from vaelib.data import ImageDataset
from vaelib.evaluation.bound import as_batches, per_image_terms
from vaelib.objectives import Elbo, Objective, Reconstruction
from vaelib.plots import save_pairs
from vaelib.schedules import Schedule, constant, cosine, linear_warmup
from vaelib.serialization import describe, save
from vaelib.training.history import EpochRecord, write_csv
from vaelib.training.loop import Loop, check_terms
from vaelib.training.progress import ProgressReport
from vaelib.vae import VAE, AutoEncoder

__all__ = ["Trainer"]

_BETAS = (0.9, 0.99)  # a shorter memory of squares than torch's lets short runs use a high learning rate
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": functools.partial(torch.optim.Adam, betas=_BETAS, fused=True),
    "adamw": functools.partial(torch.optim.AdamW, betas=_BETAS, fused=True),
}
LR_SCHEDULES = ("cosine", "constant")
_SHOWN = 50  # pictures in the reconstruction grid


class Trainer:
    """Trains a model on images by any objective.

    Args:
        objective: What is minimised; :class:`Elbo`, for an :class:`AutoEncoder` :class:`Reconstruction`, if None.
        max_epochs: Passes over the training images.
        batch_size: Images per step.
        learning_rate: At its peak.
        lr_schedule: ``"cosine"``, a linear warm-up over the first twentieth and half a cosine to zero, or
            ``"constant"``.
        optimizer: ``"adam"`` or ``"adamw"``, with betas (0.9, 0.99); or a callable such as a torch optimiser class,
            called as ``optimizer(parameters, lr=learning_rate)``.
        seed: Of the order of images, the draws and dropout. The weights are the model's own: seed before making it.
        output_dir: Where ``history.csv``, the ``best`` and ``last`` model and a picture of reconstructions per epoch
            go; nothing is written if None.

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
        lr_schedule: str = "cosine",
        optimizer: str | Callable[..., torch.optim.Optimizer] = "adam",
        seed: int = 0,
        output_dir: str | Path | None = None,
    ) -> None:
        self.objective = objective
        self.max_epochs = check_int("max_epochs", max_epochs)
        self.batch_size = check_int("batch_size", batch_size)
        self.learning_rate = check_float("learning_rate", learning_rate, 0.0, above=True)
        check_choice("lr_schedule", lr_schedule, LR_SCHEDULES)
        if not callable(optimizer):
            check_choice("optimizer", optimizer, OPTIMIZERS)
        self.lr_schedule, self.optimizer = lr_schedule, optimizer
        self.seed = check_int("seed", seed, minimum=0)
        self.output_dir = output_dir

    def fit(
        self,
        model: nn.Module,
        train: Tensor | ImageDataset | Iterable[Any],
        val: Tensor | ImageDataset | Iterable[Any] | None = None,
        *,
        progress: bool = True,
    ) -> list[EpochRecord]:
        """Train ``model`` in place; it ends in eval mode, with its last weights.

        The same seed gives bitwise the same weights on the same machine, whatever was drawn before; torch's global
        generator comes back as it was.

        Args:
            model: A :class:`VAE`, an :class:`AutoEncoder`, or whatever the objective runs.
            train: Images ``(N, C, H, W)``, an :class:`ImageDataset`, or a loader that yields batches (or tuples that
                begin with one). A loader brings its own batch size and order.
            val: The same; evaluated after each epoch with the same draws each time.
            progress: Show a bar and a line per epoch on standard error.

        Returns:
            One :class:`EpochRecord` per epoch.

        Raises:
            ValueError: If images and model do not fit, or there is no image.
            TrainingError: A ``ValueError``: if the loss is no longer finite.
            OSError: If ``output_dir`` cannot be written.
            TypeError: If ``output_dir`` is given and a class of the model is not known to :func:`vaelib.save`.
        """
        accelerator = Accelerator()
        train, val = (
            _on_device(name, data, model, accelerator.device) for name, data in (("train", train), ("val", val))
        )
        total_steps = self.max_epochs * _num_batches(train, self.batch_size)
        output = None
        if self.output_dir is not None:
            describe(model)
            output = writable_directory("output_dir", self.output_dir)

        with _fork_rng(accelerator.device), ProgressReport(progress, total_steps, self.max_epochs) as report:
            torch.manual_seed(self.seed)  # dropout draws from the global generator
            shown = None if output is None else _first_images(train if val is None else val, self.seed)
            loop = self._start(model, accelerator, total_steps)
            history: list[EpochRecord] = []
            for epoch in range(1, self.max_epochs + 1):
                batches = as_batches(train, self.batch_size, shuffle=True, generator=loop.generator)
                started = time.perf_counter()
                means = loop.run(batches, report)
                seconds = time.perf_counter() - started
                record = EpochRecord(
                    epoch=epoch,
                    step=loop.step,
                    train=means.read(),
                    val=None if val is None else self._validate(loop, val, total_steps - 1),
                    learning_rate=float(loop.scheduler.get_last_lr()[0]),
                    seconds=seconds,
                    images_per_second=means.num_images / seconds,
                )
                history.append(record)
                report.epoch(record)
                if output is not None:
                    _write(output, model, history, shown)
        model.eval()
        return history

    def _start(self, model: nn.Module, accelerator: Accelerator, total_steps: int) -> Loop:
        make = OPTIMIZERS[self.optimizer] if isinstance(self.optimizer, str) else self.optimizer
        optimizer = make(model.to(accelerator.device).parameters(), lr=self.learning_rate)
        scheduler = LambdaLR(optimizer, _lr_factor(self.lr_schedule, total_steps))
        model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
        generator = torch.Generator(accelerator.device).manual_seed(self.seed)
        return Loop(model, self._objective_for(model), optimizer, scheduler, accelerator, generator)

    def _objective_for(self, model: nn.Module) -> Objective:
        if self.objective is not None:
            return self.objective
        return Reconstruction() if isinstance(model, AutoEncoder) else Elbo()

    def _validate(self, loop: Loop, val: Any, last_step: int) -> Any:
        """Means over the validation images, with the same draws and the schedules' last values each time."""
        generator = torch.Generator(loop.accelerator.device).manual_seed(self.seed)
        batches = as_batches(val, 4 * self.batch_size, generator=generator)
        terms = per_image_terms(loop.model, batches, loop.objective, step=last_step, generator=generator)
        means = type(terms)(*(values.double().mean().item() for values in terms))
        return check_terms(means, f"on `val` after step {loop.step}")


def _lr_factor(lr_schedule: str, total_steps: int) -> Schedule:
    if lr_schedule == "constant":
        return constant(1.0)
    warmup, decay = linear_warmup(max(1, total_steps // 20)), cosine(total_steps, initial=1.0, final=0.0)
    return lambda step: warmup(step + 1) * decay(step)


def _on_device(name: str, data: Any, model: nn.Module, device: torch.device) -> Any:
    """In-memory images move to the device once and for all; a loader stays what it is."""
    if isinstance(data, Tensor):
        data = ImageDataset(data)
    if not isinstance(data, ImageDataset):
        if data is not None and iter(data) is data:
            raise TypeError(f"`{name}` must be images, or a loader that can be passed over again, got an iterator.")
        return data
    wanted = getattr(model, "image_shape", data.image_shape)
    if data.image_shape != tuple(wanted):
        raise ValueError(
            f"`{name}` must have images of the model's shape {tuple(wanted)}, got {data.image_shape};"
            " vaelib.data.load(..., image_size=...) resizes."
        )
    return data.to(device)


def _num_batches(train: Any, batch_size: int) -> int:
    if isinstance(train, ImageDataset):
        return -(-len(train) // batch_size)
    if not hasattr(train, "__len__") or len(train) == 0:
        raise ValueError("`train` must be images, or a loader of known length that is not empty.")
    return len(train)


def _fork_rng(device: torch.device) -> Any:
    """The global generators of the CPU and of the device come back as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _first_images(data: Any, seed: int) -> Tensor:
    """The pictures whose reconstructions are drawn; a loader's own draws for them are not the training's."""
    with _fork_rng(torch.device("cpu")):
        if isinstance(data, ImageDataset):
            return data.batch(slice(_SHOWN), generator=torch.Generator(data.images.device).manual_seed(seed))
        return next(as_batches(data, _SHOWN))[:_SHOWN]


def _write(output: Path, model: nn.Module, history: list[EpochRecord], shown: Tensor | None) -> None:
    """The files of an epoch. The best model is the one of the lowest validation loss; without validation, the last."""
    save(model, output / "last")
    validated = [record.val.loss for record in history if record.val is not None]
    if not validated or validated[-1] == min(validated):
        save(model, output / "best")
    write_csv(history, output / "history.csv")
    if shown is not None and isinstance(model, VAE | AutoEncoder):
        originals = shown.to(next(model.parameters()).device)
        pictures = writable_directory("output_dir", output / "reconstructions")
        save_pairs(originals, model.reconstruct(originals), pictures / f"epoch_{history[-1].epoch:03d}.png")
