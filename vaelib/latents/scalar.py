"""Latents whose codes are a fixed grid: levels of each channel, or corners of a cube on the sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaelib._checks import check_float, check_int_tuple
from vaelib._parts import agreed_shape, check_head
from vaelib.latents.quantizer import LARGEST_CODEBOOK, Quantizer, straight_through

__all__ = ["BinarySphericalQuantizer", "FiniteScalarQuantizer"]

_MARGIN = 1e-3  # by which the bound lies beyond the outermost levels, relative to them
_SHARPNESS = 4.0  # a bit of the mean size has this log-odds


class _Grid(Quantizer):
    """A digit for each channel; a code is the number that they write, the first channel its lowest digit."""

    _levels: Tensor
    _places: Tensor

    def __init__(self, latent_shape: Sequence[int], levels: Sequence[int], prior: nn.Module | None) -> None:
        if math.prod(levels) > LARGEST_CODEBOOK:
            raise ValueError(f"A position may have {LARGEST_CODEBOOK} codes, got {math.prod(levels)}.")
        super().__init__(latent_shape, math.prod(levels), prior)
        places = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("_levels", torch.tensor(levels), persistent=False)
        self.register_buffer("_places", torch.tensor(places), persistent=False)

    def _codes(self, rows: Tensor) -> Tensor:
        return (self._digits(rows) * self._places).sum(-1)

    def _closest(self, rows: Tensor) -> Tensor:
        return (self._digits_of_z(rows) * self._places).sum(-1)

    def _vectors(self, codes: Tensor) -> Tensor:
        return self._values(codes[..., None] // self._places % self._levels)

    def _digits(self, rows: Tensor) -> Tensor:
        """The encoder's vectors to digits, int64."""
        raise NotImplementedError

    def _digits_of_z(self, rows: Tensor) -> Tensor:
        """Vectors of z to digits, int64."""
        raise NotImplementedError

    def _values(self, digits: Tensor) -> Tensor:
        """Digits to vectors of z."""
        raise NotImplementedError


