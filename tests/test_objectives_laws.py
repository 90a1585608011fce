"""Laws that every objective obeys: bounds are bounds, gradients are gradients, every part goes with every other."""

import math

import pytest
import torch
from parts import LIKELIHOODS, OF_EACH_CLASS, PRIORS
from runs import seeded

import vaelib as vl

IMAGES = 40


OBJECTIVES = {
    "elbo": lambda latents: vl.Elbo(),
    "beta": lambda latents: vl.Elbo(beta=4.0, free_bits=0.1),
    "capacity": lambda latents: vl.Elbo(beta=10.0, capacity=5.0),
    "extra": lambda latents: vl.Elbo(extra=lambda x, images: (x - images).abs().flatten(1).sum(1)),
    "beta-tc": lambda latents: vl.BetaTcLoss(IMAGES),
    "factor": lambda latents: vl.FactorLoss(latents, hidden_features=(8, 8)),
    "dip i": lambda latents: vl.DipLoss(),
    "dip ii": lambda latents: vl.DipLoss(10.0, 10.0, kind="ii"),
    "info": lambda latents: vl.InfoLoss(alpha=0.5, lambda_=100.0),
    "iwae": lambda latents: vl.Iwae(3),
    "ciwae": lambda latents: vl.Iwae(3, elbo_weight=0.5, gradient="stl"),
    "piwae": lambda latents: vl.Iwae(2, num_groups=2, pool_decoder=True, gradient="dreg"),
}
OF_AUTOENCODERS = {
    "reconstruction": vl.Reconstruction,
    "wae": vl.WaeLoss,
    "rae gradient": lambda: vl.RaeLoss(0.1, 0.01),
    "rae l2": lambda: vl.RaeLoss(0.1, 0.01, penalty="l2"),
}
LATENTS = {"vector": (4,), "map": (2, 2, 2)}


def model_of(latent_shape=(4,), **kwargs):
    torch.manual_seed(0)
    options = {"latent_shape": latent_shape, "hidden_channels": (3, 4), "norm": "group"} | kwargs
    return vl.conv_vae((1, 8, 8), **options)


def autoencoder_of(**kwargs):
    torch.manual_seed(0)
    parts = vl.ConvEncoder((1, 8, 8), 4, hidden_channels=(3,)), vl.ConvDecoder(4, (1, 8, 8), hidden_channels=(3,))
    return vl.AutoEncoder(*parts, **kwargs)


@pytest.fixture(params=OBJECTIVES)
def objective(request):
    torch.manual_seed(0)
    return OBJECTIVES[request.param](4)


@pytest.mark.parametrize("name", OF_AUTOENCODERS)
def test_no_image_has_no_loss(name, objective):
    for model, of_none in ((model_of(), objective), (autoencoder_of(), OF_AUTOENCODERS[name]())):
        with pytest.raises(ValueError, match=r"`x` must hold at least one image, got shape \(0, 1, 8, 8\)"):
            of_none(model, torch.rand(0, 1, 8, 8))


def check_one_step(model, objective, x):
    """The weights move, all gradients are finite, and the loss after the step is."""
    parts = [model, *(part for part in [objective] if isinstance(part, torch.nn.Module) and [*part.parameters()])]
    parameters = [parameter for part in parts for parameter in part.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-6)
    optimizer.zero_grad()
    before = [parameter.detach().clone() for parameter in parameters]
    terms = objective(model, x)
    terms.loss.backward()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(any(p.grad is not None and p.grad.any() for p in part.parameters()) for part in parts)
    optimizer.step()
    assert any(not torch.equal(old, new) for old, new in zip(before, parameters, strict=True))
    assert terms.loss.shape == () and terms.loss.isfinite()
    with torch.no_grad():
        assert objective(model, x).loss.isfinite()
    assert all(term.shape == (len(x),) and term.isfinite().all() for term in terms[1:])


