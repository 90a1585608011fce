"""What stands between a backward pass and the optimiser: clipping, and a step left out where it would do harm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["GradientGuard", "parameters_to_blame"]


class GradientGuard:
    """Clips gradients and says whether to take the step: if they are finite, and not above a limit.

    Args:
        module: What is trained.
        clip_norm: Total gradient norm to which larger ones are scaled down, or None.
        skip_norm: Total gradient norm above which a step is left out, or None.
    """

    def __init__(self, module: nn.Module, clip_norm: float | None, skip_norm: float | None) -> None:
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._clip_norm, self._skip_norm = clip_norm, skip_norm

    def keep_buffers(self) -> None:
        """Remember running statistics before a forward pass that may spoil them."""
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            kept.copy_(buffer)

    def restore_buffers_unless(self, ok: Tensor) -> None:
        """Undo what a step that was left out has done to running statistics; waits for no device."""
        if ok.device.type == "cpu" and ok:
            return
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            buffer.copy_(torch.where(ok, buffer, kept))

    def check(self) -> Tensor:
        """Clip; a boolean scalar on the device, whether the step may be taken."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        ok = torch.isfinite(norm)
        if self._skip_norm is not None:
            ok = ok & (norm <= self._skip_norm)
        if self._clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self._clip_norm, norm, foreach=True)
        return ok


def parameters_to_blame(module: nn.Module) -> list[str]:
    """The parameters whose gradients are not finite now."""
    return [
        name
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
