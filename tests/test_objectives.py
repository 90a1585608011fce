import math

import pytest
import torch

import vaelib as vl


def test_by_hand():
    x = torch.zeros(2, 1, 4, 4)
    terms = vl.elbo_loss(x, torch.zeros_like(x), torch.ones(2, 3), torch.zeros(2, 3), beta=2.0)
    torch.testing.assert_close(terms.reconstruction, torch.full((2,), 16 * math.log(2)))
    torch.testing.assert_close(terms.kl, torch.full((2,), 1.5))
    assert terms.loss.item() == pytest.approx(16 * math.log(2) + 3.0)


def test_the_loss_is_a_mean_over_images_and_a_sum_over_pixels():
    x, raw = torch.rand(6, 3, 5, 5), torch.randn(6, 3, 5, 5)
    mu, logvar = torch.randn(6, 4), torch.randn(6, 4)
    whole = vl.elbo_loss(x, raw, mu, logvar).loss
    parts = [vl.elbo_loss(x[i : i + 1], raw[i : i + 1], mu[i : i + 1], logvar[i : i + 1]).loss for i in range(6)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


def test_every_likelihood_owns_the_reconstruction_term():
    x = torch.randint(256, (2, 1, 4, 4)) / 255
    for likelihood in (vl.Bernoulli(), vl.Gaussian(0.5), vl.DiscretizedLogistic("per_pixel")):
        raw = torch.randn(2, likelihood.param_channels(1), 4, 4)
        terms = vl.elbo_loss(x, raw, torch.zeros(2, 3), torch.zeros(2, 3), likelihood=likelihood)
        torch.testing.assert_close(terms.reconstruction, -likelihood.log_prob(x, raw))
        assert terms.kl.abs().max() == 0


def test_free_bits_are_per_latent_and_leave_the_reported_kl_alone():
    x = torch.zeros(4, 1, 2, 2)
    mu = torch.tensor([[2.0, 0.1]]).repeat(4, 1).requires_grad_()
    terms = vl.elbo_loss(x, torch.zeros_like(x), mu, torch.zeros(4, 2), free_bits=0.5)
    torch.testing.assert_close(terms.kl, torch.full((4,), 2.005))
    assert terms.loss.item() == pytest.approx(4 * math.log(2) + 2.0 + 0.5)
    terms.loss.backward()
    assert (mu.grad[:, 0] > 0).all()
    assert (mu.grad[:, 1] == 0).all()


def test_free_bits_average_over_the_batch_first():
    x = torch.zeros(2, 1, 1, 1)
    mu = torch.tensor([[2.0], [0.0]])  # 2 and 0 nats: 1 on average, above the floor
    terms = vl.elbo_loss(x, x, mu, torch.zeros(2, 1), free_bits=0.9)
    assert terms.loss.item() == pytest.approx(math.log(2) + 1.0)


def test_the_schedule_moves_beta():
    vae, x = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,)), torch.rand(4, 1, 8, 8)
    objective = vl.Elbo(beta=vl.linear_warmup(10))
    first, later = (objective(vae.eval(), x, step=step, generator=torch.Generator().manual_seed(0)) for step in (0, 5))
    torch.testing.assert_close(first.loss, first.reconstruction.mean())
    torch.testing.assert_close(later.loss, (later.reconstruction + 0.5 * later.kl).mean())


