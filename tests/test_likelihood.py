"""log p(x) by importance sampling, and the bounds of many draws, where the truth is known in closed form."""

import math
import warnings

import pytest
import torch

import vaelib as vl
from vaelib.evaluation import elbo, log_likelihood


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("shift", "stretch"), [(0.0, 1.0), (0.1, 1.0), (0.0, 2.0), (0.1, 1.5)])
def test_the_estimate_is_the_truth_within_its_error(truth_in_range, shift, stretch):
    """exp(estimate) is unbiased: over repetitions, its mean is p(x) within the error of that mean."""
    x = truth_in_range.sample(4).clamp(0, 1)
    vae, exact = truth_in_range.vae(shift, stretch), truth_in_range.log_prob(x)
    estimates = torch.stack(
        [log_likelihood(vae, x, num_samples=200, generator=seeded(i)).per_image for i in range(100)]
    )
    ratios = (estimates - exact).exp()
    error = ratios.std(0) / math.sqrt(len(ratios))
    assert ((ratios.mean(0) - 1).abs() <= 4 * error + 1e-6).all()


def test_it_rises_with_the_number_of_draws_from_the_elbo_to_the_truth(truth_in_range):
    x = truth_in_range.sample(200).clamp(0, 1)
    vae, exact = truth_in_range.vae(shift=0.15, stretch=1.3), truth_in_range.log_prob(x).mean().item()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = [
            log_likelihood(vae, x, num_samples=k, generator=seeded()).log_likelihood.value for k in (1, 5, 50, 2000)
        ]
    assert values == sorted(values)
    assert values[0] == pytest.approx(elbo(vae, x, generator=seeded(1)).elbo.value, abs=0.5)
    assert values[-1] == pytest.approx(exact, abs=0.05)
    assert values[-1] < exact + 0.02


def test_one_draw_is_the_elbo_of_that_draw(truth_in_range):
    x = truth_in_range.sample(10).clamp(0, 1)
    with pytest.warns(UserWarning, match="`num_samples` 1 is too small"):
        result = log_likelihood(truth_in_range.vae(0.2), x, num_samples=1)
    assert result.log_likelihood.value == pytest.approx(result.elbo.value)
    assert result.effective_samples == 1.0


@pytest.mark.parametrize(("num_samples", "batch_size"), [(7, 3), (7, 7), (10, 64), (3, 1)])
def test_exactly_so_many_draws_whatever_the_budget(truth_in_range, monkeypatch, num_samples, batch_size):
    x = truth_in_range.sample(5).clamp(0, 1)
    vae = truth_in_range.vae(0.2)
    decoded, most = 0, 0
    original = vae.decode

    def decode(z):
        nonlocal decoded, most
        decoded, most = decoded + len(z), max(most, len(z))
        return original(z)

    monkeypatch.setattr(vae, "decode", decode)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = log_likelihood(vae, x, num_samples=num_samples, batch_size=batch_size)
    assert decoded == num_samples * 5
    assert most <= max(batch_size, 1)
    assert (result.num_samples, result.num_images) == (num_samples, 5)
    assert result.per_image.shape == (5,)


def test_effective_draws_and_the_warning(truth_in_range):
    x = truth_in_range.sample(10).clamp(0, 1)
    exact = log_likelihood(truth_in_range.vae(), x, num_samples=100)
    assert exact.effective_samples == pytest.approx(100, rel=1e-3)
    with pytest.warns(UserWarning, match="`num_samples` 20 is too small: half of the images have fewer than"):
        off = log_likelihood(truth_in_range.vae(shift=2.0), x, num_samples=20)
    assert off.effective_samples < 10


def test_bits_and_errors(truth_in_range):
    x = truth_in_range.sample(50).clamp(0, 1)
    result = log_likelihood(truth_in_range.vae(), x, num_samples=20)
    assert result.log_likelihood.standard_error == pytest.approx(
        result.per_image.std().item() / math.sqrt(50), rel=1e-5
    )
    bits = -result.log_likelihood.value / (12 * math.log(2)) + math.log2(255)  # a density of 8-bit data
    assert result.bits_per_dim.value == pytest.approx(bits, rel=1e-5)


def test_mode_and_order_are_kept():
    vae = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,), likelihood=vl.Gaussian(0.5)).train()
    x = torch.linspace(0.5, 1, 9).view(9, 1, 1, 1).expand(9, 1, 8, 8)
    x = x[torch.randperm(9, generator=seeded())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = log_likelihood(vae, x, num_samples=2000, generator=seeded()).per_image
        parts = log_likelihood(vae, [x[:4], x[4:]], num_samples=2000, batch_size=100, generator=seeded()).per_image
    assert vae.training
    assert whole.sort().values.diff().min() > 2.0
    torch.testing.assert_close(whole, parts, rtol=0, atol=1.0)


def test_wrong_arguments():
    vae = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,))
    with pytest.raises(TypeError, match="`model` must be a VAE"):
        log_likelihood(torch.nn.Identity(), torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="at least one image"):
        log_likelihood(vae, [])
    with pytest.raises(ValueError, match="`num_samples` must be >= 1"):
        log_likelihood(vae, torch.rand(2, 1, 8, 8), num_samples=0)
    with pytest.raises(ValueError, match="`batch_size` must be >= 1"):
        log_likelihood(vae, torch.rand(2, 1, 8, 8), batch_size=0)


