import math

import pytest
import torch
from torch import distributions as td

from vaelib import functional as vf


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_kl_against_torch_and_by_hand():
    mu, logvar = double(5, 3, 2, 2), 3 * double(5, 3, 2, 2)
    posterior = td.Normal(mu, (0.5 * logvar).exp())
    expected = td.kl_divergence(posterior, td.Normal(torch.zeros_like(mu), torch.ones_like(mu))).flatten(1)
    torch.testing.assert_close(vf.kl_standard_normal(mu, logvar), expected.sum(1))
    torch.testing.assert_close(vf.kl_standard_normal(mu, logvar, per_latent=True), expected)
    assert vf.kl_standard_normal(torch.zeros(1, 7), torch.zeros(1, 7)).item() == 0.0
    assert vf.kl_standard_normal(torch.ones(1, 7), torch.zeros(1, 7)).item() == 3.5


def test_kl_is_exact_near_the_prior():
    """1 + logvar - exp(logvar) would cancel to zero in float32; expm1 does not."""
    logvar = torch.full((1, 1), 1e-3)
    assert vf.kl_standard_normal(torch.zeros(1, 1), logvar).item() == pytest.approx(2.5008e-7, rel=1e-3)


def test_gaussian_and_laplace_against_torch():
    x, mean, log_scale = double(4, 3, 5, 5), double(4, 3, 5, 5), 0.3 * double(4, 3, 5, 5)
    for ours, theirs in ((vf.gaussian_log_prob, td.Normal), (vf.laplace_log_prob, td.Laplace)):
        expected = theirs(mean, log_scale.exp()).log_prob(x).flatten(1).sum(1)
        torch.testing.assert_close(ours(x, mean, log_scale), expected)


def test_bernoulli_against_torch():
    x, logits = torch.rand(4, 1, 5, 5, dtype=torch.float64), 3 * double(4, 1, 5, 5)
    expected = td.Bernoulli(logits=logits, validate_args=False).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(vf.bernoulli_log_prob(x, logits), expected)


def test_continuous_bernoulli_against_torch_and_its_integral():
    x, logits = torch.rand(4, 1, 5, 5, dtype=torch.float64), 3 * double(4, 1, 5, 5)
    expected = td.ContinuousBernoulli(logits=logits).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(vf.continuous_bernoulli_log_prob(x, logits), expected, rtol=1e-5, atol=1e-5)
    grid = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:, None]
    for logit in (-300.0, -9.0, -0.02, -1e-3, 0.0, 5e-3, 0.5, 40.0):
        density = vf.continuous_bernoulli_log_prob(grid, torch.full_like(grid, logit)).exp()
        assert torch.trapezoid(density, dx=1 / 20_000).item() == pytest.approx(1.0, abs=2e-5)


