"""What people expect of a trainer beside the loop, and what guards the weights."""

import logging
import math
import os

import pytest
import torch
from runs import PosteriorMean, Watch, fit, images_of, tiny, weights

import vaelib as vl
from vaelib.errors import MissingExtraError, TrainingError
from vaelib.training.callbacks import HOOKS, steps_until_constant
from vaelib.training.images import traversals


def parameters(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.fixture
def images():
    return images_of(48)


def test_events_come_in_order(images):
    events = []

    def noted(event):
        return lambda _, run: events.append((event, run.step, len(run.history), run.total_steps))

    fit(tiny(), images, None, type("Listener", (), {event: noted(event) for event in HOOKS})())
    first, second = (
        [("on_step", step, epoch, 6) for step in steps] for epoch, steps in enumerate(([1, 2, 3], [4, 5, 6]))
    )
    assert events == [
        *[("on_start", 0, 0, 6), *first, ("on_epoch", 3, 1, 6)],
        *[*second, ("on_epoch", 6, 2, 6), ("on_end", 6, 2, 6)],
    ]


def test_the_moving_average_is_the_one_of_the_formula_and_is_what_is_measured(images, tmp_path):
    model = tiny()
    path, measured = Watch(lambda run: parameters(run.model)), Watch(lambda run: weights(run.evaluated), "on_epoch")
    expected = parameters(model)
    fit(model, images, images, path, measured, vl.EMA(0.5), output_dir=tmp_path)
    for step, moved in enumerate(path.seen, 1):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * moved
    torch.testing.assert_close(parameters(model), expected)
    assert torch.equal(weights(model), measured.seen[-1])
    assert torch.equal(weights(vl.load(tmp_path / "last")), measured.seen[-1])


def test_early_stopping(images):
    stuck = {"learning_rate": 1e-30, "max_epochs": 20}
    assert len(fit(tiny(), images, images, vl.EarlyStopping(patience=2), **stuck)) == 3
    warm = vl.Elbo(beta=vl.linear_warmup(3 * 5))
    history = fit(tiny(), images, images, vl.EarlyStopping(patience=2), objective=warm, **stuck)
    assert len(history) == 6 + 2  # the sixth epoch is the first one beyond the warm-up, and the best
    learning = fit(tiny(), images, images, vl.EarlyStopping(patience=2, min_delta=1e6), max_epochs=20)
    assert len(learning) == 3
    with pytest.raises(ValueError, match="EarlyStopping, which needs `val` images"):
        fit(tiny(), images, None, vl.EarlyStopping())


def test_the_step_from_which_a_schedule_is_constant():
    assert steps_until_constant(vl.schedules.constant(1.0), 50) == 0
    assert steps_until_constant(vl.linear_warmup(10), 50) == 10
    assert steps_until_constant(lambda step: step, 50) == 49


def test_trackers(images, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = fit(tiny(), images, images, vl.Trackers("tensorboard", project="mine"), output_dir=tmp_path)
    events = EventAccumulator(str(tmp_path / "mine")).Reload()
    written = {event.step: event.value for event in events.Scalars("val_loss")}
    assert written == {record.step: pytest.approx(record.val.loss, rel=1e-6) for record in history}


def test_a_missing_tracker_is_named(images, monkeypatch):
    monkeypatch.setattr("vaelib.training.callbacks.filter_trackers", lambda names, directory: [])
    with pytest.raises(MissingExtraError, match=r"Tracking with wandb needs .*vaelib\[track\]"):
        fit(tiny(), images, None, vl.Trackers("wandb"))


def test_pictures(images, tmp_path):
    fit(tiny(), images, images, vl.Pictures(every=2), max_epochs=3, output_dir=tmp_path)
    for folder in ("reconstructions", "samples", "traversals"):
        assert sorted(os.listdir(tmp_path / folder)) == ["epoch_002.png", "epoch_003.png"]
    assert (tmp_path / "curves.png").stat().st_size > 1000
    model = tiny().eval()
    film = traversals(model, images[:1].float() / 255)
    assert film.shape == (14, 1, 8, 8)
    assert not torch.equal(film[0], film[6]) and not torch.equal(film[0], film[7])
    assert traversals(tiny(latent_dim=None, latent_shape=(2, 2, 2)), images[:1].float() / 255).shape[0] == 8 * 7
    coupled = tiny(prior=vl.MixtureOfGaussians((2,), 3))  # whose KL does not split over the two latents
    assert traversals(coupled, images[:1].float() / 255).shape == (14, 1, 8, 8)


def test_a_collapse_is_told_in_plain_words_once(images, tmp_path, caplog):
    strong = vl.Elbo(beta=200.0)
    fit(tiny(latent_dim=4), images, images, objective=strong, max_epochs=8, output_dir=tmp_path, learning_rate=0.02)
    said = [record.getMessage() for record in caplog.records if "latents carry" in record.getMessage()]
    assert said[-1].startswith("4 of 4 latents carry less than 0.01 nats after epoch")
    assert "the decoder ignores z" in said[-1] and "free_bits=0.1" in said[-1]
    assert 1 <= len(said) <= 2
    caplog.clear()
    fit(tiny(), images, objective=vl.Elbo(beta=0.01), output_dir=tmp_path / "alive")
    assert "latents carry" not in caplog.text


@pytest.mark.parametrize("accumulate", [2, 5])
def test_accumulated_gradients_are_those_of_the_whole_batch(accumulate, images):
    """Uneven pieces included: 48 images are steps of 16, pieces of 8 or of 3 and 4."""
    runs = []
    for pieces in (1, accumulate):
        model = tiny(norm="group").double()
        options = {"accumulate": pieces, "optimizer": torch.optim.SGD, "learning_rate": 1e-3}
        history = fit(model, images, objective=InDouble(), **options)
        runs.append((weights(model), history[-1].train.loss))
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=1e-10, atol=1e-12)
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-6)


