import collections
import csv
import functools
import math
import os

import pytest
import torch
from runs import Watch, fit, images_of, tiny, weights
from torch import nn
from torch.nn.utils import parameters_to_vector

import vaelib as vl
from vaelib.errors import TrainingError


@pytest.fixture
def images():
    return images_of(48)


def test_training_leaves_the_global_generator_alone(images):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,))
    torch.manual_seed(5)
    fit(model, images)
    assert torch.equal(torch.rand(3), expected)


def test_it_learns_and_the_scale_is_nats_per_image():
    train, test = vl.data.shapes(512, image_size=16), vl.data.shapes(128, image_size=16, seed=1)
    torch.manual_seed(0)
    history = fit(vl.conv_vae((1, 16, 16), 4), train, test, max_epochs=4)
    first, last = history[0].val, history[-1].val
    assert last.loss == pytest.approx(last.reconstruction + last.kl, rel=1e-5)
    assert last.loss < 0.75 * 256 * math.log(2)
    assert 10 < last.loss < first.loss
    assert history[-1].step == 4 * 32
    assert history[-1].learning_rate < 1e-4


def test_epoch_means_weigh_images_not_batches():
    """With frozen weights, the training means of uneven batches are those of the whole set."""
    model, x = tiny(norm="none"), torch.rand(7, 1, 8, 8)
    history = fit(model, [x[:6], x[6:]], x, max_epochs=1, learning_rate=1e-30)
    with torch.no_grad():
        kl = vl.kl_standard_normal(*model.encode(x)).mean().item()
    assert history[0].train.kl == pytest.approx(kl, rel=1e-5)
    assert history[0].val.kl == pytest.approx(kl, rel=1e-5)


def test_validation_uses_the_same_draws_and_the_final_beta(images):
    objective = vl.Elbo(beta=vl.linear_warmup(1000, final=4.0))
    for record in fit(tiny(), images, images, objective=objective, learning_rate=1e-30):
        expected = 4.0 * 5 / 1000  # the schedule at the run's last step
        assert record.val.loss == pytest.approx(record.val.reconstruction + expected * record.val.kl, rel=1e-4)


def test_best_without_validation_is_the_last(images, tmp_path):
    """Losses under a rising beta cannot be compared."""
    model = tiny()
    fit(model, images, objective=vl.Elbo(beta=vl.linear_warmup(100, final=50.0)), max_epochs=3, output_dir=tmp_path)
    assert torch.equal(weights(vl.load(tmp_path / "best")), weights(model))


def test_validation_of_a_cyclical_schedule_is_at_its_end_not_its_restart(images):
    objective = vl.Elbo(beta=vl.schedules.cyclical(3))
    for record in fit(tiny(), images, images, objective=objective, max_epochs=2):
        assert record.val.loss == pytest.approx(record.val.reconstruction + record.val.kl, rel=1e-4)


def test_writing_a_run_does_not_change_it(images, tmp_path):
    """To draw images no condition is dropped, which would be a draw."""
    x, labels = images.float() / 255, torch.arange(48) % 3
    loader = torch.utils.data.DataLoader(x, batch_size=16, shuffle=True)
    pairs = torch.utils.data.TensorDataset(x, labels)
    for kind, train in enumerate((vl.data.ImageDataset(x, dynamic=True), loader, pairs)):
        runs = []
        for output in (None, tmp_path / str(kind)):
            model = tiny(dropout=0.2, condition=vl.Labels(3, dropout=0.3) if train is pairs else None)
            fit(model, train, train, output_dir=output)
            runs.append(weights(model))
        assert torch.equal(*runs)


