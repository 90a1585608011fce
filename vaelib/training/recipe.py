"""What a run was asked for and which images it had, and whether a checkpoint is of the same run."""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from vaelib._checks import ModelFileError, shown
from vaelib._files import check_claimed, claim
from vaelib._images import ImageSet
from vaelib.data import ImageStream
from vaelib.objectives import RENAMED
from vaelib.serialization import describe
from vaelib.serialization.descriptions import of_today
from vaelib.training.batches import first_batch
from vaelib.training.checkpoints import checkpoint_path, checkpoints_in, newest_checkpoint, read_checkpoint
from vaelib.training.run import Run, scheduled
from vaelib.vae import condition_of

__all__ = [
    "FIRST_BATCH",
    "OUTPUTS",
    "check_recipe",
    "checkpoint_to_resume",
    "differences",
    "fingerprint",
    "marks_of",
    "recipe_of",
]

OUTPUTS = ("best", "checkpoints", "curves.png", "history.csv", "last", "reconstructions", "samples", "traversals")
"""What a run writes into its ``output_dir``."""

_logger = logging.getLogger("vaelib.training")
FIRST_BATCH = "first batch"
_MOST_BYTES = 2**28  # of images that are hashed: a quarter of a second
_MOST_FILES = 1000  # whose size is asked for, since a network file system answers slowly


