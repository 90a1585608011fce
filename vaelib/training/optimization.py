"""From gradients to moved weights, unless the step would do harm."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vaelib._checks import TrainingError, check_float, shown
from vaelib.schedules import Schedule, constant, one_cycle, warmup_cosine
from vaelib.training.checkpoints import by_parameter

__all__ = ["LR_SCHEDULES", "OPTIMIZERS", "Optimization", "follow", "followers", "make_optimizer", "make_schedule"]

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
MAX_SKIPPED = 20  # in a row; a GradScaler that starts too high needs up to 16


def make_optimizer(
    named: str | Callable[..., torch.optim.Optimizer], module: nn.Module, learning_rate: float
) -> torch.optim.Optimizer:
    """The optimiser of the weights of ``module``."""
    groups = _parameter_groups(module)
    make = OPTIMIZERS[named] if isinstance(named, str) else named
    for group in groups:
        if own := {name: value for name, value in group.items() if name not in ("params", "lr_scale")}:
            _check_settings(make, learning_rate, own)
    alike = len(groups) == 1 and groups[0].keys() == {"params"}
    return make(groups[0]["params"] if alike else groups, lr=learning_rate)


def _check_settings(make: Callable[..., torch.optim.Optimizer], learning_rate: float, own: dict[str, Any]) -> None:
    """Raise ``ValueError`` for settings of a group that are wrong: torch keeps and checks none of them."""
    trial = [nn.Parameter(torch.zeros(1))]
    if "betas" not in make(trial, lr=learning_rate).defaults:  # which are for Adam and the like
        own.pop("betas", None)
    try:
        make(trial, lr=learning_rate, **own)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`parameter_groups` must have `lr_scale` and settings of the optimizer, got {shown(own)}: {error}."
        ) from error


def make_schedule(named: str | Schedule, learning_rate: float, total_steps: int) -> Schedule:
    """Step to learning rate."""
    factor = LR_SCHEDULES[named](total_steps) if isinstance(named, str) else named
    return lambda step: learning_rate * check_float(f"lr_schedule({step})", factor(step), 0.0)


class Optimization:
    """Optimiser, learning rate and loss scale; skips a step if its gradients are not finite or too large.

    Submodules with a method ``after_step``, such as latents with a codebook, are called after each step; ``seed`` is
    that of what they draw. ``keep_gradients`` keeps the memory of gradients from step to step, as CUDA graphs write
    theirs into memory of their own, which the next pass would write over.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        learning_rate: Schedule,
        accelerator: Accelerator,
        clip_norm: float | None,
        skip_norm: float | None,
        keep_gradients: bool = False,
        seed: int = 0,
    ) -> None:
        self.optimizer = optimizer
        self._model, self._learning_rate, self._accelerator = model, learning_rate, accelerator
        self._clip_norm, self._skip_norm = clip_norm, skip_norm
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        objective = getattr(model, "objective", None)
        own = {id(weight) for weight in objective.parameters()} if isinstance(objective, nn.Module) else set[int]()
        self._of_model = [parameter for parameter in parameters if id(parameter) not in own]
        self._of_objective = [parameter for parameter in parameters if id(parameter) in own]
        self._keep_gradients = keep_gradients
        if keep_gradients:
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        self._followers, self._seed, self._step = followers(model), seed, 0
        self._buffers = list(model.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._moved: list[Tensor] = []  # whether each step since the last look moved the weights
        self._skipped = self._in_a_row = 0

    def begin(self, step: int) -> None:
        """Before the passes of a step: no gradients, its learning rate, and running statistics kept."""
        self._step = step
        self.optimizer.zero_grad(set_to_none=not self._keep_gradients)
        for group in self.optimizer.param_groups:
            rate = self._learning_rate(step) * group.get("lr_scale", 1.0)
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            kept.copy_(buffer)

    def finish(self, loss: Tensor) -> Tensor:
        """After them: move the weights; a boolean scalar on the device, whether they were moved."""
        scaler = self._accelerator.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        ok = self._check(loss.detach())
        if scaler is not None:
            if ok:
                scaler.step(self.optimizer)
            scaler.update()
        elif ok.device.type != "cpu" and self.optimizer.defaults.get("fused"):
            # Fused kernels look at this flag on the device, as they do for torch's GradScaler: nothing waits for it.
            self.optimizer.found_inf = (~ok).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif ok:
            self.optimizer.step()
        follow(self._followers, self._accelerator, self._seed, self._step, ok)
        if ok.device.type != "cpu" or not ok:  # undo what a skipped step has done to running statistics
            for buffer, kept in zip(self._buffers, self._kept, strict=True):
                buffer.copy_(torch.where(ok, buffer, kept))
        self._moved.append(ok)
        return ok

    def skipped(self, terms: Any, steps_per_epoch: int) -> int:
        """Steps skipped since the start; waits for the device.

        Raises:
            TrainingError: If too many were in a row, naming what in ``terms`` and which gradients are not finite.
        """
        self._count()
        # A loss scale comes down by skipping, however short the epochs are.
        most = MAX_SKIPPED if self._accelerator.scaler is not None else min(MAX_SKIPPED, steps_per_epoch)
        if self._in_a_row >= most:
            raise TrainingError(f"{self._in_a_row} steps in a row were skipped: {_blame(self._model, terms)}.")
        return self._skipped

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimiser and the loss scale, and the steps skipped."""
        scaler = self._accelerator.scaler
        self._count()
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "skipped": [self._skipped, self._in_a_row],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.optimizer.load_state_dict(by_parameter(state["optimizer"], self.optimizer))
        for parameter, moments in self.optimizer.state.items():
            for name, value in moments.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    # Fused kernels take it that moments lie in memory as their weights do, channels last.
                    moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"] = group["lr"].to(self._accelerator.device)
        self._skipped, self._in_a_row = state["skipped"]

    def _count(self) -> None:
        if self._moved:
            for moved in torch.stack(self._moved).tolist():
                self._skipped, self._in_a_row = (self._skipped, 0) if moved else (self._skipped + 1, self._in_a_row + 1)
            self._moved.clear()

    def _check(self, loss: Tensor) -> Tensor:
        norm, own = (_total_norm(parameters) for parameters in (self._of_model, self._of_objective))
        ok = torch.isfinite(norm) & torch.isfinite(own)
        if self._accelerator.num_processes == 1:  # of several, each has its own loss but all have the same gradients
            ok = ok & loss.isfinite()
        if self._skip_norm is not None:
            ok = ok & (norm <= self._skip_norm)
        if self._clip_norm is not None:
            # Apart: the size of a discriminator's gradient says nothing about the model's.
            nn.utils.clip_grads_with_norm_(self._of_model, self._clip_norm, norm)
            nn.utils.clip_grads_with_norm_(self._of_objective, self._clip_norm, own)
        return ok


def _total_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def _blame(model: nn.Module, terms: Any) -> str:
    bad = [name for name, value in terms._asdict().items() if not value.isfinite().all()]
    named = [
        name.removeprefix("model.")
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    if not bad and not named:
        return "the norm of their gradients was above `skip_norm`"
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    gradients = f"gradient not finite in {', '.join(named[:5])}{more}" if named else ""
    terms_not_finite = f"{', '.join(bad)} not finite" if bad else ""
    return "; ".join(part for part in (terms_not_finite, gradients) if part)


def _parameter_groups(module: Any) -> list[dict[str, Any]]:
    """The groups that the objective of ``module`` asks for, after one of all weights that are in none of them."""
    asked = getattr(getattr(module, "objective", None), "parameter_groups", None)
    groups, known, taken = [], {id(weight) for weight in module.parameters()}, set[int]()
    for group in () if asked is None else asked(module.model):
        if not isinstance(group, dict) or "params" not in group:
            raise TypeError(f"`parameter_groups` must give dicts with `params`, got {shown(group)}.")
        weights = list(group["params"])
        for weight in weights:
            if not isinstance(weight, nn.Parameter):
                raise TypeError(f"`parameter_groups` must give parameters, got {shown(weight)}.")
        check_float("lr_scale", group.get("lr_scale", 1.0), 0.0)
        groups.append({**group, "params": weights})
        own = [id(weight) for weight in weights]
        if len({*own}) < len(own) or taken & {*own} or not known >= {*own}:
            raise ValueError("`parameter_groups` must give each weight of the model or the objective at most once.")
        taken |= {*own}
    rest = [weight for weight in module.parameters() if id(weight) not in taken]
    return [group for group in ({"params": rest}, *groups) if any(weight.requires_grad for weight in group["params"])]


def follow(modules: list[Any], accelerator: Accelerator, seed: int, step: int, moved: Tensor) -> None:
    """Let ``modules`` follow a step whose codes have been decoded; ``moved`` is false, on the device, of a skipped one.

    Where only the device knows that a step is skipped, they get the tensor. They may wait for it, or follow it:
    whoever calls this then restores their buffers. What they draw is the same on all processes.
    """
    if not modules:
        return
    is_known = accelerator.device.type == "cpu" or accelerator.scaler is not None
    reduce = None if accelerator.num_processes == 1 else functools.partial(accelerator.reduce, reduction="sum")
    seed = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint32)[0])
    generator = torch.Generator(accelerator.device).manual_seed(seed)
    for module in modules:
        module.after_step(reduce=reduce, generator=generator, moved=bool(moved) if is_known else moved)


def followers(model: nn.Module) -> list[Any]:
    """The outermost submodules with a method ``after_step(reduce, generator, moved)``; each calls its own parts."""
    found: list[Any] = []
    for part in model.children():
        found += [part] if hasattr(part, "after_step") else followers(part)
    return found