def test_files_of_a_run(images, tmp_path):
    model = tiny()
    history = fit(model, images, images, max_epochs=3, output_dir=tmp_path / "run")
    run = tmp_path / "run"
    pictures = ["reconstructions", "samples", "traversals"]
    files = [".vaelib-lock", ".vaelib-outputs.json", "best", "checkpoints", "curves.png", "history.csv", "last"]
    assert sorted(os.listdir(run)) == sorted([*files, *pictures])
    with (run / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["val_loss"]) for row in rows] == [record.val.loss for record in history]
    assert {"epoch", "step", "train_reconstruction", "train_kl", "val_kl", "learning_rate", "seconds"} <= {*rows[0]}
    for folder in pictures:
        assert sorted(os.listdir(run / folder)) == [f"epoch_00{i}.png" for i in (1, 2, 3)]
    assert torch.equal(weights(vl.load(run / "last")), weights(model))
    assert vl.load(run).image_shape == (1, 8, 8)
    assert not model.training


def test_best_is_the_lowest_validation_loss(images, tmp_path):
    def run(epochs):
        model = tiny()
        options = {"learning_rate": 0.6, "lr_schedule": "constant", "output_dir": tmp_path / str(epochs)}
        return model, fit(model, images, images, max_epochs=epochs, **options)

    _, history = run(5)
    losses = [record.val.loss for record in history]
    best = losses.index(min(losses)) + 1
    assert best < 5, "this learning rate is meant to be too large"
    saved = weights(vl.load(tmp_path / "5" / "best"))
    assert torch.equal(saved, weights(run(best)[0]))


class Scripted:
    """In validation the terms that are given for each epoch; in training the ELBO."""

    def __init__(self, *terms, per_step=0.0):
        self.terms, self.per_step, self.epoch = terms, per_step, 1

    def __call__(self, model, x, *, step=0, generator=None):
        if model.training:
            return vl.Elbo()(model, x, step=step)
        loss, *others = self.terms[self.epoch - 1]
        return type(self.terms[0])(
            torch.tensor(loss + self.per_step * step), *(torch.full((len(x),), value) for value in others)
        )

    def on_step(self, run):
        self.epoch = run.epoch


Elbo, Iwae, Plain = (
    functools.partial(collections.namedtuple, "Terms")(names)
    for names in ("loss reconstruction kl", "loss iwae reconstruction kl", "loss reconstruction mmd")
)
CHOICES = {
    # A loss at a small beta falls while the bound rises, one at a large beta rises while the bound falls.
    "a small beta": ("reconstruction + kl", 1, [Elbo(5.0, 4.0, 6.0), Elbo(4.0, 3.0, 9.0), Elbo(3.0, 2.0, 20.0)]),
    "a large beta": ("reconstruction + kl", 3, [Elbo(50.0, 20.0, 3.0), Elbo(60.0, 15.0, 4.0), Elbo(70.0, 10.0, 5.0)]),
    "many draws": ("iwae", 2, [Iwae(1.0, 9.0, 5.0, 5.0), Iwae(2.0, 8.0, 6.0, 6.0), Iwae(3.0, 8.5, 4.0, 4.0)]),
    "no KL": ("loss", 2, [Plain(7.0, 5.0, 1.0), Plain(6.0, 5.5, 0.1), Plain(6.5, 4.0, 2.0)]),
}


@pytest.mark.parametrize("name", CHOICES)
def test_best_is_chosen_by_the_bound_itself(name, images, tmp_path, capsys):
    compared, best, terms = CHOICES[name]
    objective, watch = Scripted(*terms), Watch(lambda run: weights(run.model), "on_epoch")
    parts = [objective, watch, vl.EarlyStopping(patience=2)]
    trainer = vl.Trainer(objective, max_epochs=3, batch_size=16, output_dir=tmp_path, callbacks=parts)
    history = trainer.fit(tiny(), images, images)
    assert len(history) == 3
    assert torch.equal(weights(vl.load(tmp_path / "best")), watch.seen[best - 1])
    expected = {"reconstruction + kl": lambda t: t.reconstruction + t.kl, "iwae": lambda t: t.iwae}
    values = [expected.get(compared, lambda t: t.loss)(t) for t in terms]
    assert [record.criterion for record in history] == pytest.approx(values)
    with (tmp_path / "history.csv").open() as stream:
        assert [float(row["criterion"]) for row in csv.DictReader(stream)] == pytest.approx(values)
    said = capsys.readouterr().err
    assert f"epochs are compared by {compared} on `val`, in nats" in said
    assert (f"{compared} {values[0]:.2f}" in said) == (compared != "loss")
    stops = f"no {compared} below {min(values):.2f} on `val` for 2 epochs"
    assert (stops in said) == (best == 1)


