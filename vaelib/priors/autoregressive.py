"""A prior over codes that looks at the codes before: a small causal transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaelib._checks import check_codes, check_int, check_tensor
from vaelib._parts import Bound, rows_of
from vaelib.priors.codes import CodePrior, check_noise, codes_at
from vaelib.priors.gaussians import UNBOUND

__all__ = ["AutoregressiveCodes"]

_Past = tuple[Tensor, Tensor]
"""Keys and values of the tokens so far, ``(B, heads, n, width / heads)`` each."""


class AutoregressiveCodes(CodePrior):
    """p(code | the codes before it), by a causal transformer; with a ``condition_size``, p(code | those, condition).

    Trained jointly, by the rate in the bound, or afterwards: ``vae.prior = vl.fit_prior(prior, codes)``. Starts
    uniform. Codes are drawn one after the other, with a cache of keys and values.

    Args:
        num_codes: K, the size of the codebook.
        num_positions: N, the codes of one image.
        width: Features of a token; a multiple of ``num_heads``.
        num_blocks: Blocks of attention and a network of two layers.
        num_heads: Heads of each attention.
        condition_size: E, the size of the embedding that :meth:`given` binds; 0 for a prior without a condition.

    Raises:
        ValueError: If an argument is out of its range, or a prior with a condition is called without one.

    Examples:
        >>> prior = AutoregressiveCodes(16, 4, width=8, num_blocks=1, num_heads=2)
        >>> prior.log_prob(torch.zeros(3, 4, dtype=torch.int64)).shape
        torch.Size([3, 4])
        >>> prior.from_noise(torch.randn(5, 4)).shape
        torch.Size([5, 4])

    References:
        van den Oord et al. (2017), Neural Discrete Representation Learning, section 3.2,
        https://arxiv.org/abs/1711.00937; with a transformer: Esser et al. (2021), https://arxiv.org/abs/2012.09841
    """

    def __init__(
        self,
        num_codes: int,
        num_positions: int,
        width: int = 128,
        num_blocks: int = 4,
        num_heads: int = 4,
        condition_size: int = 0,
    ) -> None:
        super().__init__(num_codes, num_positions)
        self.width, self.num_heads = check_int("width", width), check_int("num_heads", num_heads)
        self.num_blocks = check_int("num_blocks", num_blocks)
        self.condition_size = check_int("condition_size", condition_size, 0)
        if self.width % self.num_heads:
            raise ValueError(f"`width` must be a multiple of `num_heads`, {num_heads}, got {width}.")
        self.start = nn.Parameter(0.02 * torch.randn(self.width))
        self.positions = nn.Parameter(0.02 * torch.randn(self.num_positions, self.width))
        self.tokens = nn.Embedding(self.num_codes, self.width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.condition = nn.Linear(self.condition_size, self.width) if self.condition_size else None
        self.blocks = nn.ModuleList(_Block(self.width, self.num_heads) for _ in range(self.num_blocks))
        self.norm = nn.LayerNorm(self.width)
        self.head = nn.Linear(self.width, self.num_codes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def learning_rate(self) -> float:
        """Where :func:`fit_prior` starts unless it is given another: 4e-3 for a width of 64, less for a wider one."""
        return 0.25 / self.width

    def given(self, embedding: Tensor) -> Bound | AutoregressiveCodes:
        """The same methods with the condition bound: ``(B, E)``, for batches of K * B rows, all of a draw together.

        A prior without a condition is returned as it is.
        """
        if not self.condition_size:
            return self
        check_tensor("embedding", embedding, ("B", self.condition_size))
        return Bound(self, "embedding", embedding, ("log_prob", "next_logits", "from_noise"))

    def log_prob(self, codes: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Log probability in nats of each code given those before it: ``(B, N)`` to ``(B, N)``."""
        check_codes("codes", codes, self.num_codes, self.num_positions)
        logits = self._logits(self._hidden(codes, embedding))
        return logits.log_softmax(2).gather(2, codes[..., None])[..., 0]

    def next_logits(self, codes: Tensor, position: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Logits of the code at ``position``, int64 ``(B,)``, given the codes before it: ``(B, N)`` to ``(B, K)``."""
        hidden = self._hidden(codes, embedding)
        chosen = position[:, None, None].expand(-1, 1, self.width)
        return self._logits(hidden.gather(1, chosen)[:, 0])

    @torch.no_grad()
    def from_noise(self, noise: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Standard normal noise ``(B, N)`` to draws of the codes, ``(B, N)``, each by :func:`codes_at`."""
        check_noise(noise, self.num_positions)
        shift = self._shift(noise.shape[0], embedding)
        token = self.start.expand(noise.shape[0], 1, self.width)
        past: list[_Past | None] = [None] * self.num_blocks
        codes: list[Tensor] = []
        for i in range(self.num_positions):
            hidden = token + self.positions[i] + shift
            for number, block in enumerate(self.blocks):
                hidden, past[number] = block(hidden, past[number])
            codes.append(codes_at(self._logits(hidden[:, 0]), noise[:, i : i + 1]))
            token = self.tokens(codes[-1])
        return torch.cat(codes, dim=1)

    def _hidden(self, codes: Tensor, embedding: Tensor | None) -> Tensor:
        """What the blocks make of the start token and all codes but the last, ``(B, N, width)``."""
        start = self.start.expand(codes.shape[0], 1, self.width)
        hidden = torch.cat([start, self.tokens(codes[:, :-1])], dim=1) + self.positions
        hidden = hidden + self._shift(codes.shape[0], embedding)
        for block in self.blocks:
            hidden, _ = block(hidden)
        return hidden

    def _shift(self, rows: int, embedding: Tensor | None) -> Tensor:
        """What the condition adds to every token."""
        if self.condition is None:
            return self.start.new_zeros(())
        if embedding is None:
            raise ValueError(UNBOUND)
        shift: Tensor = self.condition(rows_of(embedding, rows).to(self.start.dtype))
        return shift[:, None]

    def _logits(self, hidden: Tensor) -> Tensor:
        """In the dtype of the weights under autocast too: rounding logits to half precision would move the nats."""
        with torch.autocast(hidden.device.type, enabled=False):
            logits: Tensor = self.head(self.norm(hidden.to(self.start.dtype)))
        return logits


class _Block(nn.Module):
    """Attention to the tokens so far, then a network of two layers; each adds to its input. Starts as the identity."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.norm_after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rise, self.fall = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for layer in (self.out, self.fall):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, past: _Past | None = None) -> tuple[Tensor, _Past]:
        """All tokens ``(B, n, width)``; or, after ``past``, the next one, ``(B, 1, width)``."""
        query, key, value = self.qkv(self.norm(x)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.fall(F.gelu(self.rise(self.norm_after(x)))), (key, value)