@pytest.mark.parametrize("latents", ["vector", pytest.param("map", marks=pytest.mark.slow)])
@pytest.mark.parametrize("prior", PRIORS)
def test_every_prior_objective_and_likelihood_take_a_step_together(prior, latents):
    if prior in ("realnvp", "nsf"):
        pytest.importorskip("zuko")
    shape = LATENTS[latents]
    x = torch.randint(256, (4, 1, 8, 8), generator=seeded()) / 255
    for likelihood in OF_EACH_CLASS:
        vae = model_of(shape, prior=PRIORS[prior]((1, 8, 8), shape), likelihood=LIKELIHOODS[likelihood]())
        for make in OBJECTIVES.values():
            check_one_step(vae, make(math.prod(shape)), x)


@pytest.mark.parametrize("name", OF_AUTOENCODERS)
def test_every_objective_and_likelihood_take_a_step_with_an_autoencoder(name):
    x = torch.randint(256, (4, 1, 8, 8), generator=seeded()) / 255
    for likelihood in (None, vl.Bernoulli(), vl.Gaussian("learned")):
        check_one_step(autoencoder_of(likelihood=likelihood), OF_AUTOENCODERS[name](), x)


BOUNDS = {
    "elbo": vl.Elbo,
    "beta": lambda: vl.Elbo(beta=2.0),
    "free bits": lambda: vl.Elbo(free_bits=1.0),
    "beta-tc": lambda: vl.BetaTcLoss(400, beta=1.0),
    "dip": lambda: vl.DipLoss(1.0, 1.0),
    "info": lambda: vl.InfoLoss(alpha=0.0, lambda_=10.0),
    "factor": lambda: vl.FactorLoss(5, gamma=0.0, hidden_features=(4,)).double(),
    "iwae": lambda: vl.Iwae(8),
    "miwae": lambda: vl.Iwae(4, num_groups=2),
    "ciwae": lambda: vl.Iwae(8, elbo_weight=0.3),
    "piwae": lambda: vl.Iwae(4, num_groups=2, pool_decoder=True),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_what_claims_to_be_a_bound_of_log_p_is_one(name, truth):
    x = truth.sample(4).repeat(100, 1, 1, 1)
    exact = truth.log_prob(x).mean().item()
    for shift, stretch in ((0.5, 1.3), (0.2, 2.0), (0.2, 0.5)):
        assert -BOUNDS[name]()(truth.vae(shift, stretch), x, generator=seeded()).loss.item() < exact


def test_at_the_exact_posterior_these_bounds_are_log_p_for_every_draw(truth):
    x = truth.sample(6)
    for objective in (vl.BetaTcLoss(6, beta=1.0), vl.Iwae(3), vl.Iwae(2, num_groups=3, pool_decoder=True)):
        loss = objective(truth.vae(), x).loss
        torch.testing.assert_close(-loss, truth.log_prob(x).mean(), rtol=1e-6, atol=1e-6)


def test_bounds_rise_with_their_draws(truth):
    """ELBO <= MIWAE <= IWAE of as many draws, the draws the same; CIWAE lies between."""
    x, vae = truth.sample(4).repeat(100, 1, 1, 1), truth.vae(0.5, 1.3)
    kinds = (
        vl.Iwae(1, num_groups=16),
        vl.Iwae(2, num_groups=8),
        vl.Iwae(8, num_groups=2),
        vl.Iwae(16, elbo_weight=0.1),
        vl.Iwae(16),
    )
    values = [-kind(vae, x, generator=seeded()).loss.item() for kind in kinds]
    for gradient in ("stl", "dreg"):  # whose value is that of the bound
        assert -vl.Iwae(16, gradient=gradient)(vae, x, generator=seeded()).loss.item() == pytest.approx(values[4])
    assert values[0] == pytest.approx(-vl.Elbo()(vae, x).loss.item(), abs=0.3)
    assert values[:3] == sorted(values[:3]) and values[2] < values[4]
    assert values[0] < values[3] < values[4] < truth.log_prob(x).mean().item()
    pooled = -vl.Iwae(2, num_groups=8, pool_decoder=True)(vae, x, generator=seeded()).loss.item()
    assert pooled == pytest.approx(values[4])


def gradients_of(objective, vae, x):
    vae.zero_grad()
    objective(vae, x, generator=seeded()).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in vae.named_parameters()}