def test_a_prior_without_a_closed_form_is_given_the_draw():
    class Estimated(torch.nn.Module):
        def log_prob(self, z):
            return vl.StandardNormal().log_prob(z)

    x, mu, logvar = torch.zeros(20_000, 1, 1, 1), torch.ones(20_000, 2), torch.zeros(20_000, 2)
    z = vl.reparameterize(mu, logvar)
    estimated = vl.elbo_loss(x, x, mu, logvar, z, prior=Estimated())
    assert estimated.kl.mean().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"beta": -1.0}, "`beta` must be >= 0, got -1"),
        ({"free_bits": -1.0}, "`free_bits` must be >= 0, got -1"),
        ({"z": torch.zeros(2, 1)}, r"`z` must have shape \(2, 3\), got \(2, 1\)"),
        ({"z": torch.zeros(2, 3), "log_q": torch.zeros(2, 1)}, r"`log_q` must have shape \(2\), got \(2, 1\)"),
        ({"logvar": torch.zeros(2, 4)}, r"`logvar` must have shape \(2, 3\), got \(2, 4\)"),
        (
            {"mu": torch.zeros(5, 3), "logvar": torch.zeros(5, 3)},
            r"`mu` must have shape \(2, \.\.\.\), got \(5, 3\)",
        ),
        ({"recon_params": torch.zeros(2, 1, 4, 5)}, "`recon_params` must have shape"),
        ({"x": torch.full((2, 1, 4, 4), 255.0)}, r"`x` must have values in \[0, 1\]"),
    ],
)
def test_wrong_arguments(kwargs, match):
    arguments = {
        "x": torch.zeros(2, 1, 4, 4),
        "recon_params": torch.zeros(2, 1, 4, 4),
        "mu": torch.zeros(2, 3),
        "logvar": torch.zeros(2, 3),
    } | kwargs
    with pytest.raises(ValueError, match=match):
        vl.elbo_loss(**arguments)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: vl.Elbo(beta=-0.5), "`beta` must be >= 0"),
        (lambda x: vl.Elbo(free_bits=-0.5), "`free_bits` must be >= 0"),
        (lambda x: vl.Elbo(capacity=-1.0), "`capacity` must be >= 0, got -1"),
        (lambda x: vl.elbo_loss(x, x, x[:, 0], x[:, 0], capacity=-2.0), "`capacity` must be >= 0, got -2"),
        (lambda x: vl.reconstruction_loss(x, torch.zeros(2, 2, 4, 4)), "`recon_params` must have shape"),
    ],
)
def test_wrong_arguments_of_the_others(call, match):
    with pytest.raises(ValueError, match=match):
        call(torch.zeros(2, 1, 4, 4))


def test_capacity_by_hand():
    """gamma |KL - C| of Burgess et al.: 1.5 nats are 2.5 short of 4."""
    x = torch.zeros(2, 1, 4, 4)
    mu = torch.ones(2, 3, requires_grad=True)
    terms = vl.elbo_loss(x, torch.zeros_like(x), mu, torch.zeros(2, 3), beta=10.0, capacity=4.0)
    assert terms.loss.item() == pytest.approx(16 * math.log(2) + 10 * 2.5)
    torch.testing.assert_close(terms.kl, torch.full((2,), 1.5))
    terms.loss.backward()
    assert (mu.grad < 0).all()  # up to the capacity, KL is asked for
    above = vl.elbo_loss(x, torch.zeros_like(x), 3 * torch.ones(2, 3), torch.zeros(2, 3), beta=10.0, capacity=4.0)
    assert above.loss.item() == pytest.approx(16 * math.log(2) + 10 * (13.5 - 4))


def test_capacity_is_of_the_mean_over_the_batch_and_follows_its_schedule():
    x = torch.zeros(2, 1, 1, 1)
    mu = torch.tensor([[2.0], [0.0]])  # 2 and 0 nats: 1 on average
    assert vl.elbo_loss(x, x, mu, torch.zeros(2, 1), capacity=1.0).loss.item() == pytest.approx(math.log(2))
    vae, x = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,)).eval(), torch.rand(4, 1, 8, 8)
    objective = vl.Elbo(beta=30.0, capacity=vl.linear_warmup(10, final=20.0))
    for step, capacity in ((0, 0.0), (5, 10.0), (99, 20.0)):
        terms = objective(vae, x, step=step)
        expected = terms.reconstruction.mean() + 30 * (terms.kl.mean() - capacity).abs()
        torch.testing.assert_close(terms.loss, expected)


