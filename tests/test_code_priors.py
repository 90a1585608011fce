"""Priors over codes are distributions: they sum to one, and what is drawn from noise has their frequencies."""

import itertools
import math

import pytest
import torch
from torch import distributions as td

import vaelib as vl
from vaelib.priors.codes import codes_at

CODES, POSITIONS = 3, 4


SMALL = {"width": 8, "num_blocks": 2, "num_heads": 2}


def stirred(prior):
    """With weights that are not those of a new prior."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return prior.eval()


MADE = {
    "uniform": vl.UniformCodes,
    "table": vl.CodeTable,
    "autoregressive": lambda *size: vl.AutoregressiveCodes(*size, **SMALL),
    "conditional": lambda *size: vl.AutoregressiveCodes(*size, **SMALL, condition_size=3),
}


@pytest.fixture(params=MADE)
def prior(request):
    """Each prior with weights of its own, that with a condition given one for all rows."""
    made = stirred(MADE[request.param](CODES, POSITIONS)).double()
    return made.given(torch.tensor([[0.0, 1.0, 0.0]])) if request.param == "conditional" else made


def every_sequence():
    """All K^N sequences of codes, ``(K^N, N)``."""
    return torch.tensor([*itertools.product(range(CODES), repeat=POSITIONS)])


@torch.no_grad()
def test_probabilities_of_all_sequences_sum_to_one(prior):
    codes = every_sequence()
    assert prior.log_prob(codes).shape == codes.shape
    assert prior.log_prob(codes).sum(1).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@torch.no_grad()
def test_draws_have_these_probabilities(prior):
    """Chi-square of all sequences, below its 0.999 quantile for 80 degrees of freedom."""
    codes, count = every_sequence(), 40_000
    drawn = prior.from_noise(torch.randn(count, POSITIONS, generator=torch.Generator().manual_seed(1)))
    assert drawn.dtype == torch.int64
    digits = CODES ** torch.arange(POSITIONS - 1, -1, -1)
    found = torch.bincount((drawn * digits).sum(1), minlength=len(codes))
    expected = count * prior.log_prob(codes).sum(1).exp()
    assert ((found - expected) ** 2 / expected).sum() < 124.8


@torch.no_grad()
def test_a_draw_is_the_loop_over_the_next_logits(prior):
    noise = torch.randn(50, POSITIONS, generator=torch.Generator().manual_seed(2))
    codes = torch.zeros(50, POSITIONS, dtype=torch.int64)
    for i in range(POSITIONS):
        logits = prior.next_logits(codes, torch.full((50,), i))
        assert logits.shape == (50, CODES)
        codes[:, i] = codes_at(logits, noise[:, i : i + 1])[:, 0]
        log_prob = logits.log_softmax(1).gather(1, codes[:, i : i + 1])
        torch.testing.assert_close(log_prob, prior.log_prob(codes)[:, i : i + 1])
    assert torch.equal(prior.from_noise(noise), codes)
    assert torch.equal(prior.from_noise(noise), prior.from_noise(noise))
    assert torch.equal(prior.from_noise(noise[:1]), codes[:1])
    assert prior.from_noise(noise[:0]).shape == (0, POSITIONS)


def test_a_code_is_the_first_whose_cumulative_probability_exceeds_the_quantile():
    """Exact at quantiles in the middle of each code's interval, and at the ends."""
    probabilities = torch.rand(20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.01
    probabilities /= probabilities.sum(1, keepdim=True)
    middle = probabilities.cumsum(1) - probabilities / 2
    assert torch.equal(codes_at(probabilities.log(), td.Normal(0, 1).icdf(middle)), torch.arange(7).expand(20, 7))
    inside = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).log()
    ends = torch.tensor([[-40.0, -math.inf, 40.0, math.inf]])
    assert codes_at(inside, ends).tolist() == [[1, 1, 2, 2]]


def test_the_uniform_prior_costs_ln_k_a_code():
    prior, codes = vl.UniformCodes(512, 49), torch.randint(512, (5, 49))
    assert torch.equal(-prior.log_prob(codes), torch.full((5, 49), math.log(512)))
    assert torch.equal(-prior.double().log_prob(codes), torch.full((5, 49), math.log(512), dtype=torch.float64))
    noise = torch.randn(5, 49)
    assert torch.equal(prior.from_noise(noise), (512 * torch.special.ndtr(noise.double())).long())


