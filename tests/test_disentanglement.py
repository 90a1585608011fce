"""Each score on small codes whose score is known from its definition."""

import math
import sys

import pytest
import torch
from runs import seeded

import vaelib as vl
from vaelib.errors import MissingExtraError
from vaelib.evaluation import (
    beta_vae_score,
    dci,
    disentanglement,
    embed,
    encode,
    factor_vae_score,
    mig,
    modularity,
    modularity_chance,
    sap,
)
from vaelib.evaluation.disentanglement import _balanced_accuracies, _concentration
from vaelib.evaluation.factors import _alike, _differences, _steadiest, bootstrapped

GRID = torch.cartesian_prod(torch.arange(4), torch.arange(3)).repeat(20, 1)
BITS = torch.cartesian_prod(torch.arange(2), torch.arange(2)).repeat(50, 1)
SCORES = {
    "mig": mig,
    "sap": sap,
    "dci": dci,
    "beta_vae": beta_vae_score,
    "factor_vae": factor_vae_score,
    "modularity": modularity,
}


def rotated(codes, degrees):
    turn = torch.tensor(math.radians(degrees))
    matrix = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()]).view(2, 2)
    return codes.float() @ matrix


def scores_of(name, codes, factors, num_resamples=2, **options):
    """By name; ``dci`` gives three."""
    found = SCORES[name](codes, factors, num_resamples=num_resamples, generator=seeded(), **options)
    return found._asdict() if name == "dci" else {name: found}


def values_of(name, codes, factors):
    return {score: estimate.value for score, estimate in scores_of(name, codes, factors).items()}


@pytest.mark.parametrize("name", SCORES)
def test_one_latent_a_factor_is_best(name):
    """In whatever order, sign and scale, with a dead latent between."""
    codes = torch.stack([-3.0 * GRID[:, 1], 0.1 * torch.ones(len(GRID)), 0.5 * GRID[:, 0] + 7], dim=1)
    dead_counts_zero = 2 / 3 if name == "modularity" else 1.0
    for found in values_of(name, codes, GRID).values():
        assert found == pytest.approx(dead_counts_zero, abs=1e-3)


@pytest.mark.parametrize("name", SCORES)
def test_a_rotation_entangles(name):
    """The two that ask which latent answers most, and trees on all latents, don't notice 30 degrees."""
    factors = torch.stack([torch.randint(8, (500,)), torch.randint(8, (500,))], dim=1)
    codes = factors - 3.5
    straight, turned = (values_of(name, rotated(codes, degrees), factors) for degrees in (0, 30))
    for score, found in turned.items():
        if score in ("beta_vae", "factor_vae", "informativeness"):
            assert straight[score] - 0.1 < found <= straight[score] + 0.01
        else:
            assert found < straight[score] - 0.2
    if name in ("beta_vae", "factor_vae"):
        assert values_of(name, rotated(codes, 45), factors)[name] < 0.75


@pytest.mark.parametrize("name", SCORES)
def test_constant_codes_tell_nothing(name):
    chance = 0.5 if name in ("beta_vae", "factor_vae") else 0.0
    for found in values_of(name, torch.full((len(GRID), 3), 0.1), GRID).values():
        assert found == pytest.approx(chance, abs=1e-3)


@pytest.mark.parametrize("name", SCORES)
def test_codes_of_nothing_score_low(name):
    factors = torch.stack([torch.randint(4, (2000,)), torch.randint(3, (2000,))], dim=1)
    limits = {"beta_vae": 0.65, "factor_vae": 0.65, "modularity": 0.8, "disentanglement": 0.15}
    for score, found in values_of(name, torch.randn(2000, 4), factors).items():
        assert found < limits.get(score, 0.1)  # plug-in information of nothing is positive: modularity's weakness


def test_mig_by_hand():
    """Of the sum of two bits each bit has 1/2 ln 2 nats: H(sum) - H(other) = 3/2 ln 2 - ln 2, of H = ln 2."""
    a, b = BITS.unbind(1)
    assert mig(torch.stack([a, a + b], 1).float(), BITS, num_resamples=2).value == pytest.approx((0.5 + 0.5) / 2)
    assert mig(torch.stack([a, b, a + b], 1).float(), BITS, num_resamples=2).value == pytest.approx(0.5)
    assert mig(torch.stack([a + b, a - b], 1).float(), BITS, num_resamples=2).value == pytest.approx(0.0, abs=1e-12)


