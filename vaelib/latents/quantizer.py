"""What all quantised latents share: vectors, position by position, become codes, and codes vectors with a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vaelib._checks import check_codes, check_int_tuple, check_tensor
from vaelib._parts import agreed_shape, check_head, check_modules
from vaelib.latents.base import Draw, LatentModule
from vaelib.priors import UniformCodes

__all__ = ["GRADIENTS", "Quantizer", "rotated", "straight_through"]

LARGEST_CODEBOOK = 2**52
"""Codes are numbered in float64 where they are drawn."""
_TINY = 1e-6


class Quantizer(LatentModule):
    """q(z|x) with all its mass on one code at each position: the base of the quantised latents.

    The channels of a position are quantised together. The rate is -log p(codes) in nats, N ln K with uniform codes,
    and the decoder is given ``embed(codes)`` bit for bit. Subclasses define ``_codes``, ``_vectors`` and ``_trained``.

    Args:
        latent_shape: ``(C, h, w)`` for h * w positions, or ``(D,)`` for one.
        num_codes: K, how many codes there are at a position.
        prior: p(codes), with ``log_prob`` and ``from_noise``; :class:`UniformCodes` if None.
        depth: Codes per position; those of the first come first.
    """

    has_prior = True
    noise_size = 0
    num_heads = 1
    _like: Tensor

    def __init__(self, latent_shape: Sequence[int], num_codes: int, prior: nn.Module | None, depth: int = 1) -> None:
        super().__init__()
        check_modules(prior=prior)
        self.latent_shape = agreed_shape("latent_shape", check_int_tuple("latent_shape", latent_shape))
        self.num_codes = num_codes
        self.num_positions = self.prior_noise_size = depth * math.prod(self.latent_shape[1:])
        self.prior: Any = UniformCodes(num_codes, self.num_positions) if prior is None else prior
        self.register_buffer("_like", torch.zeros(()), persistent=False)  # for its dtype and device

    def __setattr__(self, name: str, value: Any) -> None:
        """A prior, in the constructor or later, must be of as many codes and positions."""
        for count in ("num_codes", "num_positions") if name == "prior" else ():
            wanted = getattr(self, count)
            if getattr(value, count, wanted) != wanted:
                raise ValueError(f"`prior.{count}` must be {wanted}, got {getattr(value, count)}.")
        super().__setattr__(name, value)

    def draw(self, features: Any, noise: Tensor, *, prior: Any = None) -> Draw:
        """The codes of ``features``, their z, rate and penalty; in training mode also noted for the codebook.

        Where ``features`` are not finite, z is NaN.

        Args:
            features: One tensor ``(B, *latent_shape)``, as the encoder returns it.
            noise: ``(B, 0)``.
            prior: p(codes) in the place of the latent's own.
        """
        rows = self._rows(check_head(features, self))
        # Rounding decides codes, so nothing here is in less than float32, whatever autocast says.
        with torch.autocast(rows.device.type, enabled=False):
            codes = self._codes(rows.detach())
            trained, penalty = self._trained(rows, codes, self._vectors(codes))
        z = self._unrolled(_known(trained, rows)).to(features.dtype)
        kl = -(self.prior if prior is None else prior).log_prob(codes).to(z.dtype)
        return Draw(z, z, kl, z.new_zeros(z.shape[0]), -kl.sum(1), penalty, codes)

    def point(self, features: Any) -> Tensor:
        """``embed`` of the codes of ``features``; where these are not finite, NaN."""
        vectors = self._vectors(self.encoded(features))
        return self._unrolled(_known(vectors, self._rows(features))).to(features.dtype)

    def encoded(self, features: Any) -> Tensor:
        """The codes of ``features``, int64 ``(B, N)``."""
        rows = self._rows(check_head(features, self))
        with torch.autocast(rows.device.type, enabled=False):
            return self._codes(rows.detach())

    def embed(self, codes: Tensor) -> Tensor:
        """Codes, int64 ``(B, N)``, to z, ``(B, *latent_shape)``.

        Raises:
            ValueError: If ``codes`` have another shape or, on the CPU, leave [0, K).
            TypeError: If they are not int64.
        """
        check_codes("codes", codes, self.num_codes, self.num_positions)
        return self._unrolled(self._vectors(codes)).to(self._like.dtype)

    def codes_of(self, z: Tensor) -> Tensor:
        """The codes whose ``embed`` is closest to ``z``, ``(B, *latent_shape)``: int64 ``(B, N)``."""
        check_tensor("z", z, ("B", *self.latent_shape))
        with torch.autocast(z.device.type, enabled=False):
            return self._closest(self._rows(z.detach()))

    def from_noise(self, noise: Tensor, *, prior: Any = None) -> Tensor:
        """A draw of p(z), ``(B, *latent_shape)``, from ``noise``, ``(B, N)``: ``embed`` of codes of the prior."""
        return self.embed((self.prior if prior is None else prior).from_noise(noise))

    def log_prob(self, z: Tensor, *, prior: Any = None) -> Tensor:
        """Log p(codes_of(z)) in nats, ``(B,)``."""
        log_p: Tensor = (self.prior if prior is None else prior).log_prob(self.codes_of(z)).sum(1)
        return log_p

    def _codes(self, rows: Tensor) -> Tensor:
        """Codes ``(B, N)`` of the encoder's vectors ``(B, positions, C)``, which are at least float32."""
        raise NotImplementedError

    def _closest(self, rows: Tensor) -> Tensor:
        """Codes of vectors of z; those of :meth:`_codes` unless the encoder's are bent first."""
        return self._codes(rows)

    def _vectors(self, codes: Tensor) -> Tensor:
        """Codes ``(B, N)`` to their vectors ``(B, positions, C)``."""
        raise NotImplementedError

    def _trained(self, rows: Tensor, codes: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """``vectors`` with a gradient for ``rows``, and the penalty of each image, ``(B,)``, or None."""
        raise NotImplementedError

    def _rows(self, z: Tensor) -> Tensor:
        rows = z.reshape(z.shape[0], self.latent_shape[0], math.prod(self.latent_shape[1:])).transpose(1, 2)
        return rows.to(torch.promote_types(z.dtype, torch.float32))

    def _unrolled(self, rows: Tensor) -> Tensor:
        return rows.transpose(1, 2).reshape(rows.shape[0], *self.latent_shape)


def _known(vectors: Tensor, rows: Tensor) -> Tensor:
    """``vectors``, NaN where the encoder's are not finite: a code, a whole number, would hide that."""
    return torch.where(rows.isfinite().all(-1, keepdim=True), vectors, math.nan)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(rows: Tensor, vectors: Tensor) -> Tensor:
        return vectors.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(rows: Tensor, vectors: Tensor) -> Tensor:
        return vectors.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        rows, vectors = ctx.saved_tensors
        length, wanted = _length(rows), _length(vectors)
        row, vector = rows / length, vectors / wanted
        between = row + vector
        middle = between / _length(between)

        def along(direction: Tensor) -> Tensor:
            return (direction * gradient).sum(-1, keepdim=True)

        turned = gradient - 2 * middle * along(middle) + 2 * row * along(vector)
        # Between a vector and its opposite, or where one is zero, there is no one rotation.
        known = (length > _TINY) & (wanted > _TINY) & (_length(between) > _TINY)
        return torch.where(known, turned * wanted / length, gradient), None


def _length(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)


def straight_through(rows: Tensor, vectors: Tensor) -> Tensor:
    """``vectors``, with the gradient of the result handed on to ``rows`` as it is.

    Examples:
        >>> rows = torch.tensor([[0.9, 0.2]], requires_grad=True)
        >>> (straight_through(rows, torch.tensor([[1.0, 0.0]])) * torch.tensor([3.0, 5.0])).sum().backward()
        >>> rows.grad
        tensor([[3., 5.]])

    References:
        Bengio et al. (2013), section 5, https://arxiv.org/abs/1308.3432; van den Oord et al. (2017),
        https://arxiv.org/abs/1711.00937
    """
    found: Tensor = _StraightThrough.apply(rows, vectors)
    return found


def rotated(rows: Tensor, vectors: Tensor) -> Tensor:
    """``vectors`` as the rotation and rescaling that takes each of ``rows`` ``(..., C)`` there, held constant.

    The gradient is turned back and scaled by ``|vector| / |row|``; where the rotation is not unique (a zero vector, or
    opposite ones) it is that of :func:`straight_through`.

    Examples:
        >>> rows = torch.tensor([[2.0, 0.0]], requires_grad=True)
        >>> (rotated(rows, torch.tensor([[0.0, 1.0]])) * torch.tensor([3.0, 5.0])).sum().backward()
        >>> rows.grad  # a quarter turn back, half as long
        tensor([[ 2.5000, -1.5000]])

    References:
        Fifty et al. (2024), Restructuring vector quantization with the rotation trick, section 4.
        https://arxiv.org/abs/2410.06424
    """
    found: Tensor = _Rotated.apply(rows, vectors)
    return found


GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "straight_through": straight_through,
    "rotation": rotated,
}
