"""A run's whole state at one moment: a directory of ``state.json`` and ``tensors.safetensors``. No pickle."""

from __future__ import annotations

import itertools
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vaelib._checks import ModelFileError, check_int
from vaelib._files import committed, files_replaced
from vaelib._weights import is_sealed, read_object, read_tensors, sealed, write_tensors

__all__ = [
    "Checkpoints",
    "by_parameter",
    "checkpoint_path",
    "checkpoints_in",
    "newest_checkpoint",
    "read_checkpoint",
    "write_checkpoint",
]

FOLDER = "checkpoints"
FORMAT = "vaelib-checkpoint-2"
_OLD_FORMAT = "vaelib-checkpoint-1"  # of version 0.1: the tensors have a hash, the state has none
_STATE, _TENSORS = "state.json", "tensors.safetensors"
_NAME = re.compile(r"step_\d{10}")
_MAX_STATE_BYTES = 2**26
_logger = logging.getLogger("vaelib.training")


class Checkpoints:
    """When a run with an ``output_dir`` keeps its state; part of every such run, given to ``callbacks`` to choose.

    Args:
        every: Steps between checkpoints, besides the one after each epoch; None for no others.
        keep_last: How many to keep.

    Raises:
        ValueError: If a number is below 1.

    Examples:
        >>> import vaelib as vl
        >>> trainer = vl.Trainer(output_dir="runs/careful", callbacks=[Checkpoints(every=500, keep_last=3)])
    """

    def __init__(self, every: int | None = None, keep_last: int = 2) -> None:
        self.every = None if every is None else check_int("every", every)
        self.keep_last = check_int("keep_last", keep_last)

    def due(self, run: Any) -> bool:
        """Whether to write one after this step; the end of an epoch has its own."""
        return self.every is not None and run.step % self.every == 0 and not run.epoch_is_over

    def write(self, output_dir: Path, step: int, state: dict[str, Any]) -> Path:
        """Write the checkpoint of ``step``, then remove the oldest."""
        path = checkpoint_path(output_dir, step)
        folder = path.parent
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(".step_*"):  # of a run of version 0.1 that was killed while it wrote
            shutil.rmtree(leftover)
        write_checkpoint(path, state)
        written = [other for other in checkpoints_in(output_dir) if other.name <= path.name]
        for old in written[: -self.keep_last]:
            if all(name in (_STATE, _TENSORS) or name.startswith(".vaelib-") for name in os.listdir(old)):
                shutil.rmtree(old)  # a directory that holds other files stays
        return path


