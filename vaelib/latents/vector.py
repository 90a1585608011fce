"""Latents of learned code vectors: one codebook, or several that each quantise what those before left over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vaelib._checks import check_bool, check_choice, check_float, check_int, check_tensor
from vaelib._parts import check_head
from vaelib.latents.codebook import Codebook, Reduce
from vaelib.latents.quantizer import GRADIENTS, LARGEST_CODEBOOK, Quantizer
from vaelib.priors import UniformCodes

__all__ = ["ResidualQuantizer", "VectorQuantizer"]


class ResidualQuantizer(Quantizer):
    """Codes in ``depth`` steps, each of what the steps before it left over; the vectors add up, and so do the rates.

    The codes of an image are all of the first step, then all of the second, ...; K codes in each. Otherwise as
    :class:`VectorQuantizer`, which has the arguments.

    Args:
        latent_shape: ``(C, h, w)``, or ``(D,)``.
        num_codes: K, of each codebook.
        depth: Number of codebooks.
        prior: p(codes); :class:`UniformCodes` if None.
        commitment: Nats per squared distance between what is left and its code, summed over the steps too.
        decay: Decay of the running means; None to train the codes by gradients.
        restart: A code used less often than this share of the mean is moved; 0 for never.
        gradient: ``"straight_through"`` or ``"rotation"``, from the sum of the codes to the encoder's vector.

    Raises:
        ValueError: If an argument is out of its range, or the prior is for other codes.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> latent = ResidualQuantizer((8, 7, 7), 256, depth=4)
        >>> latent.encoded(torch.randn(2, 8, 7, 7)).shape
        torch.Size([2, 196])

    References:
        Lee et al. (2022), Autoregressive image generation using residual quantization, section 3.1.
        https://arxiv.org/abs/2203.01941
    """

    def __init__(
        self,
        latent_shape: Sequence[int],
        num_codes: int,
        depth: int,
        prior: nn.Module | None = None,
        commitment: float = 0.25,
        decay: float | None = 0.99,
        restart: float = 0.1,
        gradient: str = "straight_through",
    ) -> None:
        super().__init__(
            latent_shape, check_int("num_codes", num_codes, 2, LARGEST_CODEBOOK), prior, check_int("depth", depth)
        )
        self.depth = int(depth)
        self.commitment = check_float("commitment", commitment, 0.0)
        self.decay = None if decay is None else check_float("decay", decay, 0.0, 1.0)
        self.restart = check_float("restart", restart, 0.0, 1.0)
        check_choice("gradient", gradient, GRADIENTS)
        self.gradient = gradient
        self.codebooks = nn.ModuleList(
            Codebook(self.num_codes, self.latent_shape[0], self.decay, self.restart) for _ in range(self.depth)
        )

    def codes_of(self, z: Tensor) -> Tensor:
        """The codes of ``z``, ``(B, *latent_shape)``, int64 ``(B, N)``, if ``depth`` is 1.

        Raises:
            ValueError: If it is more: a sum of vectors does not tell which ones it is made of.
        """
        if self.depth > 1:
            raise ValueError(
                f"`depth` must be 1 for codes of `z`, which is a sum here that may be made of other vectors too, got"
                f" {self.depth}: take those of `encode`, and `log_p` of a draw or `prior.log_prob(codes)`."
            )
        return super().codes_of(z)

    def log_prob(self, z: Tensor, *, prior: Any = None) -> Tensor:
        """Log p(codes of z) in nats, ``(B,)``; if ``depth`` is more than 1, of uniform codes only.

        Raises:
            ValueError: Of a ``depth`` above 1 with another prior.
        """
        if self.depth > 1 and isinstance(self.prior if prior is None else prior, UniformCodes):
            check_tensor("z", z, ("B", *self.latent_shape))
            any_codes = torch.zeros(len(z), self.num_positions, dtype=torch.int64, device=z.device)
            return self.prior.log_prob(any_codes).sum(1)
        return super().log_prob(z, prior=prior)

    def after_step(
        self, reduce: Reduce | None = None, generator: torch.Generator | None = None, moved: bool | Tensor = True
    ) -> None:
        """Let the codebook follow the training-mode draws since the last call: once per optimiser step, after it.

        :class:`Trainer` does this; a loop of your own calls ``vae.latent.after_step()``. The first call places the
        codes by k-means.

        Args:
            reduce: Sums a tensor over processes; nothing if None.
            generator: Random generator for restarted codes, the same on every process; torch's global one if None.
            moved: Whether the step moved the weights; if it was skipped, those draws are forgotten. A tensor on a
                device is waited for until k-means is done; then they are followed, and buffers are the caller's to
                restore.
        """
        for codebook in self._books():
            codebook.after_step(reduce, generator, moved)

    def _books(self) -> list[Codebook]:
        return [book for book in self.codebooks if isinstance(book, Codebook)]

    def _split(self, codes: Tensor) -> list[tuple[Codebook, Tensor]]:
        """Each codebook with its codes ``(B, positions)``."""
        books = self._books()
        return list(zip(books, codes.chunk(len(books), dim=1), strict=True))

    def _codes(self, rows: Tensor) -> Tensor:
        codes = []
        for book in self._books():
            codes.append(book.nearest(rows))
            rows = book.directed(rows) - book(codes[-1])
        return torch.cat(codes, dim=1)

    def margins(self, features: Any) -> Tensor:
        """How far each code is from being another, ``(B, N)``: the next squared distance less that of the code.

        Of several codebooks the least so far: another code leaves another rest to all after it.
        """
        rows, margins = self._rows(check_head(features, self)), []
        for book in self._books():
            nearest = book.distances(rows).topk(2, dim=-1, largest=False).values
            margins.append(nearest[..., 1] - nearest[..., 0])
            rows = book.directed(rows) - book(book.nearest(rows))
        return torch.stack(margins, dim=1).cummin(1).values.flatten(1)

    def _vectors(self, codes: Tensor) -> Tensor:
        (book, first), *others = self._split(codes)
        vectors = book(first)
        for book, part in others:
            vectors = vectors + book(part)
        return vectors

    def _trained(self, rows: Tensor, codes: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        left, penalty = rows, rows.new_zeros(rows.shape[0])
        for book, part in self._split(codes):
            if self.training:
                book.record(left.detach(), part)
            left, code = book.directed(left), book(part)
            penalty = penalty + self.commitment * _squares(left - code.detach())
            if self.decay is None:
                penalty = penalty + _squares(left.detach() - code)
            left = left - code.detach()
        aim = self._books()[0].directed(rows)
        return GRADIENTS[self.gradient](aim, vectors.detach()), penalty


class VectorQuantizer(ResidualQuantizer):
    """The nearest of K learned vectors at each position: the latent of a VQ-VAE.

    ``vl.VAE(encoder, decoder, latent=VectorQuantizer((64, 7, 7), 512))``, or ``vl.conv_vae(..., latent=...)``. The rate
    is -log p(codes), h w ln K nats with uniform codes. Low-dimensional codes are a ``latent_shape`` of few channels:
    the head of :class:`ConvEncoder` projects to them. Distances are in float32 at least, whatever autocast says; of
    the precisions of :class:`Trainer` only ``"tf32"`` rounds their factors, in training alone.

    In training, codes are placed by k-means after the first step, then follow the encoder's vectors by running means;
    codes that are hardly used move beside codes that are used much. All of that happens in :meth:`after_step`, which
    :class:`Trainer` calls; a loop of your own calls it after each step of the optimiser.

    Args:
        latent_shape: ``(C, h, w)``, or ``(D,)`` for one code per image.
        num_codes: K.
        prior: p(codes); :class:`UniformCodes` if None.
        commitment: What a squared distance between encoder's vector and code costs, in nats, summed over positions and
            channels.
        decay: Decay of the running means, in [0, 1]; None to train the codes by gradients, with their squared
            distances to the encoder's vectors at 1 nat each.
        restart: A code used less often than this share of the mean is moved; 0 for never.
        gradient: ``"straight_through"`` or ``"rotation"``.
        cosine: Compare directions; encoder's vectors and codes have length 1.

    Raises:
        ValueError: If an argument is out of its range, or the prior is for other codes.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> latent = VectorQuantizer((8, 7, 7), 512)
        >>> draw = latent.draw(torch.randn(2, 8, 7, 7), torch.empty(2, 0))
        >>> draw.codes.shape, round(draw.kl.sum(1)[0].item(), 2)  # 49 ln 512
        (torch.Size([2, 49]), 305.68)
        >>> torch.equal(latent.embed(draw.codes), draw.z)
        True

    References:
        van den Oord et al. (2017), https://arxiv.org/abs/1711.00937, running means in appendix A.1; ``rotation``: Fifty
        et al. (2024), https://arxiv.org/abs/2410.06424; k-means and the splitting of codes: Linde, Buzo & Gray (1980)
    """

    def __init__(
        self,
        latent_shape: Sequence[int],
        num_codes: int,
        prior: nn.Module | None = None,
        commitment: float = 0.25,
        decay: float | None = 0.99,
        restart: float = 0.1,
        gradient: str = "straight_through",
        cosine: bool = False,
    ) -> None:
        super().__init__(latent_shape, num_codes, 1, prior, commitment, decay, restart, gradient)
        check_bool("cosine", cosine)
        self.cosine = cosine
        for book in self._books():
            book.cosine = cosine


def _squares(difference: Tensor) -> Tensor:
    return difference.square().flatten(1).sum(1)
