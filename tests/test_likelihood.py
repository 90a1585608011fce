"""log p(x) by importance sampling, and the bounds of many draws, where the truth is known in closed form."""

import math
import warnings

import pytest
import torch
from runs import seeded

import vaelib as vl
from vaelib.evaluation import compare, elbo, log_likelihood
from vaelib.evaluation.likelihood import _jackknife


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
    assert result.effective_quantiles == pytest.approx((1.0, 1.0, 1.0))
    assert (result.monte_carlo_error, result.bias) == (math.inf, -math.inf)  # one draw knows nothing of others


@pytest.mark.parametrize(("num_samples", "batch_size"), [(7, 3), (7, 7), (10, 64), (3, 1)])
def test_exactly_so_many_draws_whatever_the_budget(truth_in_range, monkeypatch, num_samples, batch_size):
    x = truth_in_range.sample(5).clamp(0, 1)
    vae = truth_in_range.vae(0.2)
    decoded, most = 0, 0
    original = vae.decode_hidden

    def decode(hidden):
        nonlocal decoded, most
        decoded, most = decoded + len(hidden), max(most, len(hidden))
        return original(hidden)

    monkeypatch.setattr(vae, "decode_hidden", decode)
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
    assert exact.effective_quantiles == pytest.approx((100, 100, 100), rel=1e-3)
    assert exact.monte_carlo_error == pytest.approx(0, abs=1e-3)
    with pytest.warns(UserWarning, match="`num_samples` 20 is too small: half of the images have fewer than"):
        off = log_likelihood(truth_in_range.vae(shift=2.0), x, num_samples=20)
    low, median, high = off.effective_quantiles
    assert 1 <= low < median < high < 20
    assert median == off.effective_samples < 10


def test_half_a_nat_too_low_is_not_said_without_a_warning(truth_in_range):
    """12 effective draws of 1,000 of a posterior that is too narrow: the old threshold, 10, was passed in silence."""
    x = truth_in_range.sample(200).clamp(0, 1)
    with pytest.warns(UserWarning, match=r"effective draws \(want 50\), 5% fewer than .* so log p\(x\) is under"):
        found = log_likelihood(truth_in_range.vae(stretch=0.17), x, num_samples=1000, batch_size=20_000)
    assert 10 < found.effective_samples < 25
    assert found.log_likelihood.value < truth_in_range.log_prob(x).mean().item() - 0.4


def test_a_tenth_of_the_images_with_few_draws_is_enough_for_a_warning(truth_in_range):
    """A median says nothing about them, and their bias is in the mean."""
    x = truth_in_range.sample(50).clamp(0, 1)
    vae = truth_in_range.vae()
    exact, hard = vae.encoder, x[:5].flatten(1)

    class OffForSome(torch.nn.Module):
        def forward(self, x):
            mu, logvar = exact(x)
            is_hard = (x.flatten(1)[:, None] == hard).all(2).any(1, keepdim=True)
            return mu + 0.7 * is_hard, logvar

    vae.encoder = OffForSome()
    with pytest.warns(UserWarning, match=r"5% fewer than [1-9]\.\d \(want 10\), so log p\(x\) is underestimated"):
        found = log_likelihood(vae, x, num_samples=200, batch_size=10_000)
    assert found.effective_samples == pytest.approx(200)
    assert found.log_likelihood.value < truth_in_range.log_prob(x).mean().item() - 0.1


