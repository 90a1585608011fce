"""The codes of a whole data set, and which of a quantised latent's are used."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from vaelib._images import ImageSet
from vaelib.evaluation.inputs import batches_for, check_model, check_model_finite
from vaelib.vae import VAE, bound, eval_mode

__all__ = ["CodeUsage", "code_usage", "embed", "encode"]

_LARGEST_HISTOGRAM = 2**20
_MANY_SEEN = 16
"""Codes from which on it says something that all are alike."""
_MANY_DEAD = 0.1
"""Share of codes never used from which on the report says what to do."""


def encode(
    model: VAE,
    data: Tensor | ImageSet | Iterable[Any],
    *,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> Any:
    """What ``model.encode`` gives of all images, in their order, in eval mode without gradients.

    Args:
        model: A VAE or an autoencoder.
        data: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches.
        batch_size: Images per batch, unless ``data`` comes in batches.
        generator: Random generator for data that draw their images, as ``dynamic_mnist`` does; on any device.

    Returns:
        Of a VAE with a Gaussian posterior ``(mu, logvar)``, of a quantised latent int64 codes ``(N, positions)``, of
        another model ``z``, on the CPU. :func:`embed` gives the one z that ``reconstruct`` decodes, whatever the model.

    Raises:
        DataError: A ``ValueError``: if there is no image.
        ValueError: If a code is not finite.
        TypeError: If ``model`` is neither.

    Examples:
        >>> import vaelib as vl
        >>> mu, logvar = encode(vl.conv_vae((1, 8, 8), 2), torch.rand(600, 1, 8, 8))
        >>> mu.shape, logvar.shape
        (torch.Size([600, 2]), torch.Size([600, 2]))
    """
    check_model("model", model)
    if getattr(model.latent, "num_codes", None) is None:
        return _of_all(model, data, batch_size, generator, lambda view, x: view.encode(x))
    codes, _ = _of_all(model, data, batch_size, generator, _codes_and_sums)
    return codes


def embed(
    model: VAE,
    data: Tensor | ImageSet | Iterable[Any],
    *,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The deterministic z of all images, in their order: what ``model.reconstruct`` decodes.

    Args:
        model: A VAE or an autoencoder.
        data: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches.
        batch_size: Images per batch, unless ``data`` comes in batches.
        generator: Random generator for data that draw their images, as ``dynamic_mnist`` does; on the model's device.

    Returns:
        ``(N, *latent_shape)`` on the CPU.

    Raises:
        DataError: A ``ValueError``: if there is no image.
        ValueError: If a code is not finite.
        TypeError: If ``model`` is neither.

    Examples:
        >>> import vaelib as vl
        >>> embed(vl.conv_vae((1, 8, 8), 2), torch.rand(600, 1, 8, 8)).shape
        torch.Size([600, 2])
    """
    check_model("model", model)
    z: Tensor = _of_all(model, data, batch_size, generator, lambda view, x: view.embed(x))
    return z