class InDouble(PosteriorMean):
    def __call__(self, model, x, *, step=0, generator=None):
        return super().__call__(model, x.double(), step=step)


def one_step(images, **kwargs):
    model = tiny(norm="none")
    before = weights(model)
    options = {"max_epochs": 1, "lr_schedule": "constant", "optimizer": torch.optim.SGD, "learning_rate": 1e-3}
    history = fit(model, images[:16], objective=PosteriorMean(), **options, **kwargs)
    return (weights(model) - before) / 1e-3, history[-1]


def test_clipping_acts(images):
    plain, _ = one_step(images)
    norm = plain.norm()
    clipped, _ = one_step(images, clip_norm=float(norm) / 4)
    torch.testing.assert_close(clipped, plain / 4, rtol=1e-3, atol=1e-3)
    loose, _ = one_step(images, clip_norm=float(norm) * 4)
    torch.testing.assert_close(loose, plain)


def test_steps_above_a_norm_are_skipped(images):
    norm = float(one_step(images)[0].norm())
    _, record = one_step(images, skip_norm=norm * 1.1)
    assert record.skipped == 0
    with pytest.raises(TrainingError, match="1 steps in a row were skipped: the norm of their gradients was above"):
        one_step(images, skip_norm=norm * 0.9)


class Poisoned:
    """NaN from a network that has seen an infinity, in the given steps."""

    def __init__(self, *steps):
        self.steps = steps

    def __call__(self, model, x, *, step=0, generator=None):
        mu, logvar = model.encode(x * math.inf if step in self.steps else x)
        return vl.elbo_loss(x, model.decode(mu), mu, logvar)