@pytest.mark.parametrize("name", ["table", "autoregressive", "conditional"])
def test_a_prior_is_uniform_when_it_is_made(name):
    prior, codes = MADE[name](CODES, POSITIONS), every_sequence()
    view = prior.given(torch.rand(1, 3)) if name == "conditional" else prior
    assert torch.equal(view.log_prob(codes), torch.zeros(1, CODES).log_softmax(1)[0, 0].expand(codes.shape))


@torch.no_grad()
def test_a_later_code_does_not_change_an_earlier_probability(prior):
    codes = every_sequence()
    log_prob = prior.log_prob(codes)
    for i in range(POSITIONS):
        others = codes.clone()
        others[:, i] = (others[:, i] + 1) % CODES
        assert torch.equal(prior.log_prob(others)[:, :i], log_prob[:, :i])
        position = torch.full((len(codes),), i)
        assert torch.equal(prior.next_logits(others, position), prior.next_logits(codes, position))


@torch.no_grad()
def test_an_earlier_code_changes_the_later_probabilities():
    prior = stirred(MADE["autoregressive"](CODES, POSITIONS))
    first = prior.log_prob(torch.tensor([[0, 1, 1, 1], [2, 1, 1, 1]]))
    assert (first[0, 1:] - first[1, 1:]).abs().min() > 1e-4


@torch.no_grad()
def test_a_condition_of_b_rows_serves_the_rows_of_k_draws():
    prior, embedding = stirred(MADE["conditional"](CODES, POSITIONS)), torch.eye(3)
    codes, noise = every_sequence()[:6], torch.randn(6, POSITIONS, generator=torch.Generator().manual_seed(0))
    view, rows = prior.given(embedding), embedding.repeat(2, 1)
    assert torch.equal(view.log_prob(codes), prior.given(rows).log_prob(codes))
    assert torch.equal(view.from_noise(noise), prior.given(rows).from_noise(noise))
    position = torch.arange(6) % POSITIONS
    assert torch.equal(view.next_logits(codes, position), prior.given(rows).next_logits(codes, position))
    by_class = prior.given(embedding).log_prob(codes[:1].expand(3, -1))
    assert (by_class[0] - by_class[1]).abs().min() > 1e-4
    without = stirred(MADE["autoregressive"](CODES, POSITIONS))
    assert without.given(embedding) is without
    with pytest.raises(ValueError, match=r"`embedding` must have shape \(B, 3\), got \(2, 2\)"):
        prior.given(torch.zeros(2, 2))
    with pytest.raises(TypeError, match="`embedding` must be a torch.Tensor"):
        prior.given([0, 1, 0])
    with pytest.raises(ValueError, match="`condition` must have one row, or one for each of 5 images, got 3"):
        view.log_prob(codes[:5])
    for call in (lambda: prior.log_prob(codes), lambda: prior.from_noise(noise)):
        with pytest.raises(ValueError, match=r"`prior` has a condition: call its given\(embedding\)"):
            call()


@torch.no_grad()
def test_nats_under_autocast_are_those_of_full_precision():
    prior, codes = stirred(MADE["autoregressive"](CODES, POSITIONS)), every_sequence()
    expected = prior.log_prob(codes)
    with torch.autocast("cpu", torch.bfloat16):
        found = prior.log_prob(codes)
        logits = prior.next_logits(codes, torch.zeros(len(codes), dtype=torch.int64))
    assert found.dtype == logits.dtype == torch.float32
    assert not torch.equal(found, expected)  # the blocks are in bfloat16
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
    assert found.sum(1).exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def chain(count, generator):
    """Codes of a Markov chain that stays with probability 0.8, ``(count, POSITIONS)``, and its entropy in nats."""
    transition = torch.full((CODES, CODES), 0.1) + 0.7 * torch.eye(CODES)
    codes = [torch.randint(CODES, (count, 1), generator=generator)]
    for _ in range(POSITIONS - 1):
        codes.append(torch.multinomial(transition[codes[-1][:, 0]], 1, generator=generator))
    step = -(transition[0] * transition[0].log()).sum().item()
    return torch.cat(codes, dim=1), math.log(CODES) + (POSITIONS - 1) * step