@pytest.mark.parametrize(("shift", "stretch"), [(0.2, 1.0), (0.0, 0.7), (0.1, 1.5)])
def test_the_monte_carlo_error_is_what_other_draws_change(truth_in_range, shift, stretch):
    x = truth_in_range.sample(50).clamp(0, 1)
    vae, exact = truth_in_range.vae(shift, stretch), truth_in_range.log_prob(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [log_likelihood(vae, x, num_samples=200, batch_size=10_000, generator=seeded(i)) for i in range(40)]
    values = torch.stack([one.per_image for one in found])
    reported = torch.stack([one.per_image_error for one in found]).square().mean(0).sqrt()
    assert (reported / values.std(0)).median().item() == pytest.approx(1, abs=0.12)
    assert ((values - exact).abs() <= 2 * torch.stack([one.per_image_error for one in found])).double().mean() > 0.9
    means = values.mean(1)  # over the same images
    assert found[0].monte_carlo_error == pytest.approx(means.std().item(), rel=0.35)
    assert found[0].log_likelihood.standard_error > 5 * found[0].monte_carlo_error  # images differ more than draws


def test_the_bias_is_what_more_draws_would_change(truth_in_range):
    x = truth_in_range.sample(2000).clamp(0, 1)
    vae = truth_in_range.vae(shift=0.15)
    with pytest.warns(UserWarning, match="`num_samples` 40 is too small"):
        found = log_likelihood(vae, x, num_samples=40, batch_size=80_000, generator=seeded(1))
    off = found.log_likelihood.value - truth_in_range.log_prob(x).mean().item()
    assert off < -2 * found.monte_carlo_error  # it can be seen
    assert found.bias == pytest.approx(off, abs=3 * found.monte_carlo_error)
    assert found.bias < -found.monte_carlo_error


@pytest.mark.parametrize("largest", [0.0, 30.0, 800.0])
def test_the_jackknife_is_that_of_leaving_each_draw_out(largest):
    """Also where one weight is all there is, and 1 less its share is rounded to 0."""
    log_weights = torch.randn(12, 3, dtype=torch.float64)
    log_weights[5] += largest
    errors, biases = _jackknife(log_weights)
    left = torch.stack([log_weights[torch.arange(12) != k].logsumexp(0) - math.log(11) for k in range(12)])
    whole = log_weights.logsumexp(0) - math.log(12)
    torch.testing.assert_close(errors, (11 / 12 * (left - left.mean(0)).square().sum(0)).sqrt())
    torch.testing.assert_close(biases, 11 * (left.mean(0) - whole))


@pytest.mark.table
def test_the_table_of_effective_draws(truth_of):
    """Prints what docs/howto/likelihood.md shows, and holds the threshold of the warning to it."""
    settings = [(shift, 1.0) for shift in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]
    settings += [(0.0, stretch) for stretch in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)]
    settings += [(shift, 0.7) for shift in (0.1, 0.2, 0.3, 0.4)]
    rows = []
    for copies in (1, 4, 8):
        truth = truth_of(copies)
        for shift, stretch in settings:
            x = truth.sample(100).clamp(0, 1)
            for num_samples in (100, 1000):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = log_likelihood(
                        truth.vae(shift / copies**0.5, stretch ** (copies**-0.5)),
                        x,
                        num_samples=num_samples,
                        batch_size=20_000,
                        generator=seeded(),
                        progress=False,
                    )
                off = found.per_image - truth.log_prob(x)
                rows.append((found.effective_samples, off, found.per_image_error, found.bias))
    names = "effective draws, median", "settings", "bias, mean", "worst", "reported", "error", "reported", "+-2 cover"
    print(f"\n| {' | '.join(names)} |\n|{' --- |' * len(names)}")
    for low, high in ((1, 5), (5, 10), (10, 20), (20, 50), (50, 100), (100, 1001)):
        those = [row for row in rows if low <= row[0] < high]
        bias = torch.stack([off.mean() for _, off, _, _ in those])
        spread = torch.stack([off.std() for _, off, _, _ in those]).mean()
        reported = torch.stack([errors.square().mean().sqrt() for _, _, errors, _ in those]).mean()
        covered = torch.cat([(off.abs() <= 2 * errors).double() for _, off, errors, _ in those]).mean()
        of_bias = sum(row[3] for row in those) / len(those)
        print(
            f"| {low} to {high} | {len(those)} | {bias.mean():.2f} | {bias.min():.2f} | {of_bias:.2f} | {spread:.2f}"
            f" | {reported:.2f} | {covered:.0%} |"
        )
        if low >= 50:
            assert bias.min() > -0.1
            assert bias.mean() > -0.05
            assert covered > 0.85
        if high <= 20:
            assert bias.mean() < -0.1


