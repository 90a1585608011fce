"""Priors over codes are distributions: they sum to one, and what is drawn from noise has their frequencies."""

import itertools
import math

import pytest
import torch
from torch import distributions as td

import vaelib as vl
from vaelib.priors.codes import codes_at

CODES, POSITIONS = 3, 4


def table():
    prior = vl.CodeTable(CODES, POSITIONS)
    with torch.no_grad():
        prior.logits.copy_(torch.randn(POSITIONS, CODES, generator=torch.Generator().manual_seed(0)))
    return prior


PRIORS = {"uniform": lambda: vl.UniformCodes(CODES, POSITIONS), "table": table}


@pytest.fixture(params=PRIORS)
def prior(request):
    return PRIORS[request.param]()


def every_sequence():
    """All K^N sequences of codes, ``(K^N, N)``."""
    return torch.tensor([*itertools.product(range(CODES), repeat=POSITIONS)])


@torch.no_grad()
def test_probabilities_of_all_sequences_sum_to_one(prior):
    codes = every_sequence()
    assert prior.log_prob(codes).shape == codes.shape
    assert prior.double().log_prob(codes).sum(1).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@torch.no_grad()
def test_draws_have_these_probabilities(prior):
    """Chi-square of all sequences, below its 0.999 quantile for 80 degrees of freedom."""
    codes, count = every_sequence(), 40_000
    drawn = prior.from_noise(torch.randn(count, POSITIONS, generator=torch.Generator().manual_seed(1)))
    assert drawn.dtype == torch.int64
    digits = CODES ** torch.arange(POSITIONS - 1, -1, -1)
    found = torch.bincount((drawn * digits).sum(1), minlength=len(codes))
    expected = count * prior.log_prob(codes).sum(1).exp()
    assert ((found - expected) ** 2 / expected).sum() < 124.8


@torch.no_grad()
def test_a_draw_is_the_loop_over_the_next_logits(prior):
    noise = torch.randn(50, POSITIONS, generator=torch.Generator().manual_seed(2))
    codes = torch.zeros(50, POSITIONS, dtype=torch.int64)
    for i in range(POSITIONS):
        logits = prior.next_logits(codes, torch.full((50,), i))
        assert logits.shape == (50, CODES)
        codes[:, i] = codes_at(logits, noise[:, i : i + 1])[:, 0]
        torch.testing.assert_close(
            logits.log_softmax(1).gather(1, codes[:, i : i + 1]), prior.log_prob(codes)[:, i : i + 1]
        )
    assert torch.equal(prior.from_noise(noise), codes)
    assert torch.equal(prior.from_noise(noise[:1]), codes[:1])
    assert prior.from_noise(noise[:0]).shape == (0, POSITIONS)


def test_a_code_is_the_first_whose_cumulative_probability_exceeds_the_quantile():
    """Exact at quantiles in the middle of each code's interval, and at the ends."""
    probabilities = torch.rand(20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.01
    probabilities /= probabilities.sum(1, keepdim=True)
    middle = probabilities.cumsum(1) - probabilities / 2
    assert torch.equal(codes_at(probabilities.log(), td.Normal(0, 1).icdf(middle)), torch.arange(7).expand(20, 7))
    inside = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).log()
    ends = torch.tensor([[-40.0, -math.inf, 40.0, math.inf]])
    assert codes_at(inside, ends).tolist() == [[1, 1, 2, 2]]


def test_the_uniform_prior_costs_ln_k_a_code():
    prior, codes = vl.UniformCodes(512, 49), torch.randint(512, (5, 49))
    assert torch.equal(-prior.log_prob(codes), torch.full((5, 49), math.log(512)))
    assert torch.equal(-prior.double().log_prob(codes), torch.full((5, 49), math.log(512), dtype=torch.float64))
    noise = torch.randn(5, 49)
    assert torch.equal(prior.from_noise(noise), (512 * torch.special.ndtr(noise.double())).long())


def test_a_prior_is_uniform_when_it_is_made():
    codes = every_sequence()
    for prior in (vl.CodeTable(CODES, POSITIONS),):
        torch.testing.assert_close(prior.log_prob(codes), vl.UniformCodes(CODES, POSITIONS).log_prob(codes))


CODE = torch.zeros(2, POSITIONS, dtype=torch.int64)
WRONG = {
    "floats": (lambda p: p.log_prob(CODE.float()), TypeError, "`codes` must be int64, got dtype torch.float32"),
    "int32": (lambda p: p.log_prob(CODE.int()), TypeError, "`codes` must be int64, got dtype torch.int32"),
    "a list": (lambda p: p.log_prob([[0] * POSITIONS]), TypeError, "`codes` must be a torch.Tensor"),
    "positions": (lambda p: p.log_prob(CODE[:, 1:]), ValueError, r"`codes` must have shape \(B, 4\), got \(2, 3\)"),
    "too large": (lambda p: p.log_prob(CODE + 3), ValueError, r"`codes` must have values in \[0, 3\), got \[3, 3\]"),
    "negative": (lambda p: p.log_prob(CODE - 1), ValueError, r"`codes` must have values in \[0, 3\), got \[-1, -1\]"),
    "noise": (lambda p: p.from_noise(torch.randn(2, 3)), ValueError, r"`noise` must have shape \(B, 4\), got \(2, 3\)"),
    "int noise": (lambda p: p.from_noise(CODE), TypeError, "`noise` must be floating point"),
    "no codes": (lambda p: type(p)(0, 3), ValueError, "`num_codes` must be >= 1"),
    "no positions": (lambda p: type(p)(3, 0), ValueError, "`num_positions` must be >= 1"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments(prior, wrong):
    call, error, match = WRONG[wrong]
    with pytest.raises(error, match=match):
        call(prior)
