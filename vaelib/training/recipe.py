"""What a run was asked for, and whether a checkpoint is of the same run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator

from vaelib._files import check_claimed, claim
from vaelib.serialization import describe
from vaelib.training.checkpoints import newest_checkpoint
from vaelib.training.run import Run

if TYPE_CHECKING:
    from vaelib.training.fit import Fit

__all__ = ["OUTPUTS", "check_recipe", "checkpoint_to_resume", "recipe_of"]

OUTPUTS = ("best", "checkpoints", "curves.png", "history.csv", "last", "reconstructions", "samples", "traversals")
"""What a run writes into its ``output_dir``."""


def checkpoint_to_resume(
    output_dir: Path | None, resume: bool, accelerator: Accelerator
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint in ``output_dir``; an error if there is one and ``resume`` is false."""
    if output_dir is None:
        if resume:
            raise ValueError("`resume` needs the `output_dir` of the run to go on with, got None.")
        return None
    found = newest_checkpoint(output_dir)
    if found is not None and not resume:
        raise FileExistsError(
            f"`output_dir` {output_dir} has the checkpoints of a run: go on with resume=True"
            " (vaelib train --resume), or give another directory."
        )
    if found is None:
        check_claimed("output_dir", output_dir, OUTPUTS)
    accelerator.wait_for_everyone()  # none may write before all have looked
    if accelerator.is_main_process:
        claim(output_dir, OUTPUTS)
    return found


def recipe_of(fit: Fit) -> dict[str, Any]:
    """What a checkpoint must agree with to be resumed; ``max_epochs`` may change."""
    trainer = fit.trainer
    names = ("batch_size", "learning_rate", "accumulate", "clip_norm", "skip_norm", "precision", "seed")
    return {name: getattr(trainer, name) for name in names} | {
        "model": None if fit.output_dir is None else describe(fit.model),
        "objective": type(fit.objective).__name__,
        "lr_schedule": trainer.lr_schedule if isinstance(trainer.lr_schedule, str) else "callable",
        "optimizer": trainer.optimizer if isinstance(trainer.optimizer, str) else "callable",
        "compile": fit.compiled,
        "processes": fit.accelerator.num_processes,
        "callbacks": [type(callback).__name__ for callback in fit.callbacks],
        "steps_per_epoch": len(fit.batches),
        "num_images": getattr(fit.batches, "num_images", None),
    }


def check_recipe(run: Run, path: Path, state: dict[str, Any]) -> None:
    """Raise ``ValueError`` if the checkpoint ``state`` at ``path`` is of another run."""
    kept = state["recipe"]
    for name, value in run.recipe.items():
        if _given(kept[name]) != _given(value):
            raise ValueError(
                f"`{name}` must be {kept[name]!r} as in {path}, got {value!r};"
                " give another `output_dir` for another run."
            )
    begun = -(-state["step"] // run.steps_per_epoch)
    if begun > run.max_epochs:
        raise ValueError(f"`max_epochs` must be >= {begun}, the epochs begun in {path}, got {run.max_epochs}.")


def _given(described: Any) -> Any:
    """Without arguments that are None, which an older version may not have had."""
    if isinstance(described, dict):
        return {name: _given(value) for name, value in described.items() if value is not None}
    return described