def test_bits_and_errors(truth_in_range):
    x = truth_in_range.sample(50).clamp(0, 1)
    result = log_likelihood(truth_in_range.vae(), x, num_samples=60)
    assert result.log_likelihood.standard_error == pytest.approx(
        result.per_image.std().item() / math.sqrt(50), rel=1e-5
    )
    bits = -result.log_likelihood.value / (12 * math.log(2)) + 8  # a density of dequantised 8-bit data
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


def test_no_draws():
    with pytest.raises(ValueError, match="`num_samples` must be >= 1"):
        log_likelihood(vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,)), torch.rand(2, 1, 8, 8), num_samples=0)


def test_two_models_are_compared_image_by_image(truth_in_range):
    """The paired error is that of the differences; the truth is known, and far within the error of either mean."""
    x = truth_in_range.sample(300).clamp(0, 1)
    better, worse = truth_in_range.vae(), truth_in_range.vae()
    worse.likelihood = vl.Gaussian(truth_in_range.sigma * 1.15).double()
    covariance = truth_in_range.weight @ truth_in_range.weight.T
    covariance += (truth_in_range.sigma * 1.15) ** 2 * torch.eye(12, dtype=torch.float64)
    other = torch.distributions.MultivariateNormal(truth_in_range.bias, covariance).log_prob(x.flatten(1))
    exact = truth_in_range.log_prob(x) - other
    found = compare(better, worse, x, num_samples=200, batch_size=10_000, generator=seeded(), progress=False)
    assert (found.num_samples, found.num_images) == (200, 300)
    assert found.difference.value == pytest.approx(exact.mean().item(), abs=4 * found.monte_carlo_error)
    assert found.difference.standard_error == pytest.approx(exact.std().item() / math.sqrt(300), rel=0.1)
    torch.testing.assert_close(found.per_image, exact, rtol=0, atol=0.3)
    unpaired = math.hypot(found.first.standard_error, found.second.standard_error)
    assert found.difference.standard_error < unpaired / 3
    alone = log_likelihood(better, x, num_samples=100, batch_size=10_000, generator=seeded(), progress=False)
    assert found.first.value == pytest.approx(alone.log_likelihood.value, abs=0.05)
    bounds = compare(better, worse, x, generator=seeded(1), progress=False)  # seed 0 has drawn the images
    assert (bounds.num_samples, bounds.monte_carlo_error) == (None, None)
    assert bounds.first.value == pytest.approx(truth_in_range.log_prob(x).mean().item(), abs=0.3)  # exact posterior


def test_both_models_see_the_same_binarised_and_shuffled_images(monkeypatch):
    first, second = (vl.conv_vae((1, 6, 6), 2, hidden_channels=(3,)) for _ in range(2))
    seen = []
    for model in (first, second):
        monkeypatch.setattr(model, "observe", lambda x, was=model.observe, m=model: (seen.append((m, x)), was(x))[1])
    images = torch.rand(12, 1, 6, 6)
    loader = torch.utils.data.DataLoader(images, batch_size=5, shuffle=True)
    for data in (vl.data.ImageDataset(images, dynamic=True), loader, iter(list(images.split(5)))):
        seen.clear()
        found = compare(first, second, data, num_samples=100, batch_size=500, progress=False)
        assert found.num_images == 12
        sides = [torch.cat([x for model, x in seen if model is which]) for which in (first, second)]
        torch.testing.assert_close(*sides, rtol=0, atol=0)
    with pytest.warns(UserWarning, match="`num_samples` 2 is too small") as caught:
        assert compare(first, second, images.round(), num_samples=2, progress=False).note == ""
    for name, warning in zip(("first", "second"), caught, strict=True):
        assert f"log p(x) of `{name}` is underestimated" in str(warning.message)