@pytest.mark.parametrize("gradient", ["plain", "stl", "dreg"])
@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_piwae_trains_the_encoder_by_groups_and_the_rest_by_all_draws(gradient, prior):
    """Section 4 of Rainforth et al.: the gradients are those of MIWAE and of IWAE, with the same draws."""
    vae = model_of(prior=PRIORS[prior]((1, 8, 8), (4,))).double()
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    pooled = gradients_of(vl.Iwae(3, num_groups=4, gradient=gradient, pool_decoder=True), vae, x)
    groups = gradients_of(vl.Iwae(3, num_groups=4, gradient=gradient), vae, x)
    whole = gradients_of(vl.Iwae(12, gradient=gradient), vae, x)
    for name, found in pooled.items():
        if not name.startswith("encoder."):
            torch.testing.assert_close(found, whole[name])
        elif prior != "vamp":  # whose density is made of the encoder
            torch.testing.assert_close(found, groups[name])
    assert all(parameter.requires_grad for parameter in vae.parameters())


DIFFERENTIABLE = {
    name: OBJECTIVES[name] for name in ("elbo", "beta", "capacity", "extra", "beta-tc", "factor", "dip i", "dip ii")
} | {
    "info": OBJECTIVES["info"],
    "iwae": OBJECTIVES["iwae"],
    "ciwae": lambda latents: vl.Iwae(2, num_groups=2, elbo_weight=0.5),
}


