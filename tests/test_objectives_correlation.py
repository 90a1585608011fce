"""The KL in parts: exact where all images are in the batch, unbiased where not, and FactorVAE's discriminator."""

import itertools
import math

import pytest
import torch
from runs import seeded
from torch import distributions as td, nn

import vaelib as vl
from vaelib.objectives import permute_latents


def posteriors(count, latents, generator=None):
    generator = generator or seeded()
    mu, logvar = (torch.randn(count, latents, generator=generator, dtype=torch.float64) for _ in range(2))
    return vl.reparameterize(mu, logvar, generator=generator), mu, logvar


def log_aggregate(z, mu, logvar):
    """log q(z) of the mixture of all posteriors, by torch."""
    parts = td.Independent(td.Normal(mu, (0.5 * logvar).exp()), 1)
    return td.MixtureSameFamily(td.Categorical(torch.ones(len(mu), dtype=mu.dtype)), parts).log_prob(z)


def test_a_batch_of_all_images_gives_the_exact_parts():
    """Equation 2 of Chen et al., each density by torch."""
    z, mu, logvar = posteriors(7, 3)
    split = vl.kl_split(z, mu, logvar, num_images=7)
    log_q_given_x = td.Normal(mu, (0.5 * logvar).exp()).log_prob(z).sum(1)
    log_q = log_aggregate(z, mu, logvar)
    log_product = sum(log_aggregate(z[:, [j]], mu[:, [j]], logvar[:, [j]]) for j in range(3))
    log_p = td.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(split.mutual_information, log_q_given_x - log_q)
    torch.testing.assert_close(split.total_correlation, log_q - log_product)
    torch.testing.assert_close(split.dimension_wise_kl, log_product - log_p)


def test_gaussian_codes_have_the_parts_of_the_textbook():
    """q(z) = N(0, S) with S known: I = 1/2 log |S|/|noise|, TC = -1/2 log |correlation|, KLs of the variances."""
    covariance = torch.tensor([[1.0, 0.8], [0.8, 2.0]], dtype=torch.float64)
    noise = torch.tensor([0.4, 0.5], dtype=torch.float64)
    count = 1_000
    chol = torch.linalg.cholesky(covariance - noise.diag())
    mu = torch.randn(count, 2, generator=seeded(1), dtype=torch.float64) @ chol.T
    logvar = noise.log().expand(count, 2)
    split = vl.kl_split(vl.reparameterize(mu, logvar, generator=seeded(2)), mu, logvar, num_images=count)
    variances = covariance.diagonal()
    expected = (
        0.5 * (covariance.logdet() - noise.log().sum()),
        -0.5 * (covariance.logdet() - variances.log().sum()),
        0.5 * (variances - 1 - variances.log()).sum(),
    )
    for part, value in zip(split, expected, strict=True):
        error = part.std() / math.sqrt(count)
        assert part.mean().item() == pytest.approx(value.item(), abs=4 * error.item() + 0.02)


@pytest.mark.parametrize("estimator", ["stratified", "weighted"])
@pytest.mark.parametrize("prior", [vl.StandardNormal(), vl.MixtureOfGaussians((2, 3, 1), 4)], ids=["normal", "mixture"])
def test_the_parts_sum_to_the_kl_of_the_draw(estimator, prior):
    mu, logvar = torch.randn(5, 2, 3, 1), torch.randn(5, 2, 3, 1)
    z = vl.reparameterize(mu, logvar)
    split = vl.kl_split(z, mu, logvar, num_images=60_000, prior=prior, estimator=estimator)
    log_q = vl.functional.gaussian_log_prob(z, mu, 0.5 * logvar)
    torch.testing.assert_close(sum(split), log_q - prior.log_prob(z), rtol=1e-4, atol=1e-4)


def estimated_density(z, mu, logvar, chosen, num_images):
    """q(z) of the first chosen draw, as the batch of ``chosen`` says."""
    chosen = list(chosen)
    split = vl.kl_split(z[chosen], mu[chosen], logvar[chosen], num_images=num_images)
    log_q_given_x = vl.functional.gaussian_log_prob(z[chosen], mu[chosen], 0.5 * logvar[chosen])
    return (log_q_given_x - split.mutual_information)[0].exp()


