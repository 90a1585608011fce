"""Quantised latents: codes and z are one, the gradients are their formulas, codebooks follow k-means."""

import itertools
import math

import pytest
import torch

import vaelib as vl
from vaelib.latents.gradients import rotated, straight_through


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


QUANTIZERS = {
    "vector": lambda: vl.VectorQuantizer((3, 2, 2), 16),
    "vector by gradients": lambda: vl.VectorQuantizer((3, 2, 2), 16, decay=None, gradient="rotation"),
    "cosine": lambda: vl.VectorQuantizer((3, 2, 2), 16, cosine=True),
    "residual": lambda: vl.ResidualQuantizer((3, 2, 2), 16, depth=3),
    "finite scalar": lambda: vl.FiniteScalarQuantizer((3, 2, 2), (8, 5, 2)),
    "binary spherical": lambda: vl.BinarySphericalQuantizer((3, 2, 2)),
    "one position": lambda: vl.VectorQuantizer((6,), 16),
}


@pytest.fixture(params=QUANTIZERS)
def latent(request):
    torch.manual_seed(0)
    return QUANTIZERS[request.param]()


def features_for(latent, count=5):
    return torch.randn(count, *latent.latent_shape, generator=seeded())


def test_the_decoder_is_given_the_codes_bit_for_bit(latent):
    features = features_for(latent)
    for _ in range(3):
        draw = latent.draw(features, torch.empty(5, 0))
        for z in (draw.hidden, draw.z, latent.point(features)):
            assert torch.equal(z, latent.embed(draw.codes))
        assert torch.equal(latent.encoded(features), draw.codes)
        assert draw.codes.shape == (5, latent.num_positions)
        if hasattr(latent, "after_step"):
            latent.after_step(generator=seeded())


def test_the_rate_is_that_of_uniform_codes(latent):
    draw = latent.draw(features_for(latent), torch.empty(5, 0))
    torch.testing.assert_close(draw.kl, torch.full((5, latent.num_positions), math.log(latent.num_codes)))
    torch.testing.assert_close(draw.log_p, -draw.kl.sum(1))
    torch.testing.assert_close(latent.log_prob(draw.z), draw.log_p)
    assert torch.equal(draw.log_q, torch.zeros(5))


LEVELS = [(count,) for count in range(2, 17)] + [
    tuple(torch.randint(2, 9, (length,), generator=seeded(seed)).tolist())
    for seed, length in zip(range(200), itertools.cycle((1, 2, 3, 4)))
]


def test_finite_scalars_have_every_value_once():
    """For every L from 2 to 16 and 200 tuples of levels: K = prod(L) values; codes and z are each other's inverse."""
    for levels in LEVELS:
        latent = vl.FiniteScalarQuantizer((len(levels),), levels)
        codes = torch.arange(math.prod(levels))[:, None]
        z = latent.embed(codes)
        assert len(z.unique(dim=0)) == latent.num_codes == math.prod(levels)
        assert torch.equal(latent.codes_of(z), codes)
        assert z.min() == -1
        assert z.max() <= 1


def test_finite_scalars_reach_every_code_and_no_other():
    """The encoder's side: each code is what some features round to, and no feature, however large, leaves the grid."""
    for levels in LEVELS[:60]:
        latent = vl.FiniteScalarQuantizer((len(levels),), levels)
        each = torch.tensor([-1e30, *torch.linspace(-8, 8, 1601).tolist(), 1e30])
        for channel, count in enumerate(levels):
            features = torch.zeros(len(each), len(levels))
            features[:, channel] = each
            found = latent.point(features)[:, channel]
            assert len(found.unique()) == count, (levels, channel)
            assert (found.diff() >= 0).all()
        middle = torch.tensor([count // 2 for count in levels])
        assert (latent.encoded(torch.zeros(1, len(levels))) == (middle * latent._places).sum()).all()


def test_finite_scalars_are_those_of_the_article():
    """Mentzer et al., appendix A.1, in float64, with the inverse of tanh where it prints tan."""
    levels = torch.tensor([8, 5, 4, 2, 7], dtype=torch.float64)
    latent = vl.FiniteScalarQuantizer((5,), (8, 5, 4, 2, 7))
    x = 3 * torch.randn(500, 5, generator=seeded(), dtype=torch.float64)
    half = (levels - 1) * (1 + 1e-3) / 2
    offset = torch.where(levels % 2 == 1, 0.0, 0.5)
    wanted = (torch.tanh(x + torch.atanh(offset / half)) * half - offset).round() / (levels // 2)
    torch.testing.assert_close(latent.point(x), wanted)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_autocast_changes_no_code(name):
    torch.manual_seed(0)
    latent = QUANTIZERS[name]().eval()
    features = 2 * features_for(latent, 200)
    plain = latent.draw(features, torch.empty(200, 0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = latent.draw(features, torch.empty(200, 0))
        assert torch.equal(latent.encoded(features), plain.codes)
    assert torch.equal(mixed.codes, plain.codes)
    assert torch.equal(mixed.z, plain.z)


def test_straight_through():
    rows, vectors = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    weights = torch.randn(4, 3)
    out = straight_through(rows, vectors)
    (out * weights).sum().backward()
    assert torch.equal(out, vectors)
    assert torch.equal(rows.grad, weights)
    assert vectors.grad is None


def rotation_of(row, vector):
    """Of Fifty et al., equation 4, in full: R = I - 2 r r^T + 2 e z^T, times |vector| / |row|."""
    z, e = row / row.norm(), vector / vector.norm()
    r = (z + e) / (z + e).norm()
    turn = torch.eye(len(row), dtype=row.dtype) - 2 * torch.outer(r, r) + 2 * torch.outer(e, z)
    return vector.norm() / row.norm() * turn


def test_the_rotation_gradient_is_its_formula():
    rows = torch.randn(20, 5, dtype=torch.float64, generator=seeded(), requires_grad=True)
    vectors, weights = (torch.randn(20, 5, dtype=torch.float64, generator=seeded(seed)) for seed in (1, 2))
    out = rotated(rows, vectors)
    (out * weights).sum().backward()
    assert torch.equal(out, vectors)
    copy = rows.detach().clone().requires_grad_()
    for row, vector, weight in zip(copy, vectors, weights, strict=True):
        turned = rotation_of(row.detach(), vector) @ row
        torch.testing.assert_close(turned, vector)
        (turned * weight).sum().backward()
    torch.testing.assert_close(rows.grad, copy.grad)


def test_a_rotation_that_is_not_unique_is_straight_through():
    vector = torch.tensor([0.6, 0.8])
    rows = torch.stack([torch.zeros(2), -vector, -2 * vector, vector]).requires_grad_()
    vectors = torch.stack([vector, vector, vector, torch.zeros(2)])
    weights = torch.randn(4, 2)
    (rotated(rows, vectors) * weights).sum().backward()
    torch.testing.assert_close(rows.grad, weights)