def test_modularity_by_hand():
    """Twice a and then b, exactly decoded, knows both fully: 0; with a alone: the mean of 1 and 0.

    The sum of three values of a and two of b: information 1.0114 - 0.6931 about a and 1.4751 - ln 3 about b in nats.
    """
    a, b = BITS.unbind(1)
    assert modularity(torch.stack([a, 2 * a + b], 1).float(), BITS, num_resamples=2).value == pytest.approx(0.5)
    factors = torch.cartesian_prod(torch.arange(3), torch.arange(2)).repeat(20, 1)
    total = factors.sum(1)  # 0, 1, 2, 3 with chances 1, 2, 2, 1 of 6
    entropy = -(2 / 6 * math.log(1 / 6) + 4 / 6 * math.log(2 / 6))
    of_a, of_b = entropy - math.log(2), entropy - math.log(3)
    expected = 1 - (min(of_a, of_b) / max(of_a, of_b)) ** 2
    codes = torch.stack([total, total], 1).float()
    assert modularity(codes, factors, num_resamples=2).value == pytest.approx(expected)


def test_modularity_of_noise_is_its_chance_level_and_not_0():
    """shapes' own factors: the published score of codes of pure noise, which a reader would take for a good one."""
    factors = vl.data.shapes(2000, image_size=8, seed=0).factors
    noise = torch.randn(2000, 10)
    found = modularity(noise, factors, generator=seeded())
    assert 0.6 < found.value < 0.8
    chance = modularity_chance(noise, factors, generator=seeded(1))
    assert found.value == pytest.approx(chance.value, abs=4 * chance.standard_error)
    again = [modularity(torch.randn(2000, 10), factors, num_resamples=2).value for _ in range(20)]
    assert torch.tensor(again).std().item() == pytest.approx(chance.standard_error, rel=0.5)
    told = factors.float() + 0.01 * noise[:, :5]
    assert modularity(told, factors).value > modularity_chance(told, factors).value + 0.15
    for wrong, error, match in (
        ({"num_permutations": 1}, ValueError, "`num_permutations` must be >= 2, got 1"),
        ({"num_permutations": 2.0}, TypeError, "`num_permutations` must be an int"),
    ):
        with pytest.raises(error, match=match):
            modularity_chance(noise, factors, **wrong)


def test_sap_by_hand():
    """R^2 of a + b with each bit is 1/2. By thresholds, the sum 1 leaves one of two guesses: 3 in 4 are right."""
    a, b = BITS.unbind(1)
    codes = torch.stack([a, a + b], 1).float()
    assert sap(codes, BITS, num_resamples=2).value == pytest.approx((0.5 + 0.5) / 2)
    # Of b: a guesses (1/2), the sum is right in 3 of 4.
    found = sap(codes, BITS, categorical=[0, 1], num_resamples=2).value
    assert found == pytest.approx(((1 - 0.75) + (0.75 - 0.5)) / 2)


def test_sap_of_classes_is_balanced_and_needs_no_order():
    """The classes 0, 2, 1 along the latent, one of them rare: told apart all the same, over 1/3 by guessing."""
    factor = torch.tensor([0] * 90 + [2] * 6 + [1] * 60)
    codes = torch.stack([torch.tensor([0.0] * 90 + [1.0] * 6 + [2.0] * 60), torch.zeros(156)], dim=1)
    other = torch.arange(156) % 2
    factors = torch.stack([factor, other], dim=1)
    balanced = _balanced_accuracies(codes.double(), factor)
    assert balanced.tolist() == pytest.approx([1.0, 1 / 3])
    gap_of_other = (lambda r: (r[0] - r[1]).abs())(_balanced_accuracies(codes.double(), other))
    found = sap(codes, factors, categorical=[0, 1], num_resamples=2).value
    assert found == pytest.approx((1 - 1 / 3 + gap_of_other.item()) / 2)


def test_dci_by_hand():
    """Importances (3 of 4, 1 of 4; 0, 1) of two latents for two factors: entropies in bits are 0.8113 and so on."""
    importances = torch.tensor([[0.75, 0.0], [0.25, 1.0]], dtype=torch.float64)

    def entropy(p):
        return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))

    found = _concentration(importances)
    assert found[0] == pytest.approx((0.75 * 1 + 1.25 * (1 - entropy(0.2))) / 2)
    assert found[1] == pytest.approx(((1 - entropy(0.75)) + 1) / 2)


