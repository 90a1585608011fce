"""A flow posterior is a density, its draws have it, and the bound stays a bound."""

import math

import pytest
import torch
from runs import seeded

import vaelib as vl
from vaelib.evaluation import elbo, latents

pytest.importorskip("zuko")


def trained_flow(shape=(2,), scale=0.3, **arguments):
    """A flow that is not the identity any more."""
    torch.manual_seed(0)
    flow = vl.FlowPosterior(shape, hidden_features=(8,), **arguments)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return flow


def small_vae(posterior, latent=(2,)):
    kind = {"latent_dim": latent[0]} if len(latent) == 1 else {"latent_shape": latent}
    base = vl.conv_vae((1, 8, 8), **kind, hidden_channels=(4,), norm="group")
    return vl.VAE(base.encoder, base.decoder, latent=vl.GaussianLatent(latent, posterior=posterior))


@pytest.mark.parametrize("shape", [(5,), (2, 3, 1)])
def test_the_log_determinant_is_that_of_autograds_jacobian(shape):
    flow = trained_flow(shape).double()
    z, mu, logvar = (torch.randn(1, *shape, dtype=torch.float64) for _ in range(3))
    jacobian = torch.autograd.functional.jacobian(lambda z: flow(z, mu, logvar)[0].flatten(), z)
    size = math.prod(shape)
    expected = torch.linalg.slogdet(jacobian.view(size, size)).logabsdet
    torch.testing.assert_close(flow(z, mu, logvar)[1][0], expected)
    assert expected.abs() > 0.01


def test_a_fresh_flow_is_the_identity():
    z, mu, logvar = (torch.randn(3, 4) for _ in range(3))
    bent, log_det = vl.FlowPosterior((4,))(z, mu, logvar)
    torch.testing.assert_close(bent, z)
    torch.testing.assert_close(log_det, torch.zeros(3))


def test_it_knows_the_encoders_output():
    flow, z = trained_flow((4,)), torch.zeros(1, 4)
    assert not torch.allclose(flow(z, torch.zeros(1, 4), z)[0], flow(z, torch.ones(1, 4), z)[0])


def test_with_any_flow_the_bound_stays_below_the_truth(truth):
    """p(x) is the mean of exp(log w) over draws of any q: the flow's density is the right one."""
    vae, x = truth.vae(stretch=2.0), truth.sample(1)
    vae.latent.posterior = trained_flow((5,), scale=0.05).double()
    many = x.expand(50_000, *x.shape[1:])
    with torch.no_grad():
        terms = vl.Elbo()(vae, many, generator=seeded())
        log_weights = -(terms.reconstruction + terms.kl)
        ratios = (log_weights - truth.log_prob(x)).exp()
    error = ratios.std().item() / math.sqrt(len(ratios))
    assert ratios.mean().item() == pytest.approx(1.0, abs=4 * error)
    assert error < 0.05
    assert log_weights.mean() < truth.log_prob(x).item() - 0.01


def test_it_learns_what_a_diagonal_gaussian_cannot():
    """The exact posterior of x = z1 + z2 + noise is correlated: the flow closes the gap that mean field leaves.

    Its precision has the eigenvalues 1 and 9, the best diagonal one is 5 each: KL = 1/2 log(25 / 9).
    """

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(1, 4)

        def forward(self, x):
            mu, logvar = self.linear(x.flatten(1)).chunk(2, dim=1)
            return mu, logvar

    class Decoder(torch.nn.Module):
        def forward(self, z):
            return z.sum(1).view(-1, 1, 1, 1)

    x = math.sqrt(2.25) * torch.randn(2000, 1, 1, 1, generator=seeded())
    truth = torch.distributions.Normal(0.0, 1.5).log_prob(x).mean().item()  # z1 + z2 + 0.5 noise
    gaps = {}
    for name, posterior in (("gaussian", None), ("flow", vl.FlowPosterior((2,), num_transforms=1, hidden_features=()))):
        torch.manual_seed(0)
        vae = vl.VAE(
            Encoder(),
            Decoder(),
            likelihood=vl.Gaussian(0.5),
            latent=vl.GaussianLatent((2,), posterior=posterior),
            image_shape=(1, 1, 1),
        )
        optimizer = torch.optim.Adam(vae.parameters(), lr=0.02)
        for _ in range(600):
            optimizer.zero_grad()
            loss = vl.Elbo()(vae, x[torch.randint(len(x), (200,))]).loss
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            gaps[name] = truth + vl.Elbo()(vae, x.repeat(20, 1, 1, 1), generator=seeded()).loss.item()
    assert gaps["gaussian"] == pytest.approx(0.5 * math.log(25 / 9), abs=0.05)
    assert gaps["flow"] < 0.1


def test_a_map_goes_where_a_gaussian_goes():
    vae, x = small_vae(trained_flow((2, 4, 4), scale=0.1), (2, 4, 4)), torch.rand(6, 1, 8, 8)
    out = vae(x)
    assert isinstance(out, vl.LatentOutput)
    assert out.kl.shape == (6, 1)
    for objective in (vl.Elbo(free_bits=0.1), vl.Iwae(2, num_groups=2, elbo_weight=0.5)):
        vae.zero_grad()
        objective(vae, x).loss.backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.latent.posterior.parameters())
    assert vae.reconstruct(x).shape == x.shape
    assert elbo(vae, x).num_images == 6


def test_what_needs_a_gaussian_says_so():
    vae, x = small_vae(trained_flow()), torch.rand(4, 1, 8, 8)
    for what, use in (
        ("latents", lambda: latents(vae, x)),
        ("BetaTcLoss", lambda: vl.BetaTcLoss(100)(vae, x)),
        ("DipLoss", lambda: vl.DipLoss()(vae, x)),
        (r"Iwae\(gradient='stl'\)", lambda: vl.Iwae(2, gradient="stl")(vae, x)),
    ):
        with pytest.raises(ValueError, match=rf"`{what}` needs a Gaussian posterior: the model's latent has no mu"):
            use()
    mu = logvar = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="`z` must be given: `log_q` is its density"):
        vl.elbo_loss(x, x, mu, logvar, log_q=torch.zeros(4))
    with pytest.raises(ValueError, match="`num_transforms` must be >= 1"):
        vl.FlowPosterior((2,), num_transforms=0)
