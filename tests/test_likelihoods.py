import math

import pytest
import torch
from torch import distributions as td

import vaelib as vl

EVERY = [
    vl.Bernoulli(),
    vl.ContinuousBernoulli(),
    vl.Gaussian(0.6),
    vl.Gaussian("learned"),
    vl.Gaussian("per_pixel"),
    vl.Gaussian("optimal"),
    vl.Laplace(0.2),
    vl.Laplace("learned"),
    vl.Laplace("per_pixel"),
    vl.Laplace("optimal"),
    vl.DiscretizedLogistic(0.05),
    vl.DiscretizedLogistic("learned"),
    vl.DiscretizedLogistic("per_pixel"),
]


@pytest.fixture(params=EVERY, ids=str)
def likelihood(request):
    return request.param.eval()


def params(likelihood, batch=4, channels=3):
    return torch.randn(batch, likelihood.param_channels(channels), 6, 5)


def test_follows_the_protocol(likelihood):
    assert isinstance(likelihood, vl.Likelihood)
    x = torch.randint(0, 2, (4, 3, 6, 5)).float()
    raw = params(likelihood).requires_grad_()
    log_prob = likelihood.log_prob(x, raw)
    assert log_prob.shape == (4,)
    log_prob.sum().backward()
    assert raw.grad.isfinite().all()
    assert likelihood.mean(raw).shape == x.shape
    assert likelihood.sample(raw).shape == x.shape


def test_the_mean_is_the_mean_of_samples(likelihood):
    raw = params(likelihood, batch=1, channels=1)
    many = raw.expand(20_000, -1, -1, -1)
    drawn = likelihood.sample(many, generator=torch.Generator().manual_seed(3))
    error = 5 * drawn.std(0) / math.sqrt(len(drawn)) + 1e-3  # 1e-3: half an 8-bit level is rounded away
    assert ((drawn.mean(0) - likelihood.mean(raw)[0]).abs() <= error).all()