def checkpoint_to_resume(
    output_dir: Path | None, resume: bool, accelerator: Accelerator
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint in ``output_dir``; an error if there is one and ``resume`` is false."""
    if output_dir is None:
        if resume:
            raise ValueError("`resume` needs the `output_dir` of the run to resume, got None.")
        return None
    found = None
    if accelerator.is_main_process:
        if checkpoints_in(output_dir) and not resume:
            raise FileExistsError(
                f"`output_dir` {output_dir} has the checkpoints of a run: resume it with resume=True"
                " (vaelib train --resume), or give another directory."
            )
        found = newest_checkpoint(output_dir)
        if found is None:
            check_claimed("output_dir", output_dir, OUTPUTS)
        claim(output_dir, OUTPUTS)
    return found if accelerator.num_processes == 1 else _of_the_first_process(found, output_dir, accelerator)


def _of_the_first_process(
    found: tuple[Path, dict[str, Any]] | None, output_dir: Path, accelerator: Accelerator
) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that the first process has found, which each reads itself; ``ValueError`` if one cannot."""
    step = broadcast(torch.tensor([-1 if found is None else found[1]["step"]], device=accelerator.device))
    if int(step) < 0:
        return None
    path, problem = checkpoint_path(output_dir, int(step)), ""
    if found is None:
        try:
            found = path, read_checkpoint(path)
        except ModelFileError as error:
            problem = f": {error}"
    can_read = accelerator.gather(torch.tensor([found is not None], device=accelerator.device)).tolist()
    if not all(can_read):
        others = ", ".join(str(number) for number, ok in enumerate(can_read) if not ok)
        raise ValueError(
            f"`output_dir` must be on a file system that all processes share: process {others} cannot read {path}, from"
            f" which process 0 resumes{problem}"
        )
    return found


def recipe_of(asked: dict[str, Any], run: Run, images: dict[str, Any], compile: bool) -> dict[str, Any]:
    """What a checkpoint must agree with to be resumed; ``max_epochs`` may change.

    ``asked`` are the arguments of the ``Trainer`` by name, ``images`` those of ``train`` and ``val``.
    """
    names = ("batch_size", "learning_rate", "accumulate", "clip_norm", "skip_norm", "precision", "seed")
    condition = condition_of(run.model)
    written, optimizer, schedule = asked["output_dir"] is not None, asked["optimizer"], asked["lr_schedule"]
    return {name: asked[name] for name in names} | {
        "model": describe(run.model) if written else None,
        "objective": type(run.objective).__name__,
        "objective_arguments": _plain_arguments(run.objective),
        "lr_schedule": schedule if isinstance(schedule, str) else "callable",
        "optimizer": optimizer if isinstance(optimizer, str) else "callable",
        "optimizer_class": getattr(optimizer, "__name__", "callable"),
        "compile": compile,
        "processes": run.accelerator.num_processes,
        "callbacks": [type(callback).__name__ for callback in run.callbacks],
        "steps_per_epoch": run.steps_per_epoch,
        "num_images": getattr(run.batches, "num_images", None),
        "images": {name: marks_of(name, data, condition) for name, data in images.items()} if written else {},
    }


def check_recipe(run: Run, path: Path, state: dict[str, Any]) -> None:
    """Raise ``ValueError`` if the checkpoint ``state`` at ``path`` is of another run."""
    recipe = state["recipe"]
    kept = recipe | {
        "model": of_today(recipe.get("model")),
        "objective": RENAMED.get(recipe["objective"], recipe["objective"]),
    }
    asked = {name: value for name, value in run.recipe.items() if name not in ("images", "objective_arguments")}
    for name, value in asked.items():
        before, now = _given(kept.get(name, value)), _given(value)  # version 0.1 kept fewer
        if before != now:
            where, before, now = _first_difference(name, before, now)
            raise ValueError(
                f"`{where}` must be {shown(before)} as in {path}, got {shown(now)};"
                " give another `output_dir` for another run."
            )
    _check_objective(run, path, state)
    _check_images(run, path, state)
    begun = -(-state["step"] // run.steps_per_epoch)
    if begun > run.max_epochs:
        raise ValueError(f"`max_epochs` must be >= {begun}, the epochs begun in {path}, got {run.max_epochs}.")


def _plain_arguments(objective: Any) -> dict[str, Any]:
    """Arguments of its constructor that it keeps by their names, as vaelib's classes do, if they are plain values."""
    kept = getattr(objective, "__dict__", {})
    names = [name for name in inspect.signature(type(objective)).parameters if name in kept] if kept else []
    values = {name: list(kept[name]) if isinstance(kept[name], tuple) else kept[name] for name in names}
    return {name: value for name, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    """Whether JSON gives back an equal value; of lists, those of numbers and words."""
    if isinstance(value, list):
        return all(_is_plain(entry) and not isinstance(entry, list) for entry in value)
    return isinstance(value, bool | int | float | str)


def _check_objective(run: Run, path: Path, state: dict[str, Any]) -> None:
    """Raise ``ValueError`` if the objective has other weights; schedules of a longer run may differ, with a warning."""
    kept = state["recipe"].get("objective_arguments", {})
    for name, value in run.recipe["objective_arguments"].items():
        if kept.get(name, value) != value:
            raise ValueError(f"`{name}` of the objective must be {kept[name]!r} as in {path}, got {value!r}.")
    now = scheduled(run.objective, state["step"])
    for name, before in state.get("scheduled", {}).items():
        if now.get(name, before) == before:
            continue
        if state["max_epochs"] == run.max_epochs:
            raise ValueError(
                f"`{name}` must be {before:.6g} at step {state['step']} as in {path}, got {now[name]:.6g}."
            )
        if run.accelerator.is_main_process:
            message = "`%s` was %.6g at step %s of %s, and is %.6g there in this run, whose length is another."
            _logger.warning(message, name, before, state["step"], path, now[name])


def _check_images(run: Run, path: Path, state: dict[str, Any]) -> None:
    """Raise ``ValueError`` if ``train`` or ``val`` are other images than in the checkpoint."""
    level = logging.WARNING if run.accelerator.is_main_process else logging.DEBUG
    kept = state["recipe"].get("images")
    if kept is None:
        _logger.log(level, "%s is of version 0.1, which did not note its images: they are not compared.", path)
        history = state["history"]
        kept = {"val": {} if history[0]["val"] else None} if history else {}
    for name, marks in run.recipe["images"].items():
        before = kept.get(name, marks)
        if (before is None) != (marks is None):
            raise ValueError(f"`{name}` must be {'None' if before is None else 'given'} as in {path}.")
        differ = differences(before or {}, marks or {})
        if any(not entry.startswith(FIRST_BATCH) for entry in differ):
            raise ValueError(
                f"`{name}` must be the images that {path} was trained with, got others: {'; '.join(differ)}."
                " Give another `output_dir` for another run."
            )
        if differ:
            message = "The first batch of `%s` is not the one that %s began with: other images, or draws of their own."
            _logger.log(level, message, name, path)


def _first_difference(name: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """Where two descriptions of one thing differ, and the two values there."""
    if not isinstance(before, dict) or not isinstance(now, dict) or before.get("class") != now.get("class"):
        return name, before, now
    entries = ((key, before.get(key), now.get(key)) for key in {**before, **now})
    key, *values = next(entry for entry in entries if entry[1] != entry[2])
    return _first_difference(f"{name}.{key}", *values)


def _given(described: Any) -> Any:
    """Without arguments that are None, which an older version may not have had."""
    if isinstance(described, dict):
        return {name: _given(value) for name, value in described.items() if value is not None}
    return described


def marks_of(name: str, data: Any, condition: Any = None) -> dict[str, Any] | None:
    """What a checkpoint keeps of ``train`` or ``val``, to refuse others; ``condition`` is the model's part, or None.

    The first batch of somebody else's loader need not be the same each time. Its images are hashed where its set is a
    ``TensorDataset`` or a ``Subset`` of one.
    """
    if data is None or isinstance(data, ImageSet):
        return None if data is None else fingerprint(data)
    first = first_batch(name, data, torch.device("cpu"), condition)
    dataset: Any = getattr(data, "dataset", None)
    marks = {"batches": len(data), "image_shape": list(first.x.shape[1:]), "dtype": str(first.x.dtype)}
    if hasattr(dataset, "__len__"):
        marks["images"] = len(dataset)
    contents = _contents_of(dataset)
    marks |= {} if contents is None else {"contents": contents}
    return marks | {FIRST_BATCH: "".join(_hash_of(part) for part in first if part is not None)}


def fingerprint(data: Any) -> dict[str, Any]:
    """Of images that can be had by number: how many, of what shape, and a hash.

    In memory the hash is of all bytes up to 256 MiB, of larger sets of evenly spaced images. Of a stream it is of the
    names of its files, the places of images in shards, and the sizes of up to 1,000 evenly spaced files.
    """
    marks: dict[str, Any] = {"images": len(data), "image_shape": list(data.image_shape)}
    marks |= {"dynamic": data.dynamic, "flip": data.flip}
    condition = getattr(data, "condition", None)
    marks |= {} if condition is None else {"condition": _hash_of(condition)}
    if isinstance(data, ImageStream):
        return marks | {"files": _hash_of_files(data)}
    return marks | {"dtype": str(data.images.dtype), "contents": _hash_of(data.images)}


def differences(kept: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of the marks that both have and that differ, with their values."""
    return [
        f"{name} {kept[name]} there, {value} here"
        for name, value in found.items()
        if name in kept and kept[name] != value
    ]


def _contents_of(dataset: Any) -> str | None:
    """The hash of the images of a ``TensorDataset``, or of a ``Subset`` of it; None of all else."""
    if isinstance(dataset, TensorDataset):
        return _hash_of(dataset.tensors[0])
    whole = _contents_of(dataset.dataset) if isinstance(dataset, Subset) else None
    return None if whole is None else _hash_of(torch.as_tensor(dataset.indices)) + whole


def _hash_of(rows: Tensor) -> str:
    digest = hashlib.sha256()
    stride = -(-rows.nbytes // _MOST_BYTES) or 1
    for piece in rows[::stride].split(1024):
        digest.update(piece.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _hash_of_files(data: ImageStream) -> str:
    places = data.listing.places
    digest = hashlib.sha256(places.tobytes())
    files = [data.listing.files[number] for number in np.unique(places["file"])]
    root = os.path.commonpath([os.path.dirname(file) for file in files])
    for file in files:
        digest.update(os.path.relpath(file, root).encode(errors="surrogateescape") + b"\0")
    for file in files[:: -(-len(files) // _MOST_FILES)]:
        digest.update(b"%d\0" % os.path.getsize(file))
    return digest.hexdigest()[:16]
