"""Checks of what a Trainer is given, made where it is given."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vaelib._checks import check_type, shown
from vaelib.training.callbacks import EMA
from vaelib.training.checkpoints import Checkpoints
from vaelib.vae import VAE

__all__ = ["HOOKS", "check_callbacks", "check_objective", "check_output_dir"]

HOOKS = ("on_start", "on_step", "on_epoch", "on_end")
_CALL = "objective(model, x, step=...)"


def check_objective(objective: Any) -> None:
    """Raise ``TypeError`` unless it is None or can be called as the Trainer calls it."""
    if objective is None:
        return
    if isinstance(objective, VAE):
        raise TypeError(
            "`objective` must be an objective such as Elbo(), got a model, which belongs in fit(model, ...)."
        )
    if isinstance(objective, type):
        raise TypeError(
            f"`objective` must be an object, got the class {objective.__name__}: give {objective.__name__}()."
        )
    if not callable(objective):
        raise TypeError(f"`objective` must be an objective such as Elbo(), called as {_CALL}, got {shown(objective)}.")
    try:
        inspect.signature(objective.forward if isinstance(objective, nn.Module) else objective).bind(None, None, step=0)
    except ValueError:  # some builtin functions have no signature
        return
    except TypeError as error:
        raise TypeError(f"`objective` must be callable as {_CALL}, got {shown(objective)}: {error}.") from None


def check_callbacks(callbacks: Any) -> tuple[Any, ...]:
    """Return them as a tuple; ``TypeError`` or ``ValueError`` unless each has hooks, all of them known."""
    is_scalar = getattr(callbacks, "ndim", 1) == 0  # an array without axes has an iterator that raises
    if is_scalar or not isinstance(callbacks, Iterable) or isinstance(callbacks, str | bytes | Mapping):
        raise TypeError(f"`callbacks` must be a list of callbacks, got {shown(callbacks)}.")
    callbacks = tuple(callbacks)
    for index, callback in enumerate(callbacks):
        _check_callback(f"callbacks[{index}]", callback)
    for kind in (Checkpoints, EMA):
        count = sum(isinstance(callback, kind) for callback in callbacks)
        if count > 1:
            raise ValueError(f"`callbacks` must hold at most one {kind.__name__}, got {count}.")
    return callbacks


def _check_callback(name: str, callback: Any) -> None:
    hooks = f"{', '.join(HOOKS[:-1])} and {HOOKS[-1]}"
    if isinstance(callback, type):
        raise TypeError(
            f"`{name}` must be an object, got the class {callback.__name__}: give {callback.__name__}(...)."
        )
    given = [method for method in dir(callback) if method.startswith("on_") and callable(getattr(callback, method))]
    unknown = [method for method in given if method not in HOOKS]
    if unknown:
        raise TypeError(
            f"`{name}` must have no hooks but {hooks}, got {type(callback).__name__} with {', '.join(unknown)},"
            " which would never be called."
        )
    # Asked for by name, since an object that makes its methods on demand, such as a mock, does not list them.
    has_hook = any(callable(getattr(callback, hook, None)) for hook in HOOKS)
    if not has_hook and not isinstance(callback, Checkpoints):
        raise TypeError(f"`{name}` must have some of the methods {hooks}, got {shown(callback)}, which has none.")


def check_output_dir(output_dir: Any) -> None:
    """Raise unless it is None or a path that is not empty."""
    check_type("output_dir", output_dir, str | Path | None, "a path or None")
    if output_dir == "":
        raise ValueError("`output_dir` must be a path that is not empty, got ''.")