@pytest.mark.parametrize("optimizer", ["adam", torch.optim.SGD])
def test_a_step_that_is_not_finite_leaves_no_trace(optimizer, images):
    """Weights, moments and running statistics are as before it; the steps and the loss of the others go on."""
    objective, watch = Poisoned(1, 4), Watch(lambda run: weights(run.model))
    history = fit(tiny(), images, None, watch, objective=objective, optimizer=optimizer, learning_rate=1e-3)
    states = watch.seen
    assert [record.skipped for record in history] == [1, 2]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[1], states[2])
    assert torch.equal(states[3], states[4]) and states[5].isfinite().all()
    assert math.isfinite(history[-1].train.loss)


def test_too_many_such_steps_end_the_run_with_names(images, tmp_path):
    model = tiny()
    many = images.repeat(20, 1, 1, 1)
    with pytest.raises(TrainingError) as caught:
        fit(model, many, None, objective=Poisoned(*range(70, 200)), output_dir=tmp_path, learning_rate=1e-3)
    message = str(caught.value)
    assert "Before step 100: 30 steps in a row were skipped: loss, reconstruction, kl not finite;" in message
    assert "gradient not finite in encoder." in message and " more. Try a smaller `learning_rate`" in message
    assert f"The last is {tmp_path / 'checkpoints' / 'step_0000000060'}" in message
    assert weights(model).isfinite().all()


def test_nothing_in_a_step_reads_a_tensor(images, monkeypatch):
    """The numbers of 41 steps are read at the end of the epoch, all at once. (Bernoulli checks x, on the CPU alone.)"""
    reads = []
    for name in ("item", "tolist", "numpy", "__float__", "__int__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, o=original, n=name: (reads.append(n), o(self))[1])
    watch = Watch(lambda run: len(reads))
    fit(tiny(likelihood=vl.Gaussian(0.5)), images.repeat(14, 1, 1, 1), None, watch, max_epochs=1)
    assert len(watch.seen) == 42 and watch.seen[0] == watch.seen[-2]


def test_mixed_precision_leaves_the_elbo_in_float32(images):
    seen = []

    class Seen(vl.Elbo):
        def __call__(self, model, x, **kwargs):
            out = model(x)
            seen.append((torch.is_autocast_enabled("cpu"), *(value.dtype for value in out)))
            return super().__call__(model, x, **kwargs)

    model = tiny()
    history = fit(model, images, images, objective=Seen(), precision="bf16")
    assert {True} <= {entry[0] for entry in seen}
    assert {dtype for entry in seen for dtype in entry[1:]} == {torch.float32}
    exact = fit(tiny(), images, images)
    assert history[0].train.loss == pytest.approx(exact[0].train.loss, rel=0.02)
    assert history[0].train.loss != exact[0].train.loss
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    fit(tiny(), images, precision="fp32")


COMPILED = {
    "plain": (dict, PosteriorMean, 1e-4),
    "codes": (lambda: {"latent_dim": None, "latent": vl.ResidualQuantizer((2, 2, 2), 4, depth=2)}, vl.Elbo, 1e-3),
    "labels": (lambda: {"condition": vl.Labels(3, names=("a", "b", "c"))}, PosteriorMean, 1e-4),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_run_follows_the_eager_one(name):
    (parts, objective, tolerance), runs = COMPILED[name], []
    data = vl.data.ImageDataset(images_of(64), condition=torch.arange(64) % 3 if name == "labels" else None)
    for compiled in (False, True):
        torch.manual_seed(0)  # the latent is made before the model, whose weights `tiny` seeds
        model = tiny(norm="group", **parts())
        history = fit(model, data, data, objective=objective(), compile=compiled, max_epochs=3)
        runs.append([record.val.loss for record in history])
    assert runs[1] == pytest.approx(runs[0], rel=tolerance)


def test_the_models_form_in_memory_is_given_back(images):
    model = tiny()
    fit(model, images)
    assert all(parameter.is_contiguous() and parameter.grad is None for parameter in model.parameters())
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_the_logger_is_left_alone():
    assert logging.getLogger("vaelib.training").handlers == []
