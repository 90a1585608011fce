"""Scores of strangeness against what they are made of, and the AUROC by hand."""

import math

import pytest
import torch
from runs import seeded

import vaelib as vl
from vaelib.evaluation import Estimate, anomaly, anomaly_scores, auroc


@pytest.fixture
def vae():
    return vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,))


def test_auroc_by_hand_with_ties():
    """Of 12 pairs, 8 are won and 2 tied: 9 of 12. DeLong's variance from the shares of each score."""
    normal, anomalous = torch.tensor([1.0, 2.0, 2.0, 4.0]), torch.tensor([2.0, 3.0, 5.0])
    above = torch.tensor([(1 + 0.5 + 0.5) / 4, 3 / 4, 4 / 4])  # of each anomalous score
    below = torch.tensor([3 / 3, 2.5 / 3, 2.5 / 3, 1 / 3])  # of each normal one
    found = auroc(normal, anomalous)
    assert found.value == pytest.approx(9 / 12)
    assert found.value == pytest.approx(above.mean().item()) == pytest.approx(below.mean().item())
    assert found.standard_error == pytest.approx(math.sqrt(above.var().item() / 3 + below.var().item() / 4))


def test_auroc_of_what_is_apart_the_same_or_turned_round():
    low, high = torch.arange(5), torch.arange(5) + 10.0
    assert auroc(low, high) == (1.0, 0.0)
    assert auroc(high, low) == (0.0, 0.0)
    assert auroc(torch.zeros(4), torch.zeros(3)) == (0.5, 0.0)
    x, y = torch.randn(30, generator=seeded()), torch.randn(40, generator=seeded(1)) + 0.5
    assert auroc(x, y).value == pytest.approx(1 - auroc(y, x).value)
    assert auroc(x.exp(), y.exp()) == pytest.approx(auroc(x, y))


def test_auroc_of_gaussians_is_unbiased_with_an_error_that_is_its_spread():
    """P(y > x) for unit Gaussians one apart is Phi(1 / sqrt 2) = 0.7602."""
    draws = [torch.randn(80, generator=seeded(i)) for i in range(400)]
    found = [auroc(draw[:50], draw[50:] + 1.0) for draw in draws]
    values = torch.tensor([estimate.value for estimate in found])
    truth = 0.5 * (1 + math.erf(0.5))
    assert values.mean().item() == pytest.approx(truth, abs=4 * values.std().item() / 20)
    errors = torch.tensor([estimate.standard_error for estimate in found])
    assert errors.mean().item() == pytest.approx(values.std().item(), rel=0.1)


def test_scores_are_the_terms_of_the_elbo(vae):
    x = torch.rand(10, 1, 8, 8)
    scores = anomaly_scores(vae.train(), x, generator=seeded())
    assert vae.training
    with torch.no_grad():
        terms = vl.Elbo()(vae.eval(), x, generator=seeded())
    torch.testing.assert_close(scores.reconstruction, terms.reconstruction)
    torch.testing.assert_close(scores.negative_elbo, terms.reconstruction + terms.kl)
    assert scores.likelihood_ratio is None


def test_scores_are_exact_where_the_posterior_is(truth_in_range):
    """On the linear-Gaussian model -ELBO is -log p(x) in the mean; the ratio to another is that of the densities."""
    x = truth_in_range.sample(6).clamp(0, 1)
    background = type(truth_in_range)(scale=0.05, middle=0.5)
    scores = anomaly_scores(truth_in_range.vae(), x.repeat(4000, 1, 1, 1), background=background.vae())
    log_p, log_p_background = truth_in_range.log_prob(x), background.log_prob(x)
    for found, truth in ((scores.negative_elbo, -log_p), (scores.likelihood_ratio, log_p_background - log_p)):
        error = found.view(4000, 6).std(0) / math.sqrt(4000)
        assert ((found.view(4000, 6).mean(0) - truth).abs() < 4 * error).all()


def test_tensors_sets_and_loaders_give_the_same(vae):
    x = torch.rand(10, 1, 8, 8)
    background = vl.conv_vae((1, 8, 8), 3, hidden_channels=(4,))
    once = iter([x])  # a loader can be passed over but once, for both models
    whole, *others = (
        anomaly_scores(vae, data, background=background, generator=seeded())
        for data in (x, vl.data.ImageDataset(x), once)
    )
    for other in others:
        torch.testing.assert_close(other.likelihood_ratio, whole.likelihood_ratio)
    assert anomaly_scores(vae, x, batch_size=3).negative_elbo.shape == (10,)


def test_a_dynamic_set_shows_both_models_the_same_draw(vae):
    data = vl.data.ImageDataset(torch.full((20, 1, 8, 8), 0.5), dynamic=True)
    blind = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,))
    for model in (vae, blind):  # a decoder that says 3/4 whatever it is given, so that only the pixels count
        final = list(model.decoder.parameters())
        for parameter in final:
            torch.nn.init.zeros_(parameter)
        final[-1].data.fill_(math.log(3))
        for parameter in model.encoder.parameters():
            torch.nn.init.zeros_(parameter)
    scores = anomaly_scores(vae, data, background=blind)
    assert scores.negative_elbo.std() > 1
    torch.testing.assert_close(scores.likelihood_ratio, torch.zeros(20))


def test_the_report_is_the_auroc_of_the_scores(truth_in_range):
    normal, anomalous = truth_in_range.sample(200).clamp(0, 1), torch.rand(100, *truth_in_range.image_shape).double()
    report = anomaly(truth_in_range.vae(), normal, anomalous, background=truth_in_range.vae(shift=0.5))
    assert report.negative_elbo == (1.0, 0.0)  # noise lies far from the model's plane
    assert isinstance(report.likelihood_ratio, Estimate)
    assert (report.num_normal, report.num_anomalous) == (200, 100)
    same = anomaly(truth_in_range.vae(), normal[:100], normal[100:])
    assert same.negative_elbo.value == pytest.approx(0.5, abs=4 * same.negative_elbo.standard_error)
    assert same.likelihood_ratio is None


def test_the_report_takes_sets_and_loaders(vae):
    x = torch.rand(12, 1, 8, 8)
    sets = [vl.data.ImageDataset(part) for part in (x[:6], x[6:])]
    loaders = [torch.utils.data.DataLoader(part, 6) for part in (x[:6], x[6:])]
    expected, *others = (
        anomaly(vae.eval(), *pair, generator=torch.Generator().manual_seed(0))
        for pair in ((x[:6], x[6:]), sets, loaders)
    )
    assert others == [expected, expected]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda vae, x, y: anomaly_scores(vae, x, background=vl.AutoEncoder(vae.encoder, vae.decoder)),
            TypeError,
            "`background` must be a VAE, got AutoEncoder",
        ),
        (lambda vae, x, y: auroc(y, y[:, None]), ValueError, r"`anomalous` must have shape \(N\)"),
        (lambda vae, x, y: auroc(y.log().log(), y), ValueError, "`normal` must be finite"),
        (lambda vae, x, y: auroc(y[:1], y), ValueError, "`normal` must hold at least 2 scores, got 1"),
    ],
)
def test_wrong_arguments(vae, call, error, match):
    x = torch.rand(2, 1, 8, 8)
    scores = torch.rand(3)
    with pytest.raises(error, match=match):
        call(vae, x, scores)
