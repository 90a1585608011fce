"""q(z|x) beyond the encoder's Gaussian."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vaelib._checks import MissingExtraError, check_int, check_int_tuple, check_shape, check_tensor

__all__ = ["FlowPosterior"]


class FlowPosterior(nn.Module):
    """Inverse autoregressive flow, by zuko: bends a draw of the encoder's Gaussian, knowing its ``mu`` and ``logvar``.

    ``vl.VAE(..., latent=vl.GaussianLatent((32,), posterior=FlowPosterior((32,))))``. Each transform shifts and scales
    every latent by what it makes of those before it; the order is reversed from one to the next. Starts as the
    identity. Of the draws that it made, and of no other z, the density comes at no cost.

    Args:
        latent_shape: ``(D,)`` or ``(C, h, w)``.
        num_transforms: Autoregressive transforms.
        hidden_features: Widths of the masked network inside each.

    Raises:
        MissingExtraError: If zuko is not installed.

    Examples:
        >>> import vaelib as vl
        >>> parts = vl.ConvEncoder((1, 8, 8), 4), vl.ConvDecoder(4, (1, 8, 8))
        >>> flow = FlowPosterior((4,), num_transforms=2, hidden_features=(16,))
        >>> vae = vl.VAE(*parts, latent=vl.GaussianLatent((4,), posterior=flow))
        >>> vl.Elbo()(vae, torch.rand(3, 1, 8, 8)).kl.shape
        torch.Size([3])

    References:
        Kingma et al. (2016), Improving variational inference with inverse autoregressive flow, algorithm 1.
        https://arxiv.org/abs/1606.04934
    """

    def __init__(
        self, latent_shape: Sequence[int], num_transforms: int = 2, hidden_features: Sequence[int] = (128,)
    ) -> None:
        super().__init__()
        self.latent_shape = check_int_tuple("latent_shape", latent_shape)
        self.num_transforms = check_int("num_transforms", num_transforms)
        self.hidden_features = check_int_tuple("hidden_features", hidden_features)
        if importlib.util.find_spec("zuko") is None:
            raise MissingExtraError("FlowPosterior", "flows")
        from zuko.flows import MaskedAutoregressiveTransform

        features = math.prod(self.latent_shape)
        order = torch.arange(features)
        self.transforms = nn.ModuleList(
            MaskedAutoregressiveTransform(
                features,
                context=2 * features,
                order=order.flip(0) if i % 2 else order,
                hidden_features=self.hidden_features,
            )
            for i in range(self.num_transforms)
        )
        for transform in self.transforms:
            hyper: Any = transform.hyper
            nn.init.zeros_(hyper[-1].weight)
            nn.init.zeros_(hyper[-1].bias)

    def forward(self, z: Tensor, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        """A draw of N(mu, exp(logvar)), ``(B, *latent_shape)``, to z of that shape and ``log |dz/d draw|``."""
        for name, values in (("z", z), ("mu", mu), ("logvar", logvar)):
            check_tensor(name, values)
            check_shape(name, values.shape, ("B", *self.latent_shape))
        context = torch.cat([mu.flatten(1), logvar.flatten(1)], dim=1)
        flat, log_det = z.flatten(1), z.new_zeros(z.shape[0])
        for transform in self.transforms:
            flat, part = transform(context).call_and_ladj(flat)
            log_det = log_det + part
        return flat.unflatten(1, self.latent_shape), log_det