def test_dci_of_a_factor_split_over_latents_is_disentangled_but_incomplete():
    """Four values as two bits, each its own latent, beside a factor with one."""
    four, three = GRID.unbind(1)
    codes = torch.stack([four // 2, four % 2, three], dim=1).float()
    found = dci(codes, GRID, num_resamples=2, generator=seeded())
    assert found.disentanglement.value == pytest.approx(1.0, abs=0.01)
    bits = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2)) / math.log(
        3
    )  # of the variance 5/4, one bit has 1, the other 1/4
    assert found.completeness.value == pytest.approx(1 - bits / 2, abs=0.01)
    assert found.informativeness.value == pytest.approx(1.0, abs=0.01)


def test_groups_share_exactly_one_factor():
    factors = torch.stack([torch.randint(3, (200,)), torch.randint(40, (200,))], dim=1)
    for factor in factors.unbind(1):
        groups = _alike(factor, 500, 8, seeded())
        assert (factor[groups] == factor[groups[:, :1]]).all()
        assert len(groups.unique()) > 190
    counts = factor[_alike(factor, 20_000, 1, seeded())].flatten().bincount().double() / 20_000
    torch.testing.assert_close(counts, factor.bincount() / 200.0, rtol=0, atol=0.01, check_dtype=False)


def test_points_of_the_interventions():
    """Codes that are the factors: a shared factor leaves no difference, the others their mean difference."""
    codes = GRID.double()
    points, names = _differences(codes, GRID, seeded())
    assert points.shape == (400, 2) and names.bincount().tolist() == [200, 200]
    assert (points[range(400), names] == 0).all()
    expected = torch.tensor([20 / 16, 8 / 9], dtype=torch.float64)  # mean |i - j| over 4 and over 3 values
    torch.testing.assert_close(points[range(400), 1 - names].view(2, 200).mean(1).flip(0), expected, rtol=0.05, atol=0)
    steady, names = _steadiest(codes, GRID, seeded())
    assert (steady == names).all()


def test_a_collapsed_latent_gets_no_vote():
    """A latent of tiny variance that follows a factor exactly would win every vote about it."""
    codes = torch.stack([GRID[:, 0] * 1e-3, GRID[:, 0] + 0.3 * torch.randn(len(GRID)), GRID[:, 1].float()], dim=1)
    steady, _ = _steadiest(codes.double(), GRID, seeded())
    assert 0 not in steady


def test_errors_are_those_of_the_bootstrap():
    """Of a mean, the standard error is known."""
    codes = torch.randn(240, 2, dtype=torch.float64)
    means = bootstrapped(lambda codes, factors: codes.mean(0).tolist(), codes, GRID, 400, seeded())
    for estimate, column in zip(means, codes.T, strict=True):
        assert estimate.value == pytest.approx(column.mean().item())
        assert estimate.standard_error == pytest.approx(column.std().item() / 240**0.5, rel=0.15)


def test_halves_stay_apart():
    """Or a predictor would be asked what it has learned."""

    def shared(codes, factors):
        learned, asked = codes[:50].unique(), codes[50:].unique()
        return [float(len(set(learned.tolist()) & set(asked.tolist())))]

    codes = torch.arange(100.0)[:, None]
    assert bootstrapped(shared, codes, codes, 5, seeded())[0] == (0.0, 0.0)


def test_a_model_on_shapes_and_its_codes():
    class Oracle(torch.nn.Module):
        """Reads the corners that the factors were written into."""

        def forward(self, x):
            mu = x[:, 0, 0, :5] * 255
            return mu, torch.full_like(mu, -20.0)

    data = vl.data.shapes(300, image_size=8)
    images = data.images.clone()
    images[:, 0, 0, :5] = data.factors.to(torch.uint8)
    vae = vl.conv_vae((1, 8, 8), 5, hidden_channels=(4,)).train()
    vae.encoder = Oracle()
    written = data.replace(images)
    options = {"categorical": [0], "num_resamples": 2}
    report = disentanglement(vae, written, data.factors, **options, generator=seeded())
    assert report.num_images == 300 and vae.training
    for name in ("disentanglement", "completeness", "beta_vae", "factor_vae"):
        assert getattr(report, name).value > 0.95, name
    assert report.sap.value == pytest.approx((4 + 1 - 1 / 3) / 5, abs=0.08)
    assert torch.equal(embed(vae, [written.batch(slice(None))]), embed(vae, written))


