"""Draws of a table of probabilities by comparisons, which a graph computes as torch does, to the bit."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Thresholds"]

_INFINITY = 0x7F800000  # the bits of the float32


class Thresholds(nn.Module):
    """The codes that :func:`vaelib.priors.codes.codes_at` gives for float32 noise, to each bit.

    A code is the first whose cumulative probability exceeds Phi(noise), so it is the number of thresholds that the
    noise reaches: those of Phi and the sums in float64, each rounded to the least float32 beyond it. They are counted
    by halving, in log2 K comparisons.

    Args:
        logits: ``(N, K)``, a distribution for each position.

    Examples:
        >>> logits = torch.tensor([[0.1, 0.2, 0.7]]).log()
        >>> Thresholds(logits)(torch.tensor([[-3.0], [-0.6], [0.0], [9.0]])).flatten()
        tensor([0, 1, 2, 2])
    """

    table: Tensor
    starts: Tensor

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        reached = _reached(logits)
        self.rounds = math.ceil(math.log2(logits.shape[1]))
        width = 2**self.rounds
        table = F.pad(reached, (0, width - reached.shape[1]), value=math.nan)
        self.register_buffer("table", table.reshape(-1, 1))
        self.register_buffer("starts", width * torch.arange(len(table)))

    def forward(self, noise: Tensor) -> Tensor:
        """Standard normal numbers, float32 ``(B, N)``, to codes, int64 ``(B, N)``."""
        codes = torch.zeros_like(noise, dtype=torch.long)
        for step in (2**power for power in reversed(range(self.rounds))):
            least = F.embedding(self.starts + codes + (step - 1), self.table)[..., 0]
            codes = torch.where(noise >= least, codes + step, codes)
        return codes


@torch.no_grad()
def _reached(logits: Tensor) -> Tensor:
    """By position and code but the last, the least float32 at which the code is passed, by halving: ``(N, K - 1)``."""
    logits = logits.double()
    cumulative = (logits - logits.amax(1, keepdim=True)).exp().cumsum(1)
    total = cumulative[:, -1:]
    cumulative = cumulative[:, :-1]
    high = torch.full_like(cumulative, _INFINITY, dtype=torch.long)
    low = -high
    while (low < high).any():
        middle = (low + high).div(2, rounding_mode="floor")
        is_reached = torch.special.ndtr(_in_order(middle).double()) * total >= cumulative
        low, high = torch.where(is_reached, low, middle + 1), torch.where(is_reached, middle, high)
    # Codes after the last of any probability are not reached: nothing is >= NaN.
    return torch.where(cumulative < total, _in_order(high), math.nan)


def _in_order(numbers: Tensor) -> Tensor:
    """Whole numbers to float32 numbers in the same order, without a gap."""
    return numbers.abs().int().view(torch.float32) * numbers.sign()
