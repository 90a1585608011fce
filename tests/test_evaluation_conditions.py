"""Evaluation of models with a condition, and of codes."""

import math
from functools import partial

import pytest
import torch
from torch import nn, rand, tensor

import vaelib as vl
from vaelib import evaluation

SHAPE = (1, 8, 8)


def labelled(images, labels):
    return vl.data.ImageDataset(images, condition=torch.as_tensor(labels))


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return vl.conv_vae(SHAPE, 2, hidden_channels=(4,), condition=vl.Labels(3, dropout=0.1)).eval()


class Blind(nn.Module):
    """Every posterior is the prior."""

    takes_condition = True

    def forward(self, x, embedding):
        return x.new_zeros(len(x), 2), x.new_zeros(len(x), 2)


class OfClass(nn.Module):
    """Logits of the pixels by class, whatever z is: log p(x|c) in closed form."""

    takes_condition = True

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(0.3 * torch.randn(3, 64))

    def forward(self, z, embedding):
        return (embedding @ self.logits).view(-1, *SHAPE)


def test_log_p_of_x_given_c_and_its_mean_over_classes_in_closed_form():
    model = vl.VAE(Blind(), OfClass(), condition=vl.Labels(3), image_shape=SHAPE, latent_shape=(2,))
    images, labels = rand(20, *SHAPE).round(), torch.arange(20) % 3
    with torch.no_grad():
        of_class = torch.stack(
            [vl.Bernoulli().log_prob(images, row.expand(20, 64).view(-1, *SHAPE)) for row in model.decoder.logits]
        ).double()
    data, options = labelled(images, labels), {"num_samples": 4, "progress": False}
    with pytest.warns(UserWarning, match=r"so log p\(x\|c\) is underestimated"):
        given = evaluation.log_likelihood(model, data, **options)
    assert given.quantity == evaluation.elbo(model, data).quantity == "log p(x|c)"
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-4)
    close(given.per_image, of_class[labels, torch.arange(20)])
    with pytest.warns(UserWarning, match=r"so log p\(x\) is underestimated"):
        marginal = evaluation.marginal_log_likelihood(model, images, **options)
    assert marginal.quantity == "log p(x)"
    exact = of_class.logsumexp(0) - math.log(3)
    close(marginal.per_image, exact)
    close(marginal.elbo.value, exact.mean().item())
    assert marginal.monte_carlo_error < 1e-4
    # 4 draws of the class that explains an image; of classes that explain it alike, 4 of each
    expected = 4 / of_class.softmax(0).square().sum(0)
    assert marginal.effective_samples == pytest.approx(expected.quantile(0.5).item(), rel=1e-3)


@pytest.mark.filterwarnings("ignore:.num_samples.")
def test_a_model_without_its_label_is_one_of_p_of_x(vae):
    images = rand(3, *SHAPE).round()
    for label, quantity in ((None, "log p(x)"), (1, "log p(x|c)")):
        assert evaluation.elbo(vae.given(label), images).quantity == quantity
        found = evaluation.log_likelihood(vae.given(label), images, num_samples=2, progress=False)
        assert found.quantity == quantity


@pytest.mark.filterwarnings("ignore:.num_samples.")
def test_the_mean_over_classes_has_the_error_of_its_draws(vae):
    """By repetition: the spread of estimates is the error that each gives."""
    images = rand(8, *SHAPE).round()
    found = [
        evaluation.marginal_log_likelihood(
            vae, images, num_samples=16, progress=False, generator=torch.Generator().manual_seed(seed)
        )
        for seed in range(60)
    ]
    spread = torch.stack([result.per_image for result in found]).std(0)
    said = torch.stack([result.per_image_error for result in found]).mean(0)
    assert ((spread / said > 0.7) & (spread / said < 1.4)).all()
    one = evaluation.marginal_log_likelihood(vae, images, num_samples=1, progress=False)
    assert one.per_image_error.isinf().all()