def test_the_choice_of_best_depends_on_no_weight_of_the_loss(images):
    for objective in (
        vl.Elbo(beta=vl.linear_warmup(1000), extra=lambda x, means: 100 * (x - means).square().sum((1, 2, 3))),
        vl.Elbo(free_bits=3.0),
        vl.Elbo(beta=10.0, capacity=5.0),
    ):
        record = fit(tiny(), images, images, objective=objective)[-1]
        assert record.criterion == record.val.reconstruction + record.val.kl
        assert abs(record.criterion - record.val.loss) > 0.1
    assert fit(tiny(), images)[-1].criterion is None


def test_the_best_of_a_resumed_run_is_that_of_the_whole_one(images, tmp_path):
    """The schedule's value at the last step, which weighs the loss on `val`, grows with the number of epochs."""

    def run(directory, epochs, resume=False):
        terms = [Elbo(0.0, 10.0 - epoch, 5.0) for epoch in range(4)]
        objective, model = Scripted(*terms, per_step=1.0), tiny()
        options = {"max_epochs": epochs, "lr_schedule": "constant", "output_dir": directory, "resume": resume}
        return fit(model, images, images, objective, objective=objective, **options), weights(model)

    run(tmp_path / "run", 2)
    history, last = run(tmp_path / "run", 4, resume=True)
    assert [record.val.loss for record in history] == [5.0, 5.0, 11.0, 11.0]
    assert torch.equal(weights(vl.load(tmp_path / "run" / "best")), last)


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        (vl.Elbo(beta=vl.linear_warmup(12)), "`beta` still changes at the last of 6 steps, where it is 0.4167:"),
        (vl.Elbo(beta=vl.schedules.cyclical(5)), "`beta` still changes at the last of 6 steps, where it is 0:"),
        (vl.Elbo(capacity=vl.linear_warmup(12, final=2.4)), "`capacity` still changes at the last of 6 steps"),
        (vl.BetaTcLoss(48, beta=vl.linear_warmup(10)), "`beta` still changes at the last of 6 steps, where it is 0.5:"),
        (vl.Elbo(beta=vl.linear_warmup(4)), ""),
        (vl.Elbo(beta=4.0), ""),
    ],
)
def test_a_schedule_that_still_changes_at_the_end_is_reported(objective, says, images, caplog):
    fit(tiny(), images, None, objective=objective)
    assert caplog.text == ""
    fit(tiny(), images, images, objective=objective)
    assert says in caplog.text and (says != "") == (caplog.text != "")


def adam_with_a_tensor(parameters, lr):
    return torch.optim.Adam(parameters, lr=torch.tensor(lr), fused=True)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", torch.optim.SGD, adam_with_a_tensor])
@pytest.mark.parametrize("lr_schedule", ["cosine", "one_cycle", "constant", vl.linear_warmup(4, final=0.5)])
def test_optimisers_and_schedules(images, optimizer, lr_schedule):
    model = tiny()
    before = weights(model)
    history = fit(model, images, optimizer=optimizer, lr_schedule=lr_schedule, learning_rate=1e-3)
    assert not torch.equal(before, weights(model))
    last = {"constant": 1.0, "cosine": 0.067, "one_cycle": 0.147}.get(lr_schedule, 0.5)  # at the sixth step of six
    assert history[-1].learning_rate == pytest.approx(1e-3 * last, rel=0.01)