@pytest.mark.parametrize("batch", [2, 3, 4])
def test_stratified_sampling_is_unbiased_over_all_batches(batch):
    """Every batch of six images that holds the one z is of. Peers' weights, off the diagonal, fail this."""
    z, mu, logvar = posteriors(6, 2)
    exact = log_aggregate(z[:1], mu, logvar)[0].exp()
    batches = [(0, *others) for others in itertools.combinations(range(1, 6), batch - 1)]
    estimates = torch.stack([estimated_density(z, mu, logvar, chosen, 6) for chosen in batches])
    torch.testing.assert_close(estimates.mean(), exact, rtol=1e-12, atol=0)
    assert estimates.std() > 0.01 * exact

    def in_the_first_columns(chosen):  # the own image weighs 1 / N only where it comes first
        weights = torch.tensor([1 / 6, (6 - batch + 1) / (6 * (batch - 1)), *[1 / (batch - 1)] * (batch - 2)])
        first = [*chosen[1:], chosen[0]]
        densities = [vl.functional.gaussian_log_prob(z[:1], mu[[k]], 0.5 * logvar[[k]]).exp() for k in first]
        return (weights * torch.cat(densities)).sum()

    off = torch.stack([in_the_first_columns(chosen) for chosen in batches]).mean()
    assert abs(off / exact - 1) > 0.1


@pytest.mark.parametrize("batch", [3, 4])
def test_it_is_the_published_estimator_averaged_over_the_image_that_weighs_more(batch):
    """Appendix C of Chen et al.: 1/N own + 1/M sum of M - 1 others + (N - M)/(N M) the last, M = B - 1."""
    total, others = 6, batch - 1
    z, mu, logvar = posteriors(total, 2)
    chosen = list(range(batch))
    densities = [vl.functional.gaussian_log_prob(z[:1], mu[[k]], 0.5 * logvar[[k]]).exp() for k in chosen]
    published = [
        densities[0] / total
        + sum(densities[k] for k in chosen[1:] if k != last) / others
        + densities[last] * (total - others) / (total * others)
        for last in chosen[1:]
    ]
    torch.testing.assert_close(estimated_density(z, mu, logvar, chosen, total), torch.cat(published).mean())


