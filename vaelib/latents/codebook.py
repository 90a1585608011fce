"""K learned vectors: the nearest of them, and how they follow the encoder's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaelib.functional.draws import normal, uniform

__all__ = ["Codebook", "Reduce"]

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over processes."""
_ITERATIONS = 20
_ROWS_PER_CODE = 256  # more vectors than that change k-means little
_DISTANCES = 2**24  # at once, in k-means
_SAME = 1e-3  # of the mean squared distance within a code
_COUNTS_DECAY = 0.99  # where gradients move the codes, and averages only say which are used

_MANY_DRAWS = 100
_NEVER_FOLLOWED = (
    f"A codebook has seen {_MANY_DRAWS} draws in training mode and no step: in a loop of your own, call"
    " vae.latent.after_step() after each step of the optimiser, or its codes are not trained."
)


class _Totals(NamedTuple):
    """Sums over the vectors of a step, by the code that each was given."""

    counts: Tensor
    """How many, ``(K,)``."""
    sums: Tensor
    """``(K, C)``."""
    errors: Tensor
    """Squared distances to the code, ``(K,)``."""

    @classmethod
    def zeros(cls, weight: Tensor) -> _Totals:
        """Nothing seen yet."""
        return cls(weight.new_zeros(len(weight)), torch.zeros_like(weight), weight.new_zeros(len(weight)))

    def add(self, rows: Tensor, codes: Tensor, vectors: Tensor) -> None:
        """Count vectors ``(M, C)`` by their codes ``(M,)``."""
        # Of the ways to add by index, CUDA does this one in the same order each time.
        for total, values in zip(
            self, (torch.ones_like(rows[:, 0]), rows, (rows - vectors).square().sum(1)), strict=True
        ):
            total.index_put_((codes,), values.to(total.dtype), accumulate=True)

    def spread(self, vectors: Tensor) -> Tensor:
        """Mean squared distance of each code's vectors from their own mean, ``(K,)``; ``vectors`` are the codes'."""
        counts = self.counts.clamp(min=1)
        off = (self.sums / counts[:, None] - vectors).square().sum(1)
        return (self.errors / counts - off).nan_to_num(0, 0, 0).clamp(min=0)