def test_vaes_autoencoders_and_latent_maps_are_scored_by_their_codes():
    x = torch.rand(len(GRID), 1, 8, 8)
    vae = vl.conv_vae((1, 8, 8), latent_shape=(1, 2, 2), hidden_channels=(4, 4))
    expected = mig(encode(vae, x)[0].flatten(1), GRID, num_resamples=2, generator=seeded())
    for model in (vae, vl.AutoEncoder(vae.encoder, vae.decoder)):
        assert disentanglement(model, x, GRID, num_resamples=2, generator=seeded()).mig == expected


@pytest.mark.parametrize("score", SCORES.values())
@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda f, z: f(z[:, 0], GRID), ValueError, r"`codes` must have shape \(N, D\)"),
        (lambda f, z: f(z, GRID[:9]), ValueError, r"`factors` must have shape \(240, F\)"),
        (lambda f, z: f(z.log(), GRID), ValueError, "`codes` must be finite"),
        (lambda f, z: f(z, GRID.float()), TypeError, r"`factors` must be integers, got dtype torch\.float32"),
        (lambda f, z: f(z[:, :1], GRID), ValueError, "at least 2 latents and 2 factors, got 1 and 2"),
        (
            lambda f, z: f(z, GRID * torch.tensor([1, 0])),
            ValueError,
            r"`factors` must take at least 2 values, got \[4, 1\]",
        ),
        (lambda f, z: f(z, GRID, num_resamples=1), ValueError, "`num_resamples` must be >= 2"),
    ],
)
def test_wrong_arguments(score, call, error, match):
    codes = torch.randn(len(GRID), 2)
    with pytest.raises(error, match=match):
        call(score, codes)


@pytest.mark.parametrize("score", [sap, dci])
def test_a_class_that_is_no_factor_is_named(score):
    with pytest.raises(ValueError, match=r"`categorical` must be indices of the 2 factors, got \[2\]"):
        score(torch.randn(len(GRID), 2), GRID, categorical=[2])


@pytest.mark.parametrize("score", [dci, beta_vae_score])
def test_a_missing_scikit_learn_is_named(score, monkeypatch):
    for part in ("ensemble", "linear_model", "tree"):
        monkeypatch.setitem(sys.modules, f"sklearn.{part}", None)
    with pytest.raises(MissingExtraError, match=r"Scores that train a predictor needs?.*vaelib\[metrics\]"):
        score(GRID.float(), GRID)


@pytest.mark.parametrize("name", SCORES)
def test_a_rare_value_may_be_missing_from_a_half_or_a_resample(name):
    """One image of a hundred has the second value, so most halves hold none of it."""
    factors = torch.stack([torch.arange(100) % 4, (torch.arange(100) == 99).long()], dim=1)
    options = {"categorical": [1]} if name in ("sap", "dci") else {}
    codes = torch.randn(100, 3, generator=seeded())
    for score in scores_of(name, codes, factors, num_resamples=5, **options).values():
        assert 0 <= score.value <= 1 and score.standard_error >= 0  # neither is NaN


def test_codes_of_an_autoencoder_have_no_scale():
    data = vl.data.shapes(120, image_size=8)
    model = vl.AutoEncoder(vl.ConvEncoder((1, 8, 8), 3, hidden_channels=(4,)), vl.ConvDecoder(3, (1, 8, 8)))
    whole = disentanglement(model, data, data.factors, num_resamples=2, generator=seeded())

    class Small(torch.nn.Module):
        image_shape, latent_shape = (1, 8, 8), (3,)

        def __init__(self, encoder):
            super().__init__()
            self.encoder = encoder

        def forward(self, x):
            return 2**-20 * self.encoder(x)[0]

    small = vl.AutoEncoder(Small(model.encoder), model.decoder)
    scaled = disentanglement(small, data, data.factors, num_resamples=2, generator=seeded())
    assert scaled.factor_vae == whole.factor_vae