def test_capacity_with_free_bits_counts_what_free_bits_leave():
    x = torch.zeros(4, 1, 1, 1)
    mu = torch.tensor([[2.0, 0.0]]).repeat(4, 1)
    terms = vl.elbo_loss(x, x, mu, torch.zeros(4, 2), free_bits=0.5, capacity=1.0)
    assert terms.loss.item() == pytest.approx(math.log(2) + 2.5 - 1.0)


def test_an_extra_term_sees_images_and_pictures_and_is_in_the_loss_alone():
    vae, x = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,)).eval(), torch.rand(4, 1, 8, 8)
    seen = []

    def perceptual(images, pictures):
        seen.append((images, pictures))
        return 100.0 * torch.arange(4.0)

    plain, more = (
        objective(vae, x, generator=torch.Generator().manual_seed(0))
        for objective in (vl.Elbo(), vl.Elbo(extra=perceptual))
    )
    torch.testing.assert_close(more.loss, plain.loss + 150.0)
    assert torch.equal(more.kl, plain.kl) and torch.equal(more.reconstruction, plain.reconstruction)
    ((images, pictures),) = seen
    assert images is x
    out = vae(x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pictures, out.recon_params.sigmoid())
    with pytest.raises(ValueError, match=r"`extra` must have shape \(4\), got \(\)"):
        vl.Elbo(extra=lambda images, pictures: torch.zeros(()))(vae, x)


WITH_PENALTY = {
    "elbo": vl.Elbo(),
    "elbo with an extra": vl.Elbo(extra=lambda x, images: (x - images).abs().flatten(1).sum(1)),
    "iwae": vl.Iwae(3),
    "piwae": vl.Iwae(2, num_groups=2, pool_decoder=True),
    "factor": vl.FactorLoss(32, hidden_features=(4,)),
    "info": vl.InfoLoss(),
    "reconstruction": vl.Reconstruction(),
    "wae": vl.WaeLoss(),
}


@pytest.mark.parametrize("name", WITH_PENALTY)
def test_the_penalty_of_a_latent_is_in_the_loss_and_a_column_of_its_own(name):
    latent = vl.VectorQuantizer((2, 4, 4), 5, commitment=0.25)
    model = vl.conv_vae((1, 8, 8), latent=latent, hidden_channels=(4,)).eval()
    x, objective = torch.rand(3, 1, 8, 8), WITH_PENALTY[name]
    terms, without = [], []
    for commitment, kept in ((0.25, terms), (0.0, without)):
        latent.commitment = commitment
        torch.manual_seed(1)
        kept.append(objective(model, x, generator=torch.Generator().manual_seed(0)))
    (terms,), (without,) = terms, without
    features = model.observe(x)
    squares = (features - model.embed(x)).square().flatten(1).sum(1)
    torch.testing.assert_close(terms.penalty, 0.25 * squares)
    torch.testing.assert_close(terms.loss, without.loss + 0.25 * squares.mean())
    assert terms._fields == without._fields
    torch.testing.assert_close(terms[1:-1], without[1:-1])
    plain = objective(vl.conv_vae((1, 8, 8), latent_shape=(2, 4, 4), hidden_channels=(4,)), x)
    assert terms._fields == (*plain._fields, "penalty")


@pytest.mark.parametrize(
    ("objective", "match"),
    [
        (vl.BetaTcLoss(100), "`BetaTcLoss` needs a Gaussian posterior: the model's latent has codes, no mu and logvar"),
        (vl.DipLoss(), "`DipLoss` needs a Gaussian posterior: the model's latent has codes, no mu"),
        (vl.Iwae(2, gradient="stl"), r"`Iwae\(gradient='stl'\)` needs a Gaussian posterior"),
        (vl.Iwae(2, gradient="dreg"), r"`Iwae\(gradient='dreg'\)` needs a Gaussian posterior"),
    ],
)
def test_codes_have_no_gaussian(objective, match):
    model = vl.conv_vae((1, 8, 8), latent=vl.FiniteScalarQuantizer((2, 4, 4), (3, 3)), hidden_channels=(4,))
    with pytest.raises(ValueError, match=match):
        objective(model, torch.rand(3, 1, 8, 8))