def test_what_cannot_be_compared():
    vae = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,))
    x = torch.rand(2, 1, 8, 8)
    for wrong, error, words in (
        (torch.nn.Identity(), TypeError, "`second` must be a VAE, got Identity"),
        (
            vl.conv_vae((1, 8, 6), 2),
            ValueError,
            r"`second` must have the image shape of `first`, \(1, 8, 8\), got \(1, 8, 6",
        ),
        (
            vl.conv_vae((1, 8, 8), 2, likelihood=vl.Gaussian(0.5)),
            ValueError,
            "`first` and `second` must both.*Bernoulli and Ga",
        ),
    ):
        with pytest.raises(error, match=words):
            compare(vae, wrong, x)
    with pytest.raises(ValueError, match="`num_samples` must be >= 1, got 0"):
        compare(vae, vae, x, num_samples=0)


def test_the_bound_of_equal_weights_is_their_logarithm():
    torch.testing.assert_close(vl.iwae_bound(torch.full((50, 3), -84.0)), torch.full((3,), -84.0))
    weights = torch.tensor([[0.2], [0.6]]).log()
    assert vl.iwae_bound(weights).item() == pytest.approx(math.log(0.4))


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


def encoder_gradients(truth, num_samples, shift, stretch, repetitions=4, images=400):
    """Mean gradients of shift and log variance, (plain, stl, dreg), and the errors of these means."""
    vae = truth.vae(0.0, stretch)
    exact, offset = vae.encoder, torch.zeros(2, dtype=torch.float64, requires_grad=True)

    class Off(torch.nn.Module):
        def forward(self, x):
            mu, logvar = exact(x)
            return mu + shift + offset[0], logvar + offset[1]

    vae.encoder = Off()
    means, errors = [], []
    for kind in ("plain", "stl", "dreg"):
        found = []
        for seed in range(repetitions):
            torch.manual_seed(seed)
            loss = vl.Iwae(num_samples, gradient=kind)(vae, truth.sample(images)).loss
            found.append(torch.autograd.grad(loss, offset)[0])
        means.append(torch.stack(found).mean(0))
        errors.append(torch.stack(found).std(0) / repetitions**0.5)
    return means, errors


def test_stl_of_many_draws_is_another_gradient(truth):
    """With K = 50 more than ten times the bound's, which DReG has; with one draw the same."""
    (plain, stl, dreg), (of_plain, _, of_dreg) = encoder_gradients(truth, 50, 0.1, 1.3)
    assert (stl / dreg > 20).all()
    assert ((plain - dreg).abs() < 5 * (of_plain + of_dreg)).all()
    (_, stl, dreg), _ = encoder_gradients(truth, 1, 0.1, 1.3)
    torch.testing.assert_close(stl, dreg)


@pytest.mark.table
def test_the_table_of_stl(truth):
    """Prints what the docstring of Iwae says."""
    print(
        "\n| K | shift | variance | STL / DReG, of the shift | of the log variance |\n| --- | --- | --- | --- | --- |"
    )
    for num_samples in (1, 2, 5, 10, 50, 200):
        for shift, stretch in ((0.1, 1.0), (0.3, 1.0), (0.0, 0.7), (0.1, 1.3)):
            (_, stl, dreg), _ = encoder_gradients(truth, num_samples, shift, stretch, images=2000)
            of_shift, of_variance = (stl / dreg).tolist()
            if shift == 0.0:
                of_shift = math.nan  # both are 0
            if num_samples == 1 and stretch == 1.0:
                of_variance = math.nan
            print(f"| {num_samples} | {shift} | {stretch} | {of_shift:.1f} | {of_variance:.1f} |")
            for ratio in (of_shift, of_variance):
                assert math.isnan(ratio) or 0.9 < ratio < 1.3 * num_samples


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
