"""A generator of any device draws for tensors of any device. Here the tensors are on `meta`, the generator is not.

Bernoulli draws need the probabilities themselves, which meta has not: tests/test_gpu_models.py has those.
"""

import pytest
import torch

import vaelib as vl
from vaelib.data.dataset import prepared
from vaelib.objectives import permute_latents

VALUES, LATENTS = (3, 2, 4, 4), (3, 5)
DRAWS = {
    "reparameterize": (LATENTS, lambda z, g: vl.reparameterize(z, z, generator=g)),
    "continuous bernoulli": (VALUES, lambda x, g: vl.ContinuousBernoulli().sample(x, generator=g)),
    "gaussian": (VALUES, lambda x, g: vl.Gaussian(0.1).to(x.device).sample(x, generator=g)),
    "laplace": (VALUES, lambda x, g: vl.Laplace(0.1).to(x.device).sample(x, generator=g)),
    "logistic": (VALUES, lambda x, g: vl.DiscretizedLogistic().sample(x, generator=g)),
    "noise": (VALUES, lambda x, g: vl.GaussianNoise()(x, generator=g)),
    "salt and pepper": (VALUES, lambda x, g: vl.SaltAndPepper()(x, generator=g)),
    "masking": (VALUES, lambda x, g: vl.Masking()(x, generator=g)),
    "permute_latents": (LATENTS, lambda z, g: permute_latents(z, generator=g)),
    "flipped": (VALUES, lambda x, g: prepared(x, False, True, g)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_generator_is_drawn_from_where_it_is(name):
    shape, draw = DRAWS[name]
    states = []
    for device in ("cpu", "meta"):
        generator = torch.Generator().manual_seed(0)
        drawn = draw(torch.full(shape, 0.5, device=device), generator)
        assert drawn.device.type == device
        states.append(generator.get_state())
    assert torch.equal(*states)
    assert not torch.equal(states[0], torch.Generator().manual_seed(0).get_state())


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_compiled_for_batches_of_any_size(name):
    shape, draw = DRAWS[name]
    torch.compiler.reset()
    compiled = torch.compile(lambda x: draw(x, None), dynamic=True, backend="eager")
    for size in (3, 4):
        assert len(compiled(torch.full((size, *shape[1:]), 0.5))) == size


def test_the_prior_is_compiled_for_any_number_of_draws():
    compiled = torch.compile(lambda x: vl.StandardNormal().sample(len(x), (2,)), dynamic=True, backend="eager")
    assert [compiled(torch.zeros(size, 2)).shape for size in (3, 4)] == [(3, 2), (4, 2)]