def terms(model, data, **options):
    batches = data.fetch([torch.arange(len(data))], torch.device("cpu"))
    return evaluation.per_image_terms(model, batches, vl.Elbo(), **options)


NUMBERS = {
    "elbo": evaluation.elbo,
    "log_likelihood": partial(evaluation.log_likelihood, num_samples=64, progress=False),
    "latents": evaluation.latents,
    "encode": evaluation.encode,
    "embed": evaluation.embed,
    "reconstruction_quality": evaluation.reconstruction_quality,
    "anomaly_scores": evaluation.anomaly_scores,
    "anomaly": lambda model, data, **options: evaluation.anomaly(model, data, data, background=model, **options),
    "compare": lambda model, data, **options: evaluation.compare(model, model, data, progress=False, **options),
    "terms": terms,
}


def flat(result):
    parts = result if isinstance(result, tuple) else (result,)
    numbers = [flat(part) if isinstance(part, tuple) else [part] for part in parts]
    return [torch.as_tensor(value) for part in numbers for value in part if not isinstance(value, str | None)]


@pytest.mark.filterwarnings("ignore:.num_samples.")
@pytest.mark.parametrize("name", NUMBERS)
def test_every_function_gives_each_image_its_condition(vae, name):
    if name == "reconstruction_quality":
        pytest.importorskip("torchmetrics")
    images, function = rand(6, *SHAPE).round(), NUMBERS[name]

    def numbers(model, labels):
        return flat(function(model, labelled(images, labels), generator=torch.Generator().manual_seed(0)))

    ones = numbers(vae, [1] * 6)
    assert all(map(torch.equal, ones, numbers(vae.given(1), [0] * 6)))
    if name != "anomaly":  # 0.5 for the same images, whatever their labels
        assert not all(map(torch.equal, ones, numbers(vae, [1, 1, 1, 1, 1, 2])))
        assert not all(map(torch.equal, ones, numbers(vae.given(None), [1] * 6)))
    wanted = r"model.given\(" if name == "terms" else 'condition="labels"'
    with pytest.raises(ValueError, match=wanted):
        function(vae, vl.data.ImageDataset(images))


def test_images_keep_their_conditions_in_batches_of_any_size(vae):
    images, labels = rand(7, *SHAPE), tensor([0, 1, 2, 2, 1, 0, 1])
    data = labelled(images, labels)
    with torch.no_grad():
        expected = torch.cat([vae.given(label).embed(x[None]) for x, label in zip(images, labels, strict=True)])
    for batch_size in (2, 7):
        torch.testing.assert_close(evaluation.embed(vae, data, batch_size=batch_size), expected)
    pairs = torch.utils.data.DataLoader(list(zip(images, labels.tolist(), strict=True)), batch_size=3)
    torch.testing.assert_close(evaluation.embed(vae, pairs), expected)


def test_a_foreign_model_may_have_something_else_called_condition():
    model, data = nn.Flatten(), labelled(rand(4, *SHAPE), [0, 1, 2, 0])
    model.condition = "good"
    assert evaluation.features_of(model, data).shape == (4, 64)


@pytest.mark.filterwarnings("ignore:.num_samples.")
def test_a_model_with_labels_beside_one_without(vae):
    plain, images = vl.conv_vae(SHAPE, 2, hidden_channels=(4,)), rand(6, *SHAPE).round()
    data = labelled(images, [0, 1, 2, 0, 1, 2])
    for num_samples in (None, 32):
        result = evaluation.compare(plain, vae, data, num_samples=num_samples, progress=False)
        assert result.quantities == ("log p(x)", "log p(x|c)")
        assert result.num_images == 6
    scores = evaluation.anomaly_scores(plain, data, background=vae)
    assert scores.likelihood_ratio.shape == (6,)
    bound = evaluation.elbo(plain, data, generator=torch.Generator().manual_seed(0))
    assert bound.quantity == "log p(x)"
    assert bound == evaluation.elbo(plain, images, generator=torch.Generator().manual_seed(0))