@pytest.mark.parametrize("logit", [0.0, 1e-3, 0.0099, 0.0101, -200.0, 1e4])
def test_continuous_bernoulli_has_finite_gradients(logit):
    logits = torch.full((1, 4), logit, requires_grad=True)
    vf.continuous_bernoulli_log_prob(torch.rand(1, 4), logits).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("mean", [-0.5, 0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("log_scale", [-6.9, -4.0, -1.0, 1.0])
def test_discretized_logistic_masses_sum_to_one(mean, log_scale):
    levels = torch.arange(256.0, dtype=torch.float64)[:, None] / 255
    log_mass = vf.discretized_logistic_log_prob(levels, torch.tensor(mean), torch.tensor(log_scale))
    assert log_mass.exp().sum().item() == pytest.approx(1.0, abs=1e-6)


def test_discretized_logistic_by_the_definition():
    x = torch.tensor([[0.0], [10 / 255], [1.0]], dtype=torch.float64)
    mean, scale, half = 0.2, 0.05, 0.5 / 255

    def cdf(value):
        return 1 / (1 + math.exp(-(value - mean) / scale))

    expected = [cdf(half), cdf(10 / 255 + half) - cdf(10 / 255 - half), 1 - cdf(1 - half)]
    got = vf.discretized_logistic_log_prob(x, torch.tensor(mean).double(), torch.tensor(scale).double().log())
    assert got.exp().tolist() == pytest.approx(expected, rel=1e-6)


def test_discretized_logistic_far_tails_are_finite():
    x = torch.tensor([[0.0, 0.5, 1.0]], requires_grad=False)
    for size in (9e2, 1e5):
        mean = torch.tensor([[size, -size, 0.0]], requires_grad=True)
        value = vf.discretized_logistic_log_prob(x, mean, torch.tensor(-6.9))
        value.sum().backward()
        assert value.isfinite().all()
        assert mean.grad.isfinite().all()


def test_reparameterize_has_the_right_moments_and_generator():
    mu, logvar = torch.full((200_000, 1), 2.0), torch.full((200_000, 1), math.log(0.25))
    z = vf.reparameterize(mu, logvar, generator=torch.Generator().manual_seed(1))
    assert z.mean().item() == pytest.approx(2.0, abs=0.01)
    assert z.std().item() == pytest.approx(0.5, abs=0.01)
    assert torch.equal(z, vf.reparameterize(mu, logvar, generator=torch.Generator().manual_seed(1)))


def test_soft_bound():
    raw = torch.linspace(-1e3, 1e3, 100_001, dtype=torch.float64, requires_grad=True)
    bounded = vf.soft_bound(raw, 20.0)
    assert (bounded.abs() < 20).all()
    inner = raw.abs() <= 10
    assert torch.equal(bounded[inner], raw[inner])
    assert (bounded.diff() > 0).all()
    bounded.sum().backward()
    assert (raw.grad > 0).all()
    assert torch.autograd.gradcheck(
        lambda value: vf.soft_bound(value, 20.0),
        torch.tensor([-35.0, -3.0, 9.9, 10.1, 60.0]).double().requires_grad_(),
    )
    assert torch.exp(vf.soft_bound(torch.tensor([1e30]), 20.0)).isfinite().all()


def test_bits_per_dim():
    nats = torch.tensor([784 * math.log(2)])
    assert vf.bits_per_dim(nats, (1, 28, 28)).item() == pytest.approx(1.0)
    # A uniform density on [0, 1] gives each of the 256 cells [k / 256, (k + 1) / 256) its share: 8 bits.
    assert vf.bits_per_dim(torch.zeros(1), (3, 8, 8), levels=256).item() == pytest.approx(8.0)
    for wrong, error, words in ((1, ValueError, "`levels` must be >= 2, got 1"), (2.5, TypeError, "`levels` must be")):
        with pytest.raises(error, match=words):
            vf.bits_per_dim(nats, (1, 28, 28), levels=wrong)


@pytest.mark.parametrize("levels", [2, 7, 256])
def test_bits_of_dequantised_values_bound_their_code_length(levels):
    """Never below the entropy of the levels; equal to the code's own length where the density is flat in each cell."""
    generator = torch.Generator().manual_seed(0)
    masses = torch.rand(levels, generator=generator, dtype=torch.float64) + 0.1
    masses /= masses.sum()
    k = torch.multinomial(masses, 50_000, replacement=True, generator=generator)
    x = (k + torch.rand(len(k), generator=generator, dtype=torch.float64)) / levels
    flat = -(masses[(x * levels).long()] * levels).log()
    code = -masses[k].log2().mean().item()
    assert vf.bits_per_dim(flat, (1, 1, 1), levels=levels).mean().item() == pytest.approx(code, abs=1e-9)
    entropy = -(masses * masses.log2()).sum().item()
    for a, b in ((1.0, 1.0), (2.0, 3.0), (0.7, 0.7)):
        bits = vf.bits_per_dim(-td.Beta(a, b).log_prob(x), (1, 1, 1), levels=levels)
        assert bits.mean().item() > entropy - 3 * bits.std().item() / math.sqrt(len(k))


@pytest.mark.parametrize("log_prob", [vf.gaussian_log_prob, vf.laplace_log_prob, vf.discretized_logistic_log_prob])
def test_gradients_against_finite_differences(log_prob):
    x = torch.randint(1, 255, (2, 3)).double() / 255
    mean = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    log_scale = (-torch.rand(2, 3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, s: log_prob(x, m, s), (mean, log_scale))