def test_the_bound_of_equal_weights_is_their_logarithm():
    torch.testing.assert_close(vl.iwae_bound(torch.full((50, 3), -84.0)), torch.full((3,), -84.0))
    weights = torch.tensor([[0.2], [0.6]]).log()
    assert vl.iwae_bound(weights).item() == pytest.approx(math.log(0.4))


@pytest.mark.parametrize("gradient", ["plain", "stl", "dreg"])
def test_iwae_is_a_bound_that_rises(truth, gradient):
    """Below log p(x), above the ELBO, whichever gradient: it is the value that pythae overstates."""
    x = truth.sample(4).repeat(500, 1, 1, 1)
    vae, exact = truth.vae(shift=0.5, stretch=1.3), truth.log_prob(x).mean().item()
    values = [-vl.Iwae(k, gradient=gradient)(vae, x).loss.item() for k in (1, 4, 16)]
    assert values == sorted(values)
    assert values[-1] < exact
    assert values[0] == pytest.approx(-vl.Elbo()(vae, x).loss.item(), abs=0.3)


def test_groups_are_averaged_and_mixtures_lie_between(truth):
    x = truth.sample(4).repeat(500, 1, 1, 1)
    vae = truth.vae(shift=0.5, stretch=1.3)

    def bound(objective):
        return -objective(vae, x).loss.item()

    assert bound(vl.Iwae(4, num_groups=4)) == pytest.approx(bound(vl.Iwae(4)), abs=0.1)
    assert bound(vl.Elbo()) < bound(vl.Iwae(16, elbo_weight=0.5)) < bound(vl.Iwae(16))


@pytest.mark.parametrize("gradient", ["stl", "dreg"])
def test_gradients_of_the_encoder_agree_in_the_mean(gradient):
    """With the plain one, within the error of that mean: DReG for any K, STL for one draw."""
    num_samples = 1 if gradient == "stl" else 4
    vae = vl.conv_vae((1, 6, 6), 2, hidden_channels=(3,), norm="none").double()
    x = torch.rand(1, 1, 6, 6, dtype=torch.float64).expand(500, 1, 6, 6)
    weight = vae.encoder.head[1].weight

    def gradients(kind):
        objective, found = vl.Iwae(num_samples, gradient=kind), []
        for _ in range(100):
            vae.zero_grad()
            objective(vae, x).loss.backward()
            found.append(weight.grad.flatten().clone())
        return torch.stack(found)

    plain, other = gradients("plain"), gradients(gradient)
    error = ((plain.var(0) + other.var(0)) / 100).sqrt()
    assert ((plain.mean(0) - other.mean(0)).abs() <= 4.5 * error).all()
    assert plain.mean(0).abs().max() > 8 * error.max()


def test_gradients_of_the_decoder_are_those_of_the_bound():
    """Whatever is done to the encoder's."""
    vae = vl.conv_vae((1, 6, 6), 2, hidden_channels=(3,), norm="none").double()
    x = torch.rand(3, 1, 6, 6, dtype=torch.float64)
    found = []
    for kind in ("plain", "stl", "dreg"):
        vae.zero_grad()
        vl.Iwae(5, gradient=kind)(vae, x, generator=seeded()).loss.backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in vae.decoder.parameters()]))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


@pytest.mark.parametrize("gradient", ["stl", "dreg"])
def test_at_the_exact_posterior_these_gradients_vanish(truth, gradient):
    """Where the plain one is noise: what makes them stick the landing."""
    vae = truth.vae()
    x = truth.sample(5)
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    exact = vae.encoder

    class Shifted(torch.nn.Module):
        def forward(self, x):
            mu, logvar = exact(x)
            return mu + shift, logvar

    vae.encoder = Shifted()
    vl.Iwae(8, gradient=gradient)(vae, x).loss.backward()
    assert shift.grad.abs().item() < 1e-6
    shift.grad = None
    vl.Iwae(8)(vae, x).loss.backward()
    assert shift.grad.abs().item() > 1e-3


def test_iwae_takes_its_arguments():
    for arguments, words in (
        ({"num_samples": 0}, "`num_samples` must be >= 1"),
        ({"num_samples": 2, "num_groups": 0}, "`num_groups` must be >= 1"),
        ({"num_samples": 2, "elbo_weight": 1.5}, "`elbo_weight` must be"),
        ({"num_samples": 2, "gradient": "best"}, "`gradient` must be"),
        ({"num_samples": 2, "gradient": "dreg", "elbo_weight": 0.5}, "`elbo_weight` must be 0"),
    ):
        with pytest.raises(ValueError, match=words):
            vl.Iwae(**arguments)