def test_a_fitted_prior_reaches_the_entropy_of_a_markov_chain():
    generator = torch.Generator().manual_seed(0)
    (codes, entropy), (test, _) = chain(4000, generator), chain(4000, generator)
    torch.manual_seed(0)
    prior = vl.AutoregressiveCodes(CODES, POSITIONS, **SMALL)
    how = {"batch_size": 128, "generator": generator, "progress": False}
    fitted = vl.fit_prior(prior, codes, num_steps=200, learning_rate=0.02, **how)
    assert fitted is prior
    assert not fitted.training
    table = vl.fit_prior(vl.CodeTable(CODES, POSITIONS), codes, num_steps=50, **how)
    with torch.no_grad():
        rate = -fitted.log_prob(test).sum(1).mean().item()
        independent = -table.log_prob(test).sum(1).mean().item()
    assert rate == pytest.approx(entropy, abs=0.05)
    assert independent == pytest.approx(POSITIONS * math.log(CODES), abs=0.02)


class Biased(vl.priors.CodePrior):
    """One of a person's own: the condition is the logits of every code."""

    def __init__(self):
        super().__init__(CODES, POSITIONS)
        self.sharpness = torch.nn.Parameter(torch.zeros(()))

    def given(self, embedding):
        return td.Independent(td.Categorical(logits=self.sharpness * embedding[:, None].expand(-1, POSITIONS, -1)), 0)


def test_a_prior_of_ones_own_with_a_condition_is_fitted():
    labels = torch.arange(300) % 3
    codes, embedding = labels[:, None].expand(-1, POSITIONS).contiguous(), torch.eye(3)[labels]
    prior = vl.fit_prior(Biased(), codes, embedding=embedding, num_steps=20, learning_rate=0.2, progress=False)
    assert prior.sharpness > 1
    with pytest.raises(ValueError, match="`embedding` must be given: Biased has a condition"):
        vl.fit_prior(Biased(), codes)


@pytest.mark.parametrize("name", ["table", "autoregressive", "conditional"])
def test_a_prior_is_the_same_after_it_is_saved_and_loaded(name, tmp_path):
    prior = stirred(MADE[name](CODES, POSITIONS))
    vl.save(prior, tmp_path)
    again, codes, noise = vl.load(tmp_path), every_sequence(), torch.randn(5, POSITIONS)
    views = [it.given(torch.ones(1, 3)) if name == "conditional" else it for it in (prior, again)]
    assert torch.equal(views[0].log_prob(codes), views[1].log_prob(codes))
    assert torch.equal(views[0].from_noise(noise), views[1].from_noise(noise))
    assert repr(again) == repr(prior)


def model_of(prior=None, condition=None):
    torch.manual_seed(0)
    latent = vl.VectorQuantizer((2, 2, 2), CODES, prior)
    return vl.conv_vae((1, 8, 8), latent=latent, hidden_channels=(4, 4), norm="group", condition=condition).eval()


@pytest.mark.filterwarnings("ignore:`num_samples`")
def test_a_fitted_prior_is_the_rate_of_the_model():
    model, x = model_of(), torch.rand(20, 1, 8, 8)
    codes = vl.evaluation.encode(model, x)
    before = vl.evaluation.elbo(model, x)
    assert before.kl.value == pytest.approx(POSITIONS * math.log(CODES))
    prior = vl.fit_prior(
        MADE["autoregressive"](CODES, POSITIONS), codes, num_steps=50, learning_rate=0.02, progress=False
    )
    model.prior = prior
    found = vl.evaluation.elbo(model, x)
    with torch.no_grad():
        rate = -prior.log_prob(codes).sum(1).mean().item()
        assert torch.equal(model.sample(6, seed=1), model.sample(6, seed=1))
        noise = torch.randn(6, POSITIONS)
        assert torch.equal(model.latent.from_noise(noise), model.latent.embed(prior.from_noise(noise)))
    assert rate < before.kl.value - 0.5
    assert found.kl.value == pytest.approx(rate, rel=1e-6)
    assert found.reconstruction.value == before.reconstruction.value
    likelihood = vl.evaluation.log_likelihood(model, x, num_samples=64, progress=False)
    assert likelihood.log_likelihood.value == pytest.approx(found.elbo.value, rel=1e-5)