class Codebook(nn.Module):
    """K vectors of C numbers.

    ``weight``, ``counts`` and ``sums`` are state. What :meth:`record` has seen since the last :meth:`after_step` is no
    buffer: several processes broadcast theirs at each forward pass.

    Args:
        num_codes: K.
        size: C.
        decay: Decay of the running means that are the codes; None if gradients move them.
        restart: Share of the mean count below which a code is dead.
    """

    cosine = False
    """Whether only directions are compared."""
    counts: Tensor
    sums: Tensor

    def __init__(self, num_codes: int, size: int, decay: float | None, restart: float) -> None:
        super().__init__()
        self.decay, self.restart = decay, restart
        weight = torch.randn(num_codes, size) / size**0.5
        self.register_buffer("counts", torch.zeros(num_codes))
        if decay is None:
            self.weight: Tensor = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)
            self.register_buffer("sums", torch.zeros(num_codes, size))
        self._pending: _Totals | None = None
        self._waiting = 0  # draws since the last step
        self._first: Tensor | None = torch.empty(0, size)  # the vectors of the first step, for k-means
        self.register_load_state_dict_post_hook(_resumed)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes of any shape to their vectors, ``(..., C)``."""
        return F.embedding(codes, self._directed())

    def directed(self, rows: Tensor) -> Tensor:
        """``rows`` as they are compared: of length 1 with ``cosine``."""
        return F.normalize(rows, dim=-1) if self.cosine else rows

    def nearest(self, rows: Tensor) -> Tensor:
        """The code nearest to each of ``rows``, ``(..., C)``: int64 ``(...)``."""
        return self.distances(rows).argmin(-1)

    def distances(self, rows: Tensor) -> Tensor:
        """Squared distances of ``rows``, ``(..., C)``, to all codes, ``(..., K)``, less what these have in common."""
        weight = self._directed().to(rows.dtype)
        return weight.square().sum(1) - 2 * (self.directed(rows) @ weight.T)

    @torch.no_grad()
    def record(self, rows: Tensor, codes: Tensor) -> None:
        """Note vectors ``(..., C)`` and the codes ``(...)`` that they were given, for :meth:`after_step`."""
        rows, codes = self.directed(rows).flatten(0, -2), codes.flatten()
        if self._pending is None:
            self._pending = _Totals.zeros(self.weight)
        self._pending.add(rows, codes, self(codes))
        if not torch.compiler.is_compiling():
            self._waiting += 1
            if self._waiting == _MANY_DRAWS:
                warnings.warn(_NEVER_FOLLOWED, UserWarning, stacklevel=2)
        most = _ROWS_PER_CODE * len(self.weight)
        if self._first is not None and len(self._first) < most:
            self._first = torch.cat([self._first, rows.to(self._first.dtype)])[:most]

    @torch.no_grad()
    def after_step(self, reduce: Reduce | None, generator: torch.Generator | None, moved: bool | Tensor) -> None:
        """Fold what was recorded into the codebook, the first time by k-means; forget it unless the weights moved.

        A tensor ``moved`` on a device is waited for until k-means is done, and then not looked at.
        """
        self._waiting = 0
        if self._pending is None:
            return
        reduce = reduce or (lambda total: total)
        if self._first is None:
            if (isinstance(moved, Tensor) and moved.device.type != "cpu") or moved:
                self._follow(_Totals(*map(reduce, self._pending)), generator)
        elif moved:
            _by_k_means(self, self._first, reduce, generator)
            self._first = None
        else:
            self._first = self._first[:0]
        for total in self._pending:
            total.zero_()

    def _directed(self) -> Tensor:
        return self.directed(self.weight)

    def _follow(self, step: _Totals, generator: torch.Generator | None) -> None:
        decay, spread = _COUNTS_DECAY if self.decay is None else self.decay, step.spread(self._directed())
        self.counts.lerp_(step.counts, 1 - decay)
        if self.decay is not None:
            self.sums.lerp_(step.sums, 1 - decay)
            self._move(self.counts, self.sums)
        self._revive(self.counts < self.restart * self.counts.mean(), step.counts, spread, generator)

    def _move(self, counts: Tensor, sums: Tensor) -> None:
        """Each code to the mean of its vectors, if it has any and they are finite."""
        means = sums / counts.clamp(min=torch.finfo(counts.dtype).tiny)[:, None]
        known = (counts > 0) & means.isfinite().all(1)
        self.weight.copy_(torch.where(known[:, None], means, self.weight))

    def _revive(self, dead: Tensor, counts: Tensor, spread: Tensor, generator: torch.Generator | None) -> None:
        """Move ``dead`` codes next to others, drawn in proportion to the ``counts`` of this step.

        That takes sums over the step alone, however its images were divided. A code whose vectors are all the same, as
        those of empty background may be, is not drawn: only one code can be theirs.
        """
        differ = spread > _SAME * (spread * counts).sum() / counts.sum()
        upto = torch.where(differ & ~dead, counts, 0).cumsum(0)
        source = torch.searchsorted(upto, uniform(dead.shape, upto, generator) * upto[-1], right=True)
        source = source.clamp(max=len(upto) - 1)
        width = 0.1 * (spread / self.weight.shape[1]).sqrt()[source, None]
        moved = self.weight[source] + width * normal(self.weight.shape, self.weight, generator)
        dead = dead & (upto[-1] > 0)
        mean = self.counts.mean()
        self.weight.copy_(torch.where(dead[:, None], moved, self.weight))
        if self.decay is not None:
            self.sums.copy_(torch.where(dead[:, None], mean * moved, self.sums))
        self.counts.copy_(torch.where(dead, mean, self.counts))

    def _apply(self, *arguments: Any, **options: Any) -> Codebook:
        """What ``to`` and its like call; what is pending is of the old device and is dropped."""
        super()._apply(*arguments, **options)
        self._pending, self._first = None, None if self._first is None else torch.empty_like(self.weight[:0])
        return self


@torch.no_grad()
def _by_k_means(book: Codebook, rows: Tensor, reduce: Reduce, generator: torch.Generator | None) -> None:
    """Place the codes, from one on: those that are not used are split off the others, as restarts are."""
    book.weight.zero_()
    processes = int(reduce(torch.ones_like(book.counts[0])))
    rows = rows[: _ROWS_PER_CODE * len(book.weight) // processes]
    parts = rows.split(max(_DISTANCES // len(book.weight), 1))
    for _ in range(_ITERATIONS):
        codes, own = torch.cat([book.nearest(part) for part in parts]), _Totals.zeros(book.weight)
        own.add(rows, codes, book(codes))
        step = _Totals(*map(reduce, own))
        spread = step.spread(book._directed())
        book._move(step.counts, step.sums)
        book.counts.copy_(step.counts)
        if book.decay is not None:
            book.sums.copy_(step.sums)
        book._revive(step.counts == 0, step.counts, spread, generator)


def _resumed(codebook: Any, _: Any) -> None:
    """A codebook that was loaded has been started if its codes were counted."""
    codebook._first = None if bool(codebook.counts.any()) else torch.empty_like(codebook.weight[:0])