def test_a_prior_that_takes_the_condition_is_asked_with_it():
    prior = vl.priors.ConditionalGaussian((2,), condition_size=3)
    nn.init.normal_(prior.moments.weight)
    model = vl.conv_vae(SHAPE, 2, hidden_channels=(4,), condition=vl.Labels(3), prior=prior).eval()
    images, labels = rand(5, *SHAPE), tensor([0, 1, 2, 2, 1])
    report = evaluation.latents(model, labelled(images, labels))
    for information in (0.1, 1.5):
        used = report._replace(active_units=2, mutual_information=report.kl._replace(value=information))
        assert "nats" in used.in_words() and "prior" not in used.in_words()
        assert "prior" in used._replace(prior_is_conditional=False).in_words()
    view = model.given(labels)
    mu, logvar = view.encode(images)
    torch.testing.assert_close(report.kl_per_latent.float(), view.prior.kl(mu, logvar, mu).mean(0))
    terms = vl.BetaTcLoss(5)(view, images)
    torch.testing.assert_close(terms.kl, terms.mutual_information + terms.total_correlation + terms.dimension_wise_kl)


def of_codes(latent=None):
    latent = vl.VectorQuantizer((2, 4, 4), 6) if latent is None else latent
    return vl.conv_vae(SHAPE, latent=latent, hidden_channels=(4,)).eval()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda m: evaluation.marginal_log_likelihood(vl.conv_vae(SHAPE, 2), rand(2, *SHAPE)),
            TypeError,
            r"`model` must be a VAE with `condition=vl.Labels\(...\)`, none bound, got VAE",
        ),
        (
            lambda m: evaluation.marginal_log_likelihood(m.given(1), rand(2, *SHAPE)),
            TypeError,
            "none bound, got Given",
        ),
        (
            lambda m: evaluation.code_usage(m, rand(2, *SHAPE)),
            TypeError,
            "`model` must have a latent of codes, such as VectorQuantizer, got GaussianLatent",
        ),
        (
            lambda m: evaluation.latents(of_codes(), rand(2, *SHAPE)),
            ValueError,
            "the model's latent has no mu and logvar, but codes: see `code_usage`",
        ),
    ],
)
def test_wrong_models(vae, call, error, match):
    with pytest.raises(error, match=match):
        call(vae)


def test_one_draw_of_a_posterior_that_is_deterministic():
    model, images = of_codes(), rand(5, *SHAPE).round()
    result = evaluation.log_likelihood(model, images, num_samples=500, progress=False)
    assert result.num_samples == 1
    assert "q(z|x) is deterministic: one draw an image" in result.note
    assert result.monte_carlo_error == result.bias == 0
    bound = evaluation.elbo(model, images)
    assert result.log_likelihood == pytest.approx(bound.elbo)
    assert bound.kl.value == pytest.approx(16 * math.log(6), rel=1e-6)
    assert evaluation.compare(model, model, images, num_samples=500, progress=False).monte_carlo_error == 0


@pytest.mark.filterwarnings("ignore:.num_samples.")
def test_a_comparison_says_which_model_has_one_draw():
    first, second = of_codes(), vl.conv_vae(SHAPE, 2, hidden_channels=(4,))
    images, note = rand(5, *SHAPE).round(), "q(z|x) of `first` is deterministic: one draw an image"
    assert note in evaluation.compare(first, second, images, num_samples=9, progress=False).note
    assert "of `first`" not in evaluation.compare(second, first, images, num_samples=9, progress=False).note
    assert evaluation.compare(first, second, images, progress=False).note == ""


@pytest.mark.parametrize("name", ["log_likelihood", "marginal_log_likelihood", "compare"])
def test_images_of_one_draw_are_evaluated_many_at_a_time(name):
    latent = vl.FiniteScalarQuantizer((2, 4, 4), (3, 3))
    condition = vl.Labels(3) if name == "marginal_log_likelihood" else None
    model, sizes = vl.conv_vae(SHAPE, latent=latent, hidden_channels=(4,), condition=condition).eval(), []
    model.encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    measure = getattr(evaluation, name)
    models = (model, model) if name == "compare" else (model,)
    measure(*models, rand(6, *SHAPE).round(), num_samples=1000, batch_size=6, progress=False)
    assert set(sizes) == {6}