def _codes_and_sums(view: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, and a number of each image that is not finite where the encoder's vectors are not."""
    features = view.observe(x)
    return view.latent.encoded(features), view.latent.point(features).flatten(1).sum(1)


def _of_all(
    model: VAE, data: Any, batch_size: int, generator: torch.Generator | None, verb: Callable[[Any, Tensor], Any]
) -> Any:
    """What a verb gives of all images, on the CPU."""
    with eval_mode(model):
        found = [verb(bound(model, c), x) for x, c in batches_for(model, data, batch_size, generator)]
    codes = tree_map(lambda *parts: torch.cat(parts).cpu(), *found)
    check_model_finite("model", "the posterior" if model.latent.has_prior else "the code", *tree_leaves(codes))
    return codes


class CodeUsage(NamedTuple):
    """The codes of a model over a data set."""

    perplexity: float
    """exp of the entropy of the codes, between 1 and ``num_codes``: as many codes used alike would have it. Of several
    codebooks the geometric mean."""
    dead: int
    """Codes that no position of any image has, over all codebooks."""
    histogram: Tensor | None
    """How often each code occurs, int64 ``(depth, num_codes)``, depth 1 but for a residual quantiser; None where a
    codebook has more than 2^20 codes."""
    num_codes: int
    """K, of one codebook."""
    num_seen: int
    """Codes that were counted in each codebook: images times positions. No more codes than these can occur."""
    depth: int
    """How many codebooks there are."""
    is_learned: bool = True
    """Whether codes are vectors that are learned, which restarts and commitment act on."""

    def in_words(self) -> str:
        """What these numbers say about codebook collapse."""
        codes = self.num_codes * self.depth
        share = self.dead / codes
        said = f"Codebook: perplexity {self.perplexity:.1f} of {self.num_codes}"
        if self.depth > 1:
            said += f" in {self.depth} codebooks"
        said += f", {self.dead} of {codes} codes ({100 * share:.0f}%) are never used"
        if self.perplexity < 1.5 and self.num_seen >= _MANY_SEEN:
            said, advice = (
                f"Collapsed: nearly all positions have the same code. {said}",
                " Give the quantiser restarts (`restart=0.1`), a larger `commitment`, or take a FiniteScalarQuantizer.",
            )
        elif self.num_seen < self.num_codes:
            return f"{said}; only {self.num_seen} were seen, so more images would show more."
        elif share > _MANY_DEAD:
            advice = " Restarts (`restart=0.1`), fewer codes, or a FiniteScalarQuantizer would use more of them."
        else:
            return f"{said}."
        return f"{said}." + (advice if self.is_learned else "")


def code_usage(
    model: VAE,
    data: Tensor | ImageSet | Iterable[Any],
    *,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> CodeUsage:
    """Count the codes of a whole data set; the perplexity of single batches would depend on their size.

    Args:
        model: A VAE with a quantised latent.
        data: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches.
        batch_size: Images per batch, unless ``data`` comes in batches.
        generator: Random generator for data that draw their images, as ``dynamic_mnist`` does; on any device.

    Returns:
        A :class:`CodeUsage`.

    Raises:
        DataError: A ``ValueError``: if there is no image.
        TypeError: If ``model`` has no codes.

    Examples:
        >>> import vaelib as vl
        >>> latent = vl.FiniteScalarQuantizer((2, 2, 2), (5, 3))
        >>> vae = vl.conv_vae((1, 8, 8), latent=latent, hidden_channels=(8, 16))
        >>> usage = code_usage(vae, torch.rand(100, 1, 8, 8))
        >>> usage.num_codes, usage.num_seen, int(usage.histogram.sum())
        (15, 400, 400)

    References:
        van den Oord et al. (2017), Neural discrete representation learning. https://arxiv.org/abs/1711.00937
    """
    check_model("model", model)
    num_codes = getattr(model.latent, "num_codes", None)
    if num_codes is None:
        raise TypeError(
            f"`model` must have a latent of codes, such as VectorQuantizer, got {type(model.latent).__name__}."
        )
    depth = model.latent.num_positions // math.prod(model.latent_shape[1:])
    books = encode(model, data, batch_size=batch_size, generator=generator).chunk(depth, dim=1)
    used = [book.unique(return_counts=True) for book in books]
    entropies = [torch.special.entr(counts.double() / counts.sum()).sum().item() for _, counts in used]
    histogram = None
    if num_codes <= _LARGEST_HISTOGRAM:
        histogram = torch.stack([book.flatten().bincount(minlength=num_codes) for book in books])
    return CodeUsage(
        perplexity=math.exp(sum(entropies) / depth),
        dead=depth * num_codes - sum(len(counts) for _, counts in used),
        histogram=histogram,
        num_codes=num_codes,
        num_seen=books[0].numel(),
        depth=depth,
        is_learned=hasattr(model.latent, "restart"),
    )
