"""From gradients to moved weights, unless the step would do harm."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vaelib._checks import TrainingError
from vaelib.schedules import Schedule
from vaelib.training.hardware import Graphed

__all__ = ["Optimization"]

MAX_SKIPPED = 20  # in a row; a GradScaler that starts too high needs up to 16


class Optimization:
    """Optimiser, learning rate and loss scale; leaves a step out if its gradients are not finite or too large.

    Args:
        model: What is trained: the model in its objective.
        optimizer: Of its weights, or of the memory that they are views of.
        learning_rate: Step to learning rate.
        accelerator: Brings the loss scale of fp16.
        clip_norm: Total gradient norm to which larger ones are scaled down, or None.
        skip_norm: Total gradient norm above which a step is left out, or None.
        graphs: Launch the kernels of an update as one CUDA graph.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        learning_rate: Schedule,
        accelerator: Accelerator,
        clip_norm: float | None,
        skip_norm: float | None,
        graphs: bool = False,
    ) -> None:
        self.optimizer = optimizer
        self._model, self._learning_rate, self._accelerator = model, learning_rate, accelerator
        self._clip_norm, self._skip_norm = clip_norm, skip_norm
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._flat = all(parameter.grad is not None for parameter in self._parameters)
        self._buffers = list(model.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._moved: list[Tensor] = []  # whether each step since the last look moved the weights
        self._skipped = self._in_a_row = 0
        self._update = Graphed(self._updated) if graphs else self._updated

    def begin(self, step: int) -> None:
        """Before the passes of a step: no gradients, its learning rate, and running statistics kept."""
        if self._flat:
            for parameter in self._parameters:
                parameter.grad.zero_()
        else:
            self.optimizer.zero_grad()
        for group in self.optimizer.param_groups:
            rate = self._learning_rate(step) * group.get("lr_scale", 1.0)
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            kept.copy_(buffer)

    def finish(self, loss: Tensor) -> Tensor:
        """Behind them: move the weights; a boolean scalar on the device, whether they were moved."""
        moved = self._update(loss.detach())
        self._moved.append(moved)
        return moved

    def _updated(self, loss: Tensor) -> Tensor:
        scaler = self._accelerator.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        ok = self._check(loss)
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
        self._restore_buffers_unless(ok)
        return ok

    def skipped(self, terms: Any, steps_per_epoch: int) -> int:
        """Steps left out since the start; waits for the device.

        Raises:
            TrainingError: If too many were in a row, naming what in ``terms`` and which gradients are not finite.
        """
        self._count()
        if self._in_a_row >= _most_in_a_row(self._accelerator.scaler, steps_per_epoch):
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
        """Go on from ``state``."""
        self.optimizer.load_state_dict(state["optimizer"])
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
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = torch.linalg.vector_norm(gradients[0]) if len(gradients) == 1 else nn.utils.get_total_norm(gradients)
        ok = torch.isfinite(norm)
        if self._accelerator.num_processes == 1:  # of several, each has its own loss but all have the same gradients
            ok = ok & loss.isfinite()
        if self._skip_norm is not None:
            ok = ok & (norm <= self._skip_norm)
        if self._clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self._clip_norm, norm)
        return ok

    def _restore_buffers_unless(self, ok: Tensor) -> None:
        """Undo what a step that was left out has done to running statistics."""
        if ok.device.type == "cpu" and ok:
            return
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            buffer.copy_(torch.where(ok, buffer, kept))


def _most_in_a_row(scaler: Any, steps_per_epoch: int) -> int:
    """Skipped steps that end a run; a loss scale comes down by skipping, however short the epochs are."""
    return MAX_SKIPPED if scaler is not None else min(MAX_SKIPPED, steps_per_epoch)


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
    said = [f"{', '.join(bad)} not finite"] * bool(bad)
    said += [f"gradient not finite in {', '.join(named[:5])}{more}"] * bool(named)
    return "; ".join(said)
