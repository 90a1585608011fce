"""A normalizing flow as prior, by zuko."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vaelib._checks import MissingExtraError, check_choice, check_int, check_int_tuple, check_tensor
from vaelib.priors.gaussians import Prior

__all__ = ["FlowPrior"]


class FlowPrior(Prior):
    """A flow from latents to standard normal noise, trained jointly with the model; starts as the identity.

    Args:
        latent_shape: ``(D,)`` or ``(C, h, w)``, of at least two latents.
        kind: ``"realnvp"``, affine couplings, or ``"nsf"``, couplings by rational quadratic splines on [-5, 5], which
            cannot be exported to ONNX: torch writes a GatherElements that ``onnx.reference`` refuses.
        num_transforms: Couplings, each of one half of the latents given the other.
        hidden_features: Widths of the networks inside each.

    Raises:
        MissingExtraError: If zuko is not installed.

    Examples:
        >>> import torch
        >>> prior = FlowPrior((8,), num_transforms=2, hidden_features=(16,))
        >>> round(prior.log_prob(torch.zeros(1, 8)).item(), 4)  # as N(0, I) before training
        -7.3515
        >>> prior.sample(4, (8,)).shape
        torch.Size([4, 8])

    References:
        Dinh et al. (2017), Real NVP, https://arxiv.org/abs/1605.08803; Durkan et al. (2019), Neural spline flows,
        https://arxiv.org/abs/1906.04032; as a VAE's prior: Xu et al. (2019), https://arxiv.org/abs/1905.13452
    """

    def __init__(
        self,
        latent_shape: Sequence[int],
        kind: str = "realnvp",
        num_transforms: int = 6,
        hidden_features: Sequence[int] = (128, 128),
    ) -> None:
        super().__init__()
        self.latent_shape = check_int_tuple("latent_shape", latent_shape)
        check_choice("kind", kind, ("realnvp", "nsf"))
        self.kind = kind
        self.num_transforms = check_int("num_transforms", num_transforms)
        self.hidden_features = check_int_tuple("hidden_features", hidden_features)
        features = math.prod(self.latent_shape)
        if features < 2:
            raise ValueError(f"`latent_shape` must hold at least 2 latents for couplings, got {self.latent_shape}.")
        if importlib.util.find_spec("zuko") is None:
            raise MissingExtraError("FlowPrior", "flows")
        import zuko

        options: dict[str, Any] = {"transforms": self.num_transforms, "hidden_features": self.hidden_features}
        spline = kind == "nsf"
        self.flow = zuko.flows.NSF(features, passes=2, **options) if spline else zuko.flows.RealNVP(features, **options)
        for transform in self.flow.transform.transforms:
            nn.init.zeros_(transform.hyper[-1].weight)
            nn.init.zeros_(transform.hyper[-1].bias)
        self._distribution = self.flow()

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats: ``(B, *latent_shape)`` to ``(B,)``."""
        check_tensor("z", z, ("B", *self.latent_shape))
        return self._distribution.log_prob(z.flatten(1))

    def from_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise ``(B, D)`` to draws of z, ``(B, *latent_shape)``."""
        return self._distribution.transform.inv(noise).unflatten(1, self.latent_shape)

    def _apply(self, *arguments: Any, **options: Any) -> FlowPrior:
        """What ``to`` and its like call; builds the distribution where the weights are now.

        Zuko's couplings call ``nonzero`` for it. In a step that would wait for a GPU and break a compiled graph.
        """
        super()._apply(*arguments, **options)
        if not next(self.parameters()).is_meta:
            self._distribution = self.flow()
        return self