def checkpoint_path(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` is, or would be."""
    return output_dir / FOLDER / f"step_{step:010d}"


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state``, a tree of dicts, lists, plain values and tensors, whole or not at all.

    ``ModelFileError`` if the state, tensors aside, has more than 64 MiB of JSON or is nested deeply.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _without_tensors(state, "", tensors)
    try:
        # The two files whatever is in them: of a torn checkpoint too, once a resumed run comes to its step again.
        with files_replaced(path, _STATE, lambda state: {_STATE: None, _TENSORS: None}) as staging:
            sha256 = write_tensors(staging / _TENSORS, tensors)
            content = {"format": FORMAT, "tensors_sha256": sha256, "state": tree}
            (staging / _STATE).write_text(sealed(content))
            _read_state(staging / _STATE)  # what is too large or deep to be read does not take the place of another
    except OSError as error:
        raise OSError(
            f"The checkpoint {path} could not be written ({error}); those before it are untouched."
            " Make room, then resume."
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state that :func:`write_checkpoint` wrote, on the CPU; ``ModelFileError`` if it is torn or foreign."""
    try:
        content = _read_state(committed(path, _STATE, _STATE))
        tensors = read_tensors(committed(path, _STATE, _TENSORS), content["tensors_sha256"])
        state: dict[str, Any] = _with_tensors(content["state"], tensors)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path} is torn or foreign: {error!s:.500}") from error
    return state


def _read_state(path: Path) -> dict[str, Any]:
    """The content of a ``state.json``, in the form of today."""
    content = read_object(path, _MAX_STATE_BYTES)
    if content.get("format") == _OLD_FORMAT:
        content = {**content, "tensors_sha256": content.get("sha256")}
    elif content.get("format") != FORMAT:
        raise ModelFileError(f"{path} must have the format {FORMAT!r}, got {content.get('format')!r:.80}.")
    elif not is_sealed(content):
        raise ModelFileError(f"{path} was changed after it was written: its checksum does not fit.")
    state = content.get("state")
    if not isinstance(content["tensors_sha256"], str) or not isinstance(state, dict) or "pairs" not in state:
        raise ModelFileError(f"{path} holds no state.")
    return content


def newest_checkpoint(output_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that can be read; those that cannot are named in a warning."""
    paths = checkpoints_in(output_dir)
    for path in reversed(paths):
        try:
            return path, read_checkpoint(path)
        except ModelFileError as error:
            then = "No checkpoint is left: the run starts again." if path == paths[0] else "The one before it is used."
            _logger.warning("%s %s", error, then)
    return None


def checkpoints_in(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, whether they can be read or not."""
    found = (output_dir / FOLDER).glob("step_*")
    return sorted(path for path in found if _NAME.fullmatch(path.name) and path.is_dir())


def _without_tensors(tree: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The same tree for JSON; each tensor moves to ``tensors`` and leaves its name."""
    if isinstance(tree, torch.Tensor):
        # A copy, since tensors that share memory cannot be stored.
        tensors[name] = tree.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(tree, dict):
        # As pairs, since an optimiser's state has numbers as keys.
        return {"pairs": [[key, _without_tensors(value, f"{name}/{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return [_without_tensors(value, f"{name}/{index}", tensors) for index, value in enumerate(tree)]
    return tree


def _with_tensors(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(tree, dict):
        if "tensor" in tree:
            return tensors[tree["tensor"]]
        return {key: _with_tensors(value, tensors) for key, value in tree["pairs"]}
    if isinstance(tree, list):
        return [_with_tensors(value, tensors) for value in tree]
    return tree


def by_parameter(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimiser by parameter: in version 0.1 the weights of one dtype were one tensor.

    They lay in it as they lie in memory, one after the other, each from a multiple of 16 numbers on.
    """
    numbers = itertools.count()
    groups = [[(next(numbers), weight) for weight in group["params"]] for group in optimizer.param_groups]
    if _is_by_parameter(state, groups):
        return state
    moments: dict[int, Any] = {}
    for kept, group in zip(state["param_groups"], groups, strict=True):
        trained = sorted((pair for pair in group if pair[1].requires_grad), key=lambda pair: str(pair[1].dtype))
        alike = itertools.groupby(trained, key=lambda pair: pair[1].dtype)
        for whole, (_, pairs) in zip(kept["params"], alike, strict=True):
            start = 0
            for number, weight in pairs:
                moments[number] = {
                    name: value.as_strided(weight.shape, weight.stride(), start) if value.ndim else value.clone()
                    for name, value in state["state"].get(whole, {}).items()
                }
                start += -(-weight.numel() // 16) * 16
    numbered = ([number for number, _ in group] for group in groups)
    return {
        "state": moments,
        "param_groups": [kept | {"params": own} for kept, own in zip(state["param_groups"], numbered, strict=True)],
    }


def _is_by_parameter(state: dict[str, Any], groups: list[list[tuple[int, nn.Parameter]]]) -> bool:
    if [len(kept["params"]) for kept in state["param_groups"]] != [len(group) for group in groups]:
        return False
    averages = [(weight, state["state"].get(number, {}).get("exp_avg")) for group in groups for number, weight in group]
    return all(kept is None or kept.ndim != 1 or kept.shape == weight.shape for weight, kept in averages)