def test_the_estimate_closes_in_on_the_truth_as_batches_grow():
    z, mu, logvar = posteriors(64, 3)
    exact = vl.kl_split(z, mu, logvar, num_images=64).total_correlation.mean()
    errors = []
    for batch in (4, 16, 64):
        parts = [torch.randperm(64, generator=seeded(i))[:batch] for i in range(60)]
        values = [vl.kl_split(z[p], mu[p], logvar[p], num_images=64).total_correlation.mean() for p in parts]
        errors.append((torch.stack(values) - exact).square().mean().sqrt().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 1e-12


def test_weighted_sampling_of_all_images_is_off_by_log_n_a_density():
    z, mu, logvar = posteriors(7, 3)
    exact = vl.kl_split(z, mu, logvar, num_images=7)
    weighted = vl.kl_split(z, mu, logvar, num_images=7, estimator="weighted")
    torch.testing.assert_close(weighted.mutual_information, exact.mutual_information + math.log(7))
    torch.testing.assert_close(weighted.total_correlation, exact.total_correlation + 2 * math.log(7))
    torch.testing.assert_close(weighted.dimension_wise_kl, exact.dimension_wise_kl - 3 * math.log(7))


def test_one_image_and_more_images_than_announced():
    z, mu, logvar = posteriors(4, 2)
    alone = vl.kl_split(z[:1], mu[:1], logvar[:1], num_images=100)
    assert all(part.isfinite().all() for part in alone)
    for more, all_of_them in zip(
        vl.kl_split(z, mu, logvar, num_images=3), vl.kl_split(z, mu, logvar, num_images=4), strict=True
    ):
        assert torch.equal(more, all_of_them)


def test_beta_tc_weighs_each_part():
    vae, x = vl.conv_vae((1, 8, 8), 3, hidden_channels=(4,)).eval(), torch.rand(5, 1, 8, 8)
    objective = vl.BetaTcLoss(50, beta=vl.linear_warmup(10, final=6.0), alpha=0.5, gamma=2.0)
    terms = objective(vae, x, step=5, generator=seeded())
    out = vae(x, generator=seeded())
    split = vl.kl_split(out.z, out.mu, out.logvar, num_images=50)
    expected = terms.reconstruction + 0.5 * split[0] + 3.0 * split[1] + 2.0 * split[2]
    torch.testing.assert_close(terms.loss, expected.mean())
    torch.testing.assert_close(torch.stack(terms[3:]), torch.stack(split))
    torch.testing.assert_close(terms.reconstruction, -vae.likelihood.log_prob(x, out.recon_params))


def test_wrong_splits():
    z, mu, logvar = posteriors(4, 2)
    for kwargs, match in (
        ({"num_images": 0}, "`num_images` must be >= 1, got 0"),
        ({"num_images": 4, "estimator": "mss"}, "`estimator` must be one of 'stratified', 'weighted', got 'mss'"),
    ):
        with pytest.raises(ValueError, match=match):
            vl.kl_split(z, mu, logvar, **kwargs)
        with pytest.raises(ValueError, match=match):
            vl.BetaTcLoss(**kwargs)
    with pytest.raises(ValueError, match=r"`mu` must have shape \(4, 2\), got \(4, 1\)"):
        vl.kl_split(z, mu[:, :1], logvar, num_images=4)
    with pytest.raises(ValueError, match=r"`logvar` must have shape \(4, 2\), got \(3, 2\)"):
        vl.kl_split(z, mu, logvar[:3], num_images=4)
    for name in ("alpha", "beta", "gamma"):
        with pytest.raises(ValueError, match=f"`{name}` must be >= 0, got -1"):
            vl.BetaTcLoss(4, **{name: -1.0})


RHO = 0.8


class Correlated(nn.Module):
    """A model whose draws of z are a given sample of a correlated Gaussian."""

    likelihood, latent = vl.Bernoulli(), vl.GaussianLatent((2,))

    def __init__(self, z):
        super().__init__()
        self.z = nn.Parameter(z)

    def observe(self, x, *, generator=None):
        return x

    def draw(self, x, *, generator=None):
        return self.latent.draw((torch.zeros_like(self.z), torch.zeros_like(self.z)), self.z)

    def decode(self, draw):
        return torch.zeros(len(draw.z), 1, 1, 1)


class ExactRatio(nn.Module):
    """log q(z) - sum_j log q(z_j) of that Gaussian, times a scale to learn."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z):
        joint = td.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, RHO], [RHO, 1.0]]))
        return (self.scale * (joint.log_prob(z) - td.Normal(0.0, 1.0).log_prob(z).sum(1)))[:, None]


def correlated(count, seed=0):
    z = torch.randn(count, 2, generator=seeded(seed))
    return torch.stack([z[:, 0], RHO * z[:, 0] + math.sqrt(1 - RHO**2) * z[:, 1]], 1)


TRUE_TC = -0.5 * math.log(1 - RHO**2)


def test_the_total_correlation_of_the_exact_discriminator_is_the_truth():
    """Equation 3 of Kim & Mnih with -1/2 log(1 - rho^2), and no gradient left for the discriminator."""
    objective = vl.FactorLoss(2, gamma=5.0)
    objective.discriminator = ExactRatio()
    count = 40_000
    terms = objective(Correlated(correlated(count)), torch.zeros(count, 1, 1, 1))
    error = terms.total_correlation.std().item() / math.sqrt(count)
    assert terms.total_correlation.mean().item() == pytest.approx(TRUE_TC, abs=4 * error)
    expected = terms.reconstruction + terms.kl + 5.0 * terms.total_correlation
    torch.testing.assert_close(terms.loss, expected.mean())
    assert terms.discriminator.mean() < math.log(2)
    terms.loss.backward()
    assert abs(objective.discriminator.scale.grad.item()) < 0.01


def test_a_discriminator_learns_the_total_correlation():
    """One of the right form, from knowing nothing: its scale goes to 1."""
    objective = vl.FactorLoss(2, hidden_features=(1,))
    objective.discriminator = ExactRatio()
    nn.init.zeros_(objective.discriminator.scale)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.1)
    count = 2_000
    for step in range(60):
        optimizer.zero_grad()
        terms = objective(Correlated(correlated(count, seed=step + 1)), torch.zeros(count, 1, 1, 1))
        terms.loss.backward()
        optimizer.step()
    assert objective.discriminator.scale.item() == pytest.approx(1.0, abs=0.1)
    assert terms.total_correlation.mean().item() == pytest.approx(TRUE_TC, abs=0.1)


def test_a_discriminator_that_knows_nothing_costs_nothing():
    objective = vl.FactorLoss(3, hidden_features=(8,))
    for parameter in objective.parameters():
        nn.init.zeros_(parameter)
    vae, x = vl.conv_vae((1, 8, 8), 3, hidden_channels=(4,)).eval(), torch.rand(5, 1, 8, 8)
    terms, elbo = objective(vae, x, generator=seeded()), vl.Elbo()(vae, x, generator=seeded())
    torch.testing.assert_close(terms.loss, elbo.loss)
    torch.testing.assert_close(terms.discriminator, torch.full((5,), math.log(2)))
    assert terms.total_correlation.abs().max() == 0


def test_one_backward_pass_gives_each_network_its_own_gradient():
    torch.manual_seed(0)
    vae = vl.conv_vae((1, 8, 8), 3, hidden_channels=(4,), norm="none").double()
    objective, x = vl.FactorLoss(3, gamma=7.0, hidden_features=(8,)).double(), torch.rand(5, 1, 8, 8).double()
    objective(vae, x, generator=seeded()).loss.backward()

    generator = seeded()
    out = vae(x, generator=generator)
    ratio = objective.discriminator(out.z)[:, 0]
    of_model = vl.elbo_loss(x, *out).loss + 7.0 * ratio.mean()
    labels = torch.cat([torch.ones(5), torch.zeros(5)]).double()
    both = torch.cat([out.z, permute_latents(out.z, generator=generator)]).detach()
    of_discriminator = nn.functional.binary_cross_entropy_with_logits(objective.discriminator(both)[:, 0], labels)
    for module, loss in ((vae, of_model), (objective, of_discriminator)):
        expected = torch.autograd.grad(loss, list(module.parameters()))
        for parameter, gradient in zip(module.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


def test_shuffled_latents_keep_each_marginal_and_lose_the_rest():
    z = correlated(5_000)
    shuffled = permute_latents(z, generator=seeded(1))
    assert torch.equal(shuffled.sort(0).values, z.sort(0).values)
    assert torch.equal(shuffled, permute_latents(z, generator=seeded(1)))
    assert torch.corrcoef(z.T)[0, 1] > 0.75
    assert abs(torch.corrcoef(shuffled.T)[0, 1]) < 0.05


def test_wrong_discriminators():
    vae = vl.conv_vae((1, 8, 8), latent_shape=(2, 4, 4), hidden_channels=(4,))
    for call, match in (
        (lambda: vl.FactorLoss(2, gamma=-1.0), "`gamma` must be >= 0, got -1"),
        (lambda: vl.FactorLoss(0), "`latent_dim` must be >= 1, got 0"),
        (lambda: vl.FactorLoss(2, hidden_features=(0,)), r"`hidden_features\[0\]` must be >= 1, got 0"),
        (lambda: vl.FactorLoss(2)(vae, torch.rand(2, 1, 8, 8)), "`latent_dim` must be 32, all latents of .*, got 2"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
