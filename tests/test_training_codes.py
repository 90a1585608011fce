"""The Trainer with quantised latents: codebooks follow each step once, and their state is the run's."""

import csv
import math

import pytest
import torch
from runs import Watch, fit, images_of, tiny, weights
from torch import nn

import vaelib as vl

X = images_of(64) / 255
LATENTS = {
    "vector": lambda: vl.VectorQuantizer((2, 2, 2), 8),
    "by gradient": lambda: vl.VectorQuantizer((2, 2, 2), 8, decay=None, gradient="rotation"),
    "residual": lambda: vl.ResidualQuantizer((2, 2, 2), 4, depth=2),
    "scalar": lambda: vl.FiniteScalarQuantizer((2, 2, 2), (5, 4)),
    "binary": lambda: vl.BinarySphericalQuantizer((3, 2, 2), entropy=0.0),  # whose average is over a piece
    "with a table": lambda: vl.VectorQuantizer((2, 2, 2), 8, prior=vl.CodeTable(8, 4)),
}


def quantised(latent="vector", **kwargs):
    torch.manual_seed(0)
    return tiny(latent_dim=None, latent=LATENTS[latent](), **kwargs)


def book_of(model):
    return model.latent.codebooks[0]


@pytest.mark.parametrize("latent", LATENTS)
def test_accumulated_pieces_are_one_batch(latent):
    """K-means of the first step, running means, restarts, gradients: all of 4 x 16 images as of 64."""
    models = [quantised(latent, norm="group").double() for _ in range(2)]
    for model, accumulate in zip(models, (1, 4), strict=True):
        fit(model, X.double(), objective=InDouble(), batch_size=64, max_epochs=6, accumulate=accumulate)
    torch.testing.assert_close(*map(weights, models), rtol=1e-6, atol=1e-8)


class InDouble(vl.Elbo):
    def forward(self, model, x, *, step=0, generator=None):
        return super().forward(model, x.double(), step=step, generator=generator)


def test_the_penalty_is_a_column(tmp_path):
    record = fit(quantised(), X, X, output_dir=tmp_path)[-1]
    assert record.train._fields == record.val._fields == ("loss", "reconstruction", "kl", "penalty")
    assert record.val.kl == pytest.approx(4 * math.log(8))
    assert record.val.penalty > 0 and record.val.loss == pytest.approx(sum(record.val[1:]), rel=1e-5)
    assert record.criterion == record.val.reconstruction + record.val.kl
    with (tmp_path / "history.csv").open() as stream:
        assert float([*csv.DictReader(stream)][-1]["val_penalty"]) == pytest.approx(record.val.penalty)
    assert not (tmp_path / "traversals").exists()  # there is nothing between codes


def test_codes_in_mixed_precision_are_those_of_float32():
    model = quantised()
    record = fit(model, X, X, precision="bf16", max_epochs=3)[-1]
    draw = model.draw(model.observe(X))
    assert torch.equal(draw.z, model.latent.embed(draw.codes)) and draw.z.dtype == torch.float32
    assert record.skipped == 0 and record.val.penalty > 0


def test_the_average_has_the_codebook_of_now():
    def look(run):
        same = torch.equal(book_of(run.evaluated).weight, book_of(run.model).weight)
        return same, torch.equal(run.evaluated.encoder.head.weight, run.model.encoder.head.weight)

    watch = Watch(look)
    fit(quantised(), X, X, vl.EMA(0.9), watch)
    assert watch.seen == [(True, False)] * 8


class Poisoned(vl.Elbo):
    """Not finite in the given steps."""

    def __init__(self, *steps):
        super().__init__()
        self.steps = steps

    def forward(self, model, x, *, step=0, generator=None):
        terms = super().forward(model, x, step=step, generator=generator)
        if step not in self.steps:
            return terms
        model.draw(model.observe(x * math.inf))
        return terms._replace(loss=terms.loss * math.nan)


def test_a_skipped_step_leaves_the_codebook_as_it_was():
    """The first step too: k-means starts with the next one."""
    watch, model = Watch(lambda run: weights(book_of(run.model))), quantised()
    before = weights(book_of(model))
    history = fit(model, X, None, watch, objective=Poisoned(0, 3), max_epochs=2)
    assert history[-1].skipped == 2
    states = [before, *watch.seen]
    moved = [not torch.equal(*pair) for pair in zip(states, watch.seen, strict=False)]
    assert moved == [step not in (0, 3) for step in range(8)]
    assert states[2][: -8 * 2].isfinite().all() and book_of(model).counts.sum() == pytest.approx(64, rel=0.01)


class Follower(nn.Identity):
    """Notes its calls; its own parts are its own affair."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def after_step(self, reduce, generator, moved):
        self.calls.append((reduce, torch.rand((), generator=generator).item(), moved))


def test_each_follower_is_called_once_a_step_with_draws_of_the_seed_and_the_step():
    calls = []
    for seed in (0, 0, 1):
        model = tiny()
        model.decoder.follower = Follower()
        model.decoder.follower.inner = Follower()
        fit(model, X, objective=Poisoned(2), seed=seed)
        calls.append(model.decoder.follower.calls)
        assert model.decoder.follower.inner.calls == []
    assert calls[0] == calls[1] != calls[2]
    assert [(reduce, moved) for reduce, _, moved in calls[0]] == [(None, step != 2) for step in range(8)]
    assert len({draw for _, draw, _ in calls[0]}) == 8