def test_a_models_condition_reaches_the_prior():
    prior = stirred(MADE["conditional"](CODES, POSITIONS))
    model, x, labels = model_of(prior, vl.Labels(3)), torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    view = model.given(labels)
    draw = view.draw(view.observe(x), num_samples=2)
    embedding = torch.eye(3)[labels]
    with torch.no_grad():
        assert torch.equal(draw.kl, -prior.given(embedding).log_prob(draw.codes))
        noise = torch.randn(6, POSITIONS)
        drawn = prior.given(embedding).from_noise(noise)
        assert torch.equal(view.latent.from_noise(noise), model.latent.embed(drawn))
    assert model.sample(4, condition=2, seed=0).shape == (4, 1, 8, 8)
    terms = vl.Elbo()(model.train().given(labels), x)
    terms.loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in prior.parameters())


CODE = torch.zeros(2, POSITIONS, dtype=torch.int64)
WRONG = [
    (lambda p: p.log_prob(CODE.float()), TypeError, "`codes` must be int64, got dtype torch.float32"),
    (lambda p: p.log_prob(CODE.int()), TypeError, "`codes` must be int64, got dtype torch.int32"),
    (lambda p: p.log_prob([[0] * POSITIONS]), TypeError, "`codes` must be a torch.Tensor"),
    (lambda p: p.log_prob(CODE[:, 1:]), ValueError, r"`codes` must have shape \(B, 4\), got \(2, 3\)"),
    (lambda p: p.log_prob(CODE + 3), ValueError, r"`codes` must have values in \[0, 3\), got \[3, 3\]"),
    (lambda p: p.log_prob(CODE - 1), ValueError, r"`codes` must have values in \[0, 3\), got \[-1, -1\]"),
    (lambda p: p.from_noise(torch.randn(2, 3)), ValueError, r"`noise` must have shape \(B, 4\), got \(2, 3\)"),
    (lambda p: p.from_noise(CODE), TypeError, "`noise` must be floating point"),
]


@pytest.mark.parametrize(("call", "error", "match"), WRONG)
def test_wrong_codes_and_noise(prior, call, error, match):
    with pytest.raises(error, match=match):
        call(prior)


def fitted(name="table", **arguments):
    return vl.fit_prior(MADE[name](CODES, POSITIONS), **{"z": CODE, "num_steps": 1, "progress": False} | arguments)


WRONG_FIT = [
    (lambda: fitted(z=CODE + 7), ValueError, r"`z` must have values in \[0, 3\), got \[7, 7\]"),
    (lambda: fitted(z=CODE.float()), TypeError, "`z` must be int64, got dtype torch.float32"),
    (lambda: fitted(z=CODE[:, 1:]), ValueError, r"`z` must have shape \(B, 4\), got \(2, 3\)"),
    (lambda: fitted(z=CODE[:0]), ValueError, "`z` must hold at least one latent, got none"),
    (lambda: fitted("uniform"), ValueError, "`prior` must have weights to fit, UniformCodes has none"),
    (lambda: fitted(progress=1), TypeError, "`progress` must be True or False"),
    (lambda: fitted(embedding=CODE), ValueError, "`embedding` must be None: CodeTable has no condition"),
    (lambda: fitted("conditional"), ValueError, "`embedding` must be given: Autoreg.* has a condition of 3 numbers"),
    (lambda: fitted("conditional", embedding=torch.zeros(3, 3)), ValueError, r"must have shape \(2, 3\), got \(3, 3\)"),
    (lambda: fitted("conditional", embedding=torch.zeros(2, 3) / 0), ValueError, "`embedding` must be finite"),
    (lambda: vl.CodeTable(0, 3), ValueError, "`num_codes` must be >= 1"),
    (lambda: vl.UniformCodes(3, 0), ValueError, "`num_positions` must be >= 1"),
    (lambda: vl.AutoregressiveCodes(3, 4, width=10), ValueError, "must be a multiple of `num_heads`, 4, got 10"),
]


@pytest.mark.parametrize(("call", "error", "match"), WRONG_FIT)
def test_wrong_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_a_transformer_brings_its_own_learning_rate():
    codes, weights = every_sequence(), []
    for rate in (None, 0.25 / SMALL["width"], 5e-3):
        torch.manual_seed(0)
        how = {"z": codes, "num_steps": 3, "generator": torch.Generator().manual_seed(0)}
        weights.append(fitted("autoregressive", learning_rate=rate, **how).head.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_fit_shows_its_progress_on_standard_error(capsys):
    fitted(progress=True)
    out, err = capsys.readouterr()
    assert not out
    assert "fit_prior" in err
    fitted()
    assert capsys.readouterr() == ("", "")
