"""What a latent is, what one draw of it carries, and the simplest: one point per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from vaelib._checks import check_int_tuple, shown
from vaelib._parts import Bound, check_code

__all__ = ["Draw", "Latent", "LatentModule", "PointLatent", "first_tensor", "repeated"]


class Draw(NamedTuple):
    """One draw of q(z|x) for each image of a batch, with its own nats."""

    z: Tensor
    """The latent, ``(B, *latent_shape)``."""
    hidden: Tensor
    """What the decoder is given; ``z`` itself except in a hierarchy."""
    kl: Tensor
    """KL(q(z|x) to p(z)) in nats, ``(B, G)``: by latent, position or level where it has a closed form, else the
    estimate ``log_q - log_p``, ``(B, 1)``; ``(B, 0)`` of a latent without a prior."""
    log_q: Tensor
    """log q(z|x) of this draw in nats, ``(B,)``; 0 where q is deterministic."""
    log_p: Tensor
    """log p(z) in nats, ``(B,)``."""
    penalty: Tensor | None = None
    """What is trained on but is no part of the bound, such as a commitment loss, ``(B,)``."""
    codes: Tensor | None = None
    """Indices of a quantised latent, int64 ``(B, N)``."""
    mu: Tensor | None = None
    """Mean of a Gaussian posterior, ``(B, *latent_shape)``."""
    logvar: Tensor | None = None
    """Log variance of a Gaussian posterior, the same shape."""


@runtime_checkable
class Latent(Protocol):
    """What ``VAE``, the objectives and the evaluation ask of a latent, which is an ``nn.Module``.

    ``features`` are whatever the encoder returned: a tensor, or a tuple, list or dict of tensors ``(B, ...)``.
    """

    latent_shape: tuple[int, ...]
    """Shape of one z."""
    noise_size: int
    """Standard normal numbers per image that :meth:`draw` needs; 0 where q is deterministic."""
    prior_noise_size: int
    """Standard normal numbers per image that :meth:`from_noise` needs."""
    has_prior: bool
    """Whether there is a p(z), and so a bound."""
    num_heads: int
    """How many tensors ``(B, *latent_shape)`` the encoder gives it; 0 of a latent that reads something else."""

    def draw(self, features: Any, noise: Tensor) -> Draw:
        """A draw of q(z|x) from ``noise``, ``(B, noise_size)``."""

    def point(self, features: Any) -> Tensor:
        """The deterministic z, ``(B, *latent_shape)``, such as the mean of q(z|x)."""

    def encoded(self, features: Any) -> Any:
        """What ``VAE.encode`` returns: ``(mu, logvar)`` of a Gaussian posterior, else z or codes."""

    def from_noise(self, noise: Tensor) -> Tensor:
        """A draw of p(z), ``(B, *latent_shape)``, from ``noise``, ``(B, prior_noise_size)``."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats, ``(B,)``."""

    def hidden(self, z: Tensor) -> Tensor:
        """What the decoder is given for ``z``; ``z`` itself except in a hierarchy."""


class LatentModule(nn.Module):
    """What the latents of vaelib have in common: no hierarchy, and a prior that may take a condition."""

    def hidden(self, z: Tensor) -> Tensor:
        """``z`` itself."""
        return z

    def given(self, embedding: Tensor) -> Any:
        """The latent with a condition, ``(B, E)``, bound to its prior; itself if the prior takes none."""
        prior: Any = getattr(self, "prior", None)
        if not hasattr(prior, "given"):
            return self
        return Bound(self, "prior", prior.given(embedding), ("draw", "from_noise", "log_prob"))


class PointLatent(LatentModule):
    """z is what the encoder returns, the first of a tuple: no posterior, no prior, no nats.

    ``vl.AutoEncoder(...)`` is a :class:`VAE` with this latent.

    Args:
        latent_shape: ``(D,)`` or ``(C, h, w)``.

    Examples:
        >>> import torch
        >>> PointLatent((2,)).draw(torch.ones(3, 2), torch.empty(3, 0)).kl.shape
        torch.Size([3, 0])
    """

    has_prior = False
    num_heads = 1
    noise_size = 0
    prior_noise_size = 0

    def __init__(self, latent_shape: Sequence[int]) -> None:
        super().__init__()
        self.latent_shape = check_int_tuple("latent_shape", latent_shape)

    def draw(self, features: Any, noise: Tensor) -> Draw:
        """The point, without nats."""
        z = self.point(features)
        nothing = z.new_zeros(z.shape[0])
        return Draw(z, z, z.new_zeros(z.shape[0], 0), nothing, nothing)

    def point(self, features: Any) -> Tensor:
        """``features``, of a tuple the first."""
        return check_code(features, self.latent_shape)

    def encoded(self, features: Any) -> Tensor:
        """The same."""
        return self.point(features)

    def from_noise(self, noise: Tensor) -> Tensor:
        """Raise: there is no p(z).

        Raises:
            ValueError: Always.
        """
        raise ValueError("An autoencoder has no prior to sample: fit one to its codes, see `vl.fit_prior`.")

    def log_prob(self, z: Tensor) -> Tensor:
        """Raise: there is no p(z).

        Raises:
            ValueError: Always.
        """
        raise ValueError("An autoencoder has no prior: fit one to its codes, see `vl.fit_prior`.")


def repeated(features: Any, num_samples: int) -> Any:
    """Each tensor ``(B, ...)`` of ``features`` ``num_samples`` times, ``(K * B, ...)``: all images of a draw together.

    Examples:
        >>> import torch
        >>> repeated((torch.tensor([[1.0], [2.0]]),), 2)[0].flatten()
        tensor([1., 2., 1., 2.])
    """
    return tree_map_only(Tensor, lambda part: part.repeat(num_samples, *[1] * (part.ndim - 1)), features)


def first_tensor(features: Any) -> Tensor:
    """The first tensor of floating point among ``features``, for the batch size, the dtype and the device of all.

    Raises:
        TypeError: If there is none ``(B, ...)``.
    """
    for leaf in tree_leaves(features):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim:
            return leaf
    raise TypeError(
        f"`features` must be tensors (B, ...), as the encoder returns them, got {shown(features)}. Of images,"
        " model.observe(x) gives them, not encode(x)."
    )