def check_directional_derivative(objective, model, x):
    """The gradient along a random direction of all weights is the central difference of the loss."""
    parameters = list(model.parameters())
    expected = torch.autograd.grad(objective(model, x, generator=seeded()).loss, parameters)
    direction = [torch.randn_like(parameter) for parameter in parameters]
    values = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for parameter, along in zip(parameters, direction, strict=True):
                parameter.add_(step * along)
        values.append(objective(model, x, generator=seeded()).loss.item())
    slope = sum((gradient * along).sum() for gradient, along in zip(expected, direction, strict=True)).item()
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_finite_differences(name):
    vae = model_of(prior=vl.MixtureOfGaussians((4,), 3), likelihood=vl.Gaussian("learned"), activation="gelu").double()
    objective = DIFFERENTIABLE[name](4)
    if isinstance(objective, torch.nn.Module):
        objective.double()
    check_directional_derivative(objective, vae, torch.rand(5, 1, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize("latents", LATENTS)
@pytest.mark.parametrize("prior", [*PRIORS, "flow posterior"])
def test_gradients_through_every_prior_and_posterior_are_finite_differences(prior, latents):
    if prior in ("realnvp", "nsf", "flow posterior"):
        pytest.importorskip("zuko")
    shape = LATENTS[latents]
    options = {"latent_shape": shape, "hidden_channels": (3, 4), "norm": "group", "activation": "gelu"}
    torch.manual_seed(0)
    if prior == "flow posterior":
        posterior = vl.FlowPosterior(shape, num_transforms=2, hidden_features=(8,))
        parts = vl.ConvEncoder((1, 8, 8), **options), vl.ConvDecoder(image_shape=(1, 8, 8), **options)
        vae = vl.VAE(*parts, latent=vl.GaussianLatent(shape, posterior=posterior)).double()
    else:
        vae = vl.conv_vae((1, 8, 8), **options, prior=PRIORS[prior]((1, 8, 8), shape)).double()
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    for objective in (vl.Elbo(), vl.Iwae(2)):
        check_directional_derivative(objective, vae, x)


@pytest.mark.parametrize("name", OF_AUTOENCODERS)
def test_gradients_of_autoencoders_are_finite_differences(name):
    model = autoencoder_of().double().eval()
    check_directional_derivative(OF_AUTOENCODERS[name](), model, torch.rand(5, 1, 8, 8, dtype=torch.float64))


def test_an_objective_keeps_no_count_of_its_own(objective):
    """The step is an argument: peers count calls, those of validation too."""
    vae, x = model_of().eval(), torch.rand(4, 1, 8, 8)
    first, second = (objective(vae, x, step=3, generator=seeded()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_training_and_validation_have_the_same_scale(objective):
    """Peers weigh the KL 4,000 times as much in one as in the other."""
    vae, x = model_of(), torch.rand(4, 1, 8, 8)
    training = objective(vae.train(), x, generator=seeded())
    with vl.vae.eval_mode(vae):
        validation = objective(vae, x, generator=seeded())
    for a, b in zip(training, validation, strict=True):
        torch.testing.assert_close(a.detach(), b)


def test_terms_are_nats_summed_over_pixels_and_latents(objective):
    """Peers average over pixels, or over latents, and beta depends on their number. With zero weights: ln 2 a pixel."""
    vae = model_of()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
    terms = objective(vae.eval(), torch.rand(4, 1, 8, 8))
    torch.testing.assert_close(terms.reconstruction, torch.full((4,), 64 * math.log(2)))
    torch.testing.assert_close(terms.kl, torch.zeros(4), rtol=0, atol=1e-5)
    assert terms.loss > 0


def test_images_outside_the_support_are_refused(objective):
    with pytest.raises(ValueError, match=r"`x` must have values in \[0, 1\]"):
        objective(model_of(), torch.full((4, 1, 8, 8), 2.0))


def test_nothing_overflows_where_codes_run_off(objective):
    vae = model_of()
    with torch.no_grad():
        for parameter in vae.encoder.parameters():
            parameter.mul_(100)
    objective(vae, torch.rand(4, 1, 8, 8)).loss.backward()
    assert vae(torch.rand(4, 1, 8, 8)).logvar.abs().max() > 15
    for parameter in vae.parameters():
        assert parameter.grad.isfinite().all()


def test_the_bound_of_many_draws_is_not_the_weighted_mean_of_weights():
    """Which overstates it by log K minus the entropy of the weights; and the best draws weigh most, not the worst."""
    log_weights = torch.tensor([[-90.0], [-85.0], [-84.0]], dtype=torch.float64, requires_grad=True)
    bound = vl.iwae_bound(log_weights)
    normalised = log_weights.detach().softmax(0)
    entropy = -(normalised * normalised.log()).sum()
    overstated = (normalised * log_weights).sum()
    assert bound.item() == pytest.approx((overstated - math.log(3) + entropy).item())
    bound.sum().backward()
    torch.testing.assert_close(log_weights.grad, normalised)
    assert log_weights.grad.argmax() == 2


def test_a_batch_of_one_image_has_terms(objective):
    vae = model_of().eval()
    terms = objective(vae, torch.rand(1, 1, 8, 8), generator=seeded())
    assert terms.loss.isfinite() and all(term.shape == (1,) and term.isfinite().all() for term in terms[1:])


def test_a_wasserstein_autoencoder_takes_one_image():
    terms = vl.WaeLoss()(autoencoder_of().eval(), torch.rand(1, 1, 8, 8))
    assert terms.mmd.item() == 0 and terms.loss.isfinite()


def test_objectives_name_the_model_they_need(objective):
    with pytest.raises(TypeError, match="`model` must have a prior, as a VAE has, for .*; got AutoEncoder"):
        objective(autoencoder_of(), torch.rand(2, 1, 8, 8))
    with pytest.raises(TypeError, match="`RaeLoss` needs an autoencoder, whose codes are points, got VAE"):
        vl.RaeLoss(0.1, 0.1)(model_of(), torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize("prior", PRIORS)
def test_free_bits_are_per_latent_whatever_the_prior(prior):
    if prior in ("realnvp", "nsf"):
        pytest.importorskip("zuko")
    vae, x = model_of(prior=PRIORS[prior]((1, 8, 8), (4,))).eval(), torch.rand(4, 1, 8, 8)
    terms = vl.Elbo(free_bits=100.0)(vae, x, generator=seeded())
    assert (terms.loss - terms.reconstruction.mean()).item() == pytest.approx(4 * 100.0)
