"""Priors over the codes of a quantised latent, in nats per position: uniform, and a table of probabilities."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vaelib._checks import check_codes, check_int, check_tensor

__all__ = ["CodePrior", "CodeTable", "UniformCodes", "codes_at"]


class CodePrior(nn.Module):
    """p(codes) of int64 codes ``(B, N)`` in [0, K), a code at a time.

    A prior of your own has :meth:`log_prob` and :meth:`from_noise`, and :meth:`next_logits` if it is to be exported.

    Args:
        num_codes: K, the size of the codebook.
        num_positions: N, the codes of one image.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> class Skewed(CodePrior):  # the same at each position
        ...     logits = torch.tensor([[0.9, 0.1]]).log()
        ...
        ...     def log_prob(self, codes):
        ...         return self.logits[0][codes]
        ...
        ...     def from_noise(self, noise):
        ...         return codes_at(self.logits, noise.reshape(1, -1)).reshape(noise.shape)
        >>> Skewed(2, 3).log_prob(torch.tensor([[0, 0, 1]])).exp()
        tensor([[0.9000, 0.9000, 0.1000]])

    References:
        van den Oord et al. (2017), Neural Discrete Representation Learning, section 3.
        https://arxiv.org/abs/1711.00937
    """

    def __init__(self, num_codes: int, num_positions: int) -> None:
        super().__init__()
        self.num_codes = check_int("num_codes", num_codes)
        self.num_positions = check_int("num_positions", num_positions)

    def log_prob(self, codes: Tensor) -> Tensor:
        """Log probability in nats of each code given those before it: ``(B, N)`` to ``(B, N)``."""
        raise NotImplementedError

    def next_logits(self, codes: Tensor, position: Tensor) -> Tensor:
        """Logits of the code at ``position``, int64 ``(B,)``, given the codes before it: ``(B, N)`` to ``(B, K)``.

        Codes from ``position`` on are not looked at, so that one graph of fixed shapes serves every step of sampling.
        """
        raise NotImplementedError

    def from_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise ``(B, N)`` to draws of the codes, ``(B, N)``, each by :func:`codes_at`."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The arguments."""
        return f"num_codes={self.num_codes}, num_positions={self.num_positions}"


def check_noise(noise: Tensor, num_positions: int) -> None:
    """Raise unless ``noise`` is a floating-point tensor ``(B, num_positions)``."""
    check_tensor("noise", noise, ("B", num_positions))


@torch.no_grad()
def codes_at(logits: Tensor, noise: Tensor) -> Tensor:
    """Codes by the inverse of their distribution function, at the quantiles of standard normal noise.

    A code is the first whose cumulative probability exceeds Phi(noise), in float64 and on the CPU: one order of sums
    for all devices, which ``vaelib.runtime`` follows in numpy.

    Args:
        logits: ``(R, K)``, a distribution in each row.
        noise: ``(R, M)``, standard normal: M draws of each.

    Returns:
        int64 ``(R, M)``, on the device of ``noise``.

    Examples:
        >>> codes_at(torch.tensor([[0.1, 0.2, 0.7]]).log(), torch.tensor([[-3.0, -0.6, 0.0, 9.0]]))
        tensor([[0, 1, 2, 2]])
    """
    logits64, noise64 = (values.to("cpu", torch.float64) for values in (logits, noise))
    weights = (logits64 - logits64.amax(1, keepdim=True)).exp()
    cumulative = weights.cumsum(1)
    total = cumulative[:, -1:].contiguous()
    quantiles = (torch.special.ndtr(noise64) * total).contiguous()
    found = torch.searchsorted(cumulative, quantiles, right=True)
    last = torch.searchsorted(cumulative, total)  # the last code of a probability that counts, for Phi(noise) = 1
    return torch.minimum(found, last).to(noise.device)


class UniformCodes(CodePrior):
    """All K codes alike: ln K nats at each position. The prior of a quantised latent unless it is given another.

    Args:
        num_codes: K, the size of the codebook.
        num_positions: N, the codes of one image.

    Examples:
        >>> prior = UniformCodes(512, 49)
        >>> prior.log_prob(torch.zeros(1, 49, dtype=torch.int64))[0, :2]  # -ln 512
        tensor([-6.2383, -6.2383])
        >>> prior.from_noise(torch.randn(4, 49)).shape
        torch.Size([4, 49])

    References:
        van den Oord et al. (2017), Neural Discrete Representation Learning. https://arxiv.org/abs/1711.00937
    """

    _zero: Tensor

    def __init__(self, num_codes: int, num_positions: int) -> None:
        super().__init__(num_codes, num_positions)
        self.register_buffer("_zero", torch.zeros(1, 1), persistent=False)  # for its dtype and device

    def log_prob(self, codes: Tensor) -> Tensor:
        """-ln K for each code, in nats: ``(B, N)`` to ``(B, N)``."""
        check_codes("codes", codes, self.num_codes, self.num_positions)
        return self._zero.new_full(codes.shape, -math.log(self.num_codes))

    def next_logits(self, codes: Tensor, position: Tensor) -> Tensor:
        """Zeros, ``(B, K)``."""
        return self._zero.expand(position.shape[0], self.num_codes)

    def from_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise ``(B, N)`` to draws of the codes, ``(B, N)``: K times Phi(noise), rounded down.

        That is what :func:`codes_at` gives, without K values, since a lookup-free codebook may have 2^36.
        """
        check_noise(noise, self.num_positions)
        scaled = self.num_codes * torch.special.ndtr(noise.to("cpu", torch.float64))
        return scaled.long().clamp(max=self.num_codes - 1).to(noise.device)


class CodeTable(CodePrior):
    """Learned probabilities of the codes at each position, which does not look at the other positions.

    Starts uniform.

    Args:
        num_codes: K, the size of the codebook.
        num_positions: N, the codes of one image.

    Examples:
        >>> prior = CodeTable(4, 2)
        >>> prior.log_prob(torch.tensor([[0, 3]])).exp()
        tensor([[0.2500, 0.2500]], grad_fn=<ExpBackward0>)

    References:
        van den Oord et al. (2017), Neural Discrete Representation Learning. https://arxiv.org/abs/1711.00937
    """

    def __init__(self, num_codes: int, num_positions: int) -> None:
        super().__init__(num_codes, num_positions)
        self.logits = nn.Parameter(torch.zeros(self.num_positions, self.num_codes))

    def log_prob(self, codes: Tensor) -> Tensor:
        """Log probability in nats of each code: ``(B, N)`` to ``(B, N)``."""
        check_codes("codes", codes, self.num_codes, self.num_positions)
        return self.logits.log_softmax(1).T.gather(0, codes)

    def next_logits(self, codes: Tensor, position: Tensor) -> Tensor:
        """Logits of the code at ``position``, int64 ``(B,)``: ``(B, K)``."""
        return self.logits[position]

    def from_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise ``(B, N)`` to draws of the codes, ``(B, N)``."""
        check_noise(noise, self.num_positions)
        return codes_at(self.logits, noise.T).T