class Read(nn.Module):
    """The first pixels as what the quantiser reads: 0, 0.5 and 1 are the three levels of a channel."""

    image_shape = SHAPE

    def __init__(self, latent_shape):
        super().__init__()
        self.latent_shape = latent_shape

    def forward(self, x):
        return 20 * (x.flatten(1)[:, : math.prod(self.latent_shape)] - 0.5).unflatten(1, self.latent_shape)


def reading(latent):
    decoder = vl.ConvDecoder(math.prod(latent.latent_shape), SHAPE, latent_shape=latent.latent_shape)
    return vl.VAE(Read(latent.latent_shape), decoder, latent=latent).eval()


def test_usage_is_of_the_whole_set():
    """Each batch has one code, the set all but one: the perplexity of a batch would be 1."""
    model = reading(vl.FiniteScalarQuantizer((2,), (3, 3)))
    images = torch.zeros(16, *SHAPE)
    images.flatten(1)[:, :2] = torch.cartesian_prod(*2 * [tensor([0.0, 0.5, 1.0])])[:8].repeat(2, 1)
    usage = evaluation.code_usage(model, images, batch_size=1)
    assert sorted(usage.histogram[0].tolist()) == [0] + [2] * 8
    assert usage.perplexity == pytest.approx(8)
    assert usage[1:2] + usage[3:] == (1, 9, 16, 1, False)
    assert evaluation.code_usage(of_codes(), images).is_learned


def test_usage_of_several_codebooks_and_of_very_many_codes():
    latent = vl.ResidualQuantizer((2, 4, 4), 6, depth=3)
    usage = evaluation.code_usage(of_codes(latent), rand(10, *SHAPE))
    assert usage.histogram.shape == (3, 6)
    assert usage.histogram.sum(1).tolist() == [160] * 3
    shares = usage.histogram / 160
    entropies = torch.special.entr(shares).sum(1)
    assert usage.perplexity == pytest.approx(entropies.mean().exp().item(), rel=1e-5)
    assert usage.dead == (usage.histogram == 0).sum()
    many = evaluation.code_usage(reading(vl.BinarySphericalQuantizer((24,))), rand(4, *SHAPE))
    assert (many.histogram, many.num_codes, many.dead) == (None, 2**24, 2**24 - 4)
    assert many.perplexity == pytest.approx(4)


@pytest.mark.parametrize(
    ("usage", "words"),
    [
        ((400.0, 0, None, 512, 9999, 1), "Codebook: perplexity 400.0 of 512, 0 of 512 codes (0%) are never used."),
        ((100.0, 256, None, 512, 9999, 1), "256 of 512 codes (50%) are never used. Restarts (`restart=0.1`), fewer"),
        (
            (1.1, 500, None, 512, 9999, 1),
            "Collapsed: nearly all positions have the same code. Codebook: perplexity 1.1",
        ),
        ((30.0, 400, None, 512, 90, 1), "only 90 were seen, so more images would show more."),
        (
            (1.0, 8191, None, 8192, 64, 1),
            "Collapsed: nearly all positions have the same code. Codebook: perplexity 1.0",
        ),
        ((1.0, 8191, None, 8192, 4, 1), "only 4 were seen, so more images would show more."),
        ((9.0, 3, None, 16, 9999, 4), "perplexity 9.0 of 16 in 4 codebooks, 3 of 64 codes (5%) are never used."),
    ],
)
def test_usage_in_words(usage, words):
    assert words in evaluation.CodeUsage(*usage).in_words()
    assert "estart" not in evaluation.CodeUsage(*usage, is_learned=False).in_words()