class FiniteScalarQuantizer(_Grid):
    """Each channel bounded and rounded to one of a few levels, FSQ: K is their product, and there is nothing to learn.

    ``vl.VAE(encoder, decoder, latent=FiniteScalarQuantizer((4, 7, 7), (8, 5, 5, 5)))`` has 1000 codes at each of 49
    positions. No codebook, no commitment, no restarts: nearly all codes are used. A channel of L levels has values in
    [-1, 1], of an even L in [-1, 1 - 2 / L], with 0 among them. For bits take :class:`BinarySphericalQuantizer`: here
    the gradient of 2 levels nearly vanishes around 0.

    Args:
        latent_shape: ``(C, h, w)``, or ``(D,)`` for one code per image.
        levels: Levels of each channel, C of them, 2 to 1000 each.
        prior: p(codes); :class:`UniformCodes` if None.

    Raises:
        ValueError: If an argument is out of its range, or the prior is for other codes.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> latent = FiniteScalarQuantizer((2,), (3, 4))
        >>> latent.point(torch.tensor([[-9.0, -9.0], [0.0, 0.0], [9.0, 9.0]]))
        tensor([[-1.0000, -1.0000],
                [ 0.0000,  0.0000],
                [ 1.0000,  0.5000]])
        >>> latent.encoded(torch.tensor([[-9.0, -9.0], [0.0, 0.0], [9.0, 9.0]])).flatten()
        tensor([ 0,  7, 11])

    References:
        Mentzer et al. (2023), Finite scalar quantization, appendix A.1, of which the code has ``tan`` where it means
        the inverse of ``tanh``. https://arxiv.org/abs/2309.15505
    """

    def __init__(self, latent_shape: Sequence[int], levels: Sequence[int], prior: nn.Module | None = None) -> None:
        channels = _channels(latent_shape)
        checked = check_int_tuple("levels", levels, channels, minimum=2, maximum=1000)
        super().__init__(latent_shape, checked, prior)
        self.levels = checked

    def _digits(self, rows: Tensor) -> Tensor:
        # A NaN as a whole number is undefined, and might be no digit.
        return self._bounded(rows).nan_to_num().round().long() + self._levels // 2

    def margins(self, features: Any) -> Tensor:
        """How far each code is from being another, ``(B, N)``: the least distance of a channel to an edge."""
        bounded = self._bounded(self._rows(check_head(features, self)))
        return (0.5 - (bounded - bounded.round()).abs()).amin(-1)

    def _digits_of_z(self, rows: Tensor) -> Tensor:
        digits = (rows * (self._levels // 2)).round() + self._levels // 2
        return torch.minimum(digits.clamp(min=0).long(), self._levels - 1)

    def _values(self, digits: Tensor) -> Tensor:
        middle = self._levels // 2
        return (digits - middle) / middle

    def _trained(self, rows: Tensor, codes: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        return straight_through(self._bounded(rows) / (self._levels // 2), vectors), None

    def _bounded(self, rows: Tensor) -> Tensor:
        """Between the outermost levels and a little beyond, 0 at 0."""
        levels = self._levels.to(rows.dtype)
        half = (levels - 1) * (1 + _MARGIN) / 2
        offset = 0.5 * (1 - levels % 2)
        return half * torch.tanh(rows + torch.atanh(offset / half)) - offset


class BinarySphericalQuantizer(_Grid):
    """The sign of each channel, as a point on the unit sphere, BSQ: 2^C codes at a position, and no codebook.

    ``vl.VAE(encoder, decoder, latent=BinarySphericalQuantizer((16, 7, 7)))``. z has values of +-1 / sqrt(C). The
    entropy term wants each bit of an image to be certain and all codes to be used alike; it is computed bit by bit, so
    memory grows with C, not with 2^C. Its average of each bit is over the batch: when gradients are accumulated, over
    each piece.

    Args:
        latent_shape: ``(C, h, w)``, or ``(D,)``; C is the number of bits, at most 52.
        prior: p(codes); :class:`UniformCodes` if None.
        commitment: What a squared distance between the encoder's vector, at length 1, and its code costs, in nats,
            summed over positions and channels.
        entropy: What the entropy of an image's bits, less that of their average, costs per nat.

    Raises:
        ValueError: If an argument is out of its range, or the prior is for other codes.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> latent = BinarySphericalQuantizer((4,))
        >>> draw = latent.draw(torch.tensor([[0.3, -2.0, 1.0, -0.1]]), torch.empty(1, 0))
        >>> draw.z, draw.codes  # 1 + 4
        (tensor([[ 0.5000, -0.5000,  0.5000, -0.5000]]), tensor([[5]]))

    References:
        Zhao et al. (2024), Image and video tokenization with binary spherical quantization, section 4.
        https://arxiv.org/abs/2406.07548
    """

    def __init__(
        self,
        latent_shape: Sequence[int],
        prior: nn.Module | None = None,
        commitment: float = 0.25,
        entropy: float = 0.1,
    ) -> None:
        super().__init__(latent_shape, (2,) * _channels(latent_shape), prior)
        self.commitment = check_float("commitment", commitment, 0.0)
        self.entropy = check_float("entropy", entropy, 0.0)

    def _digits(self, rows: Tensor) -> Tensor:
        return (rows >= 0).long()

    def margins(self, features: Any) -> Tensor:
        """How far each code is from being another, ``(B, N)``: the least absolute value of a channel."""
        return self._rows(check_head(features, self)).abs().amin(-1)

    def _digits_of_z(self, rows: Tensor) -> Tensor:
        return self._digits(rows)

    def _values(self, digits: Tensor) -> Tensor:
        return (2 * digits - 1) / len(self._levels) ** 0.5

    def _trained(self, rows: Tensor, codes: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        rows = F.normalize(rows, dim=-1)
        logits = _SHARPNESS * len(self._levels) ** 0.5 * rows
        of_bits = F.softplus(logits) - logits * logits.sigmoid()
        # At 0 and 1 the entropy's slope is infinite.
        eps = torch.finfo(logits.dtype).eps
        average = logits.sigmoid().mean((0, 1)).clamp(eps, 1 - eps)
        of_average = (torch.special.entr(average) + torch.special.entr(1 - average)).sum()
        distance = (rows - vectors).square().flatten(1).sum(1)
        information = rows.shape[1] * of_average - of_bits.flatten(1).sum(1)
        return straight_through(rows, vectors), self.commitment * distance - self.entropy * information


def _channels(latent_shape: Sequence[int]) -> int:
    return agreed_shape("latent_shape", check_int_tuple("latent_shape", latent_shape))[0]
