import torch
from torch import distributions as td

import vaelib as vl


def test_standard_normal_against_torch():
    prior, z = vl.StandardNormal(), torch.randn(5, 4, 2, 2)
    assert isinstance(prior, vl.Prior)
    torch.testing.assert_close(prior.log_prob(z), td.Normal(0, 1).log_prob(z).flatten(1).sum(1))


def test_kl_per_latent_is_the_closed_form_and_what_samples_say():
    prior = vl.StandardNormal()
    mu, logvar = torch.randn(1, 6), torch.randn(1, 6)
    kl = prior.kl(mu, logvar)
    assert kl.shape == (1, 6)
    posterior = td.Normal(mu, (0.5 * logvar).exp())
    z = posterior.sample((200_000,))
    estimate = (posterior.log_prob(z) - td.Normal(0, 1).log_prob(z)).mean(0)
    torch.testing.assert_close(kl, estimate, rtol=0.02, atol=0.02)


def test_samples():
    prior = vl.StandardNormal()
    first, second = (prior.sample(3, (4, 2, 2), generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.shape == (3, 4, 2, 2)
    assert torch.equal(first, second)