def test_frozen_weights_stay(images):
    model = tiny()
    model.decoder.requires_grad_(False)
    frozen, trained = (parameters_to_vector(part.parameters()) for part in (model.decoder, model.encoder))
    fit(model, images)
    assert torch.equal(frozen, parameters_to_vector(model.decoder.parameters()))
    assert not torch.equal(trained, parameters_to_vector(model.encoder.parameters()))


def test_autoencoders_train_by_squared_error(images):
    model = vl.AutoEncoder(vl.ConvEncoder((1, 8, 8), 2), vl.ConvDecoder(2, (1, 8, 8)), corruption=vl.GaussianNoise(0.1))
    history = fit(model, images, images, max_epochs=5)
    assert history[-1].val._fields == ("loss", "reconstruction")
    assert history[-1].val.loss < history[0].val.loss


def test_a_denoising_model_removes_noise():
    train = vl.data.shapes(600, image_size=16)
    torch.manual_seed(0)
    model = vl.AutoEncoder(
        vl.ConvEncoder((1, 16, 16), 16, hidden_channels=(16, 32)),
        vl.ConvDecoder(16, (1, 16, 16), hidden_channels=(32, 16)),
        corruption=vl.GaussianNoise(0.3),
    )
    fit(model, train, max_epochs=6)
    clean = vl.data.shapes(64, image_size=16, seed=9).batch(slice(None))
    noisy = vl.GaussianNoise(0.3)(clean)
    assert (model.reconstruct(noisy) - clean).square().mean() < 0.5 * (noisy - clean).square().mean()


def test_the_progress_goes_to_standard_error(images, capsys):
    vl.Trainer(max_epochs=1).fit(tiny(), images, images)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "epoch 1/1  train" in captured.err
    assert "images/s" in captured.err
    fit(tiny(), images)
    assert capsys.readouterr() == ("", "")


def test_a_run_that_cannot_be_written_does_not_start(images, tmp_path):
    model = tiny()
    before = weights(model)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="`output_dir` must be a directory that can be written"):
        fit(model, images, output_dir=tmp_path / "file" / "run")

    class Stranger(nn.Linear):
        image_shape, latent_shape = (1, 8, 8), (2,)

    with pytest.raises(TypeError, match="'Stranger' is not known"):
        fit(vl.VAE(Stranger(1, 1), model.decoder), images, output_dir=tmp_path / "run")
    assert torch.equal(before, weights(model))
    assert os.listdir(tmp_path) == ["file"]


def test_a_loss_that_is_not_finite_stops_with_its_name(images):
    class Broken(vl.StandardNormal):
        def kl(self, mu, logvar, z=None):
            return super().kl(mu, logvar, z) * float("nan")

    with pytest.raises(
        TrainingError, match="Before step 3: 3 steps in a row were skipped: loss, kl not finite; gradient not finite in"
    ):
        fit(tiny(prior=Broken()), images)

    class BrokenLater(vl.StandardNormal):
        def kl(self, mu, logvar, z=None):
            return super().kl(mu, logvar, z) * (1 if self.training else float("nan"))

    with pytest.raises(TrainingError, match="the (loss|kl) became nan on `val` after step 3"):
        fit(tiny(prior=BrokenLater()), images, images)


def test_images_off_the_levels_of_the_likelihood_are_refused_before_the_first_step(monkeypatch):
    """Also where no step looks, as on a GPU; what a corruption does to the encoder's input is not looked at."""
    monkeypatch.setattr(vl.likelihoods, "_check_support", lambda x, **_: None)
    vae = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,), likelihood=vl.DiscretizedLogistic())
    levels = torch.randint(256, (20, 1, 8, 8)) / 255
    with pytest.raises(ValueError, match="`train` must have the values k / 255 of 8-bit images under a Discretized"):
        vl.Trainer(max_epochs=1).fit(vae, levels * 0.7, levels, progress=False)
    monkeypatch.undo()
    vae.corruption = vl.GaussianNoise(0.1)
    assert len(vl.Trainer(max_epochs=1).fit(vae, levels, progress=False)) == 1