def test_samples_are_reproducible_and_in_the_support(likelihood):
    raw = params(likelihood)
    first, second = (likelihood.sample(raw, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    if isinstance(likelihood, vl.Bernoulli):
        assert set(first.unique().tolist()) <= {0.0, 1.0}
    if isinstance(likelihood, vl.ContinuousBernoulli | vl.DiscretizedLogistic):
        assert first.min() >= 0
        assert first.max() <= 1
    if isinstance(likelihood, vl.DiscretizedLogistic):
        torch.testing.assert_close(first * 255, (first * 255).round())


def test_recon_params_of_another_shape_are_refused(likelihood):
    wanted = likelihood.param_channels(3)
    with pytest.raises(ValueError, match=rf"`recon_params` must have shape \(4, {wanted}, 6, 5\), got \(4, 7, 6, 5\)"):
        likelihood.log_prob(torch.rand(4, 3, 6, 5), torch.zeros(4, 7, 6, 5))


@pytest.mark.parametrize("likelihood", [vl.Bernoulli(), vl.ContinuousBernoulli(), vl.DiscretizedLogistic(0.1)], ids=str)
@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_values_outside_the_support_are_refused(likelihood, bad):
    with pytest.raises(ValueError, match=r"`x` must have values in \[0, 1\]"):
        likelihood.log_prob(torch.full((1, 1, 2, 2), bad), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_discretized_logistic_takes_8_bit_levels_up_to_rounding_and_nothing_else(dtype):
    logistic = vl.DiscretizedLogistic(0.1).to(dtype)
    levels = torch.arange(256).view(1, 1, 16, 16)
    location = torch.full((1, 1, 16, 16), 0.5, dtype=dtype)
    for same in (levels / 255, levels.double() / 255, levels.float() * (1 / 255)):
        assert logistic.log_prob(same.to(dtype), location).isfinite().all()
    if dtype == torch.float16:  # whose own rounding is an eighth of a level
        return
    resized = torch.nn.functional.interpolate(levels.to(dtype) / 255, size=(16, 16), mode="bilinear") * 0.999
    for other in ((levels + 0.5) / 256, levels / 256, (levels / 255) * 0.5, resized, torch.rand(1, 1, 16, 16)):
        with pytest.raises(
            ValueError, match=r"`x` must have the values k / 255 .*DiscretizedLogistic, got 0\.\d+, which"
        ):
            logistic.log_prob(other.to(dtype), location)


def test_gaussian_sigma_is_the_sigma():
    x, mean = torch.rand(3, 1, 4, 4), torch.rand(3, 1, 4, 4)
    expected = td.Normal(mean, 0.6).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(vl.Gaussian(0.6).log_prob(x, mean), expected)
    scales = torch.rand(3, 1, 4, 4) + 0.1
    per_pixel = vl.Gaussian("per_pixel").log_prob(x, torch.cat([mean, scales.log()], dim=1))
    torch.testing.assert_close(per_pixel, td.Normal(mean, scales).log_prob(x).flatten(1).sum(1))


@pytest.mark.parametrize("make", [vl.Gaussian, vl.Laplace])
def test_optimal_scale_is_the_best_for_the_batch(make):
    x, mean = torch.rand(8, 1, 4, 4), torch.rand(8, 1, 4, 4)
    optimal = make("optimal").train()
    error = (x - mean).square().mean().sqrt() if make is vl.Gaussian else (x - mean).abs().mean()
    best = optimal.log_prob(x, mean).sum()
    torch.testing.assert_close(best, make(error.item()).log_prob(x, mean).sum(), rtol=1e-5, atol=1e-3)
    for factor in (0.9, 1.1):
        assert make(factor * error.item()).log_prob(x, mean).sum() < best


def test_optimal_scale_in_eval_mode_does_not_mix_images():
    optimal = vl.Gaussian("optimal").train()
    for _ in range(200):
        optimal.log_prob(torch.zeros(4, 1, 2, 2), torch.full((4, 1, 2, 2), 0.25))
    assert optimal.log_scale.exp().item() == pytest.approx(0.25, rel=1e-3)
    optimal.eval()
    x, mean = torch.rand(6, 1, 2, 2), torch.rand(6, 1, 2, 2)
    both = optimal.log_prob(x, mean)
    torch.testing.assert_close(both, torch.cat([optimal.log_prob(x[:2], mean[:2]), optimal.log_prob(x[2:], mean[2:])]))


@pytest.mark.parametrize("likelihood", [vl.Gaussian("optimal"), vl.Laplace("optimal")], ids=str)
def test_an_exact_fit_has_finite_gradients(likelihood):
    x = torch.rand(2, 1, 4, 4)
    mean = x.clone().requires_grad_()
    likelihood.train().log_prob(x, mean).sum().backward()
    assert mean.grad.isfinite().all()


def test_learned_scale_is_one_parameter():
    likelihood = vl.Gaussian("learned")
    assert [p.numel() for p in likelihood.parameters()] == [1]
    assert list(vl.Gaussian(0.5).state_dict()) == []


def test_densities_and_probabilities_know_what_they_are():
    assert [type(li).__name__ for li in EVERY if not li.is_density] == ["Bernoulli"] + ["DiscretizedLogistic"] * 3


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: vl.Gaussian("best"), "`sigma` must be one of 'learned', 'per_pixel', 'optimal', got 'best'"),
        (lambda: vl.Gaussian(0.0), "`sigma` must be > 0, got 0"),
        (lambda: vl.Laplace(-1.0), "`scale` must be > 0, got -1"),
        (lambda: vl.DiscretizedLogistic("optimal"), "`scale` must be one of 'per_pixel', 'learned'"),
    ],
)
def test_wrong_scales(make, match):
    with pytest.raises(ValueError, match=match):
        make()
