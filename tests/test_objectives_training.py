"""The Trainer with every objective; those that are modules are trained, kept and resumed with the model."""

import pytest
import torch
from runs import fit, images_of, tiny, weights
from torch import nn

import vaelib as vl
from vaelib.errors import TrainingError


def factor_vae(seed=0):
    torch.manual_seed(seed)
    return vl.FactorLoss(2, gamma=2.0, hidden_features=(8, 8))


def model_of():
    return tiny(hidden_channels=(4,))


def autoencoder():
    torch.manual_seed(0)
    return vl.AutoEncoder(vl.ConvEncoder((1, 8, 8), 2), vl.ConvDecoder(2, (1, 8, 8)))


OBJECTIVES = {
    "capacity": (lambda: vl.Elbo(beta=10.0, capacity=vl.linear_warmup(8, final=5.0)), model_of),
    "beta-tc": (lambda: vl.BetaTcLoss(40), model_of),
    "factor": (factor_vae, model_of),
    "dip": (vl.DipLoss, model_of),
    "info": (vl.InfoLoss, model_of),
    "piwae": (lambda: vl.Iwae(2, num_groups=2, pool_decoder=True), model_of),
    "wae": (vl.WaeLoss, autoencoder),
    "rae": (lambda: vl.RaeLoss(0.1, 0.01), autoencoder),
    "rae, l2": (lambda: vl.RaeLoss(0.1, 0.01, penalty="l2"), autoencoder),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_trainer_runs_it(name):
    objective, model = OBJECTIVES[name]
    history = fit(model(), images_of(40), images_of(20), objective=objective(), batch_size=10)
    assert history[-1].val.reconstruction < history[0].train.reconstruction
    assert history[-1].skipped == 0


@pytest.mark.parametrize("optimizer", ["adam", torch.optim.Adam])
def test_the_discriminator_is_trained_with_the_model(optimizer):
    objective = factor_vae()
    before = weights(objective)
    trainer = vl.Trainer(objective, max_epochs=1, batch_size=10, optimizer=optimizer)
    trainer.fit(model_of(), images_of(40), progress=False)
    assert all((parameter.grad is None) or (optimizer != "adam") for parameter in objective.parameters())
    assert (weights(objective) != before).float().mean() > 0.9
    storages = {parameter.untyped_storage().data_ptr() for parameter in objective.parameters()}
    assert len(storages) == len(list(objective.parameters()))  # no longer views of the optimiser's one tensor


def test_gradients_that_are_not_finite_are_named_by_the_network_they_are_of():
    objective = factor_vae()
    with torch.no_grad():
        objective.discriminator[0].weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="total_correlation, discriminator not finite"):
        vl.Trainer(objective, max_epochs=1, batch_size=10).fit(model_of(), images_of(40), progress=False)


def test_early_stopping_waits_for_the_capacity():
    objective = vl.Elbo(capacity=vl.linear_warmup(12, final=1.0))
    stop = vl.EarlyStopping(patience=1, min_delta=1e6)
    trainer = vl.Trainer(objective, max_epochs=9, batch_size=10, callbacks=[stop])
    assert len(trainer.fit(model_of(), images_of(40), images_of(20), progress=False)) == 5  # 12 steps are 3 epochs


class Critic(nn.Module):
    """A module as `extra`: it has weights, and judges the reconstruction."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 1)

    def forward(self, x, images):
        return self.layer((x - images).flatten(1)).square()[:, 0]


class Grouped(vl.Elbo):
    def parameter_groups(self, model):
        return [{"params": self.extra.parameters(), "lr_scale": 0.1, "betas": (0.5, 0.9)}]


@pytest.mark.parametrize("optimizer", ["adam", torch.optim.SGD])
def test_a_module_given_as_extra_is_trained_moved_and_resumed(tmp_path, optimizer):
    def trained(directory, epochs, resume=False):
        torch.manual_seed(0)
        objective = vl.Elbo(extra=Critic())
        start = objective.extra.layer.weight.detach().clone()
        trainer = vl.Trainer(
            max_epochs=epochs,
            batch_size=6,
            objective=objective,
            optimizer=optimizer,
            lr_schedule="constant",
            output_dir=directory,
        )
        history = trainer.fit(model_of(), images_of(12), progress=False, resume=resume)
        assert not torch.equal(objective.extra.layer.weight, start)
        return history, objective.extra.layer.weight

    whole, weight = trained(tmp_path / "whole", 2)
    assert whole[-1].train._fields == ("loss", "reconstruction", "kl", "extra")
    terms = whole[-1].train
    assert terms.loss == pytest.approx(terms.reconstruction + terms.kl + terms.extra, rel=1e-5)
    trained(tmp_path / "cut", 1)
    assert torch.equal(trained(tmp_path / "cut", 2, resume=True)[1], weight)


def test_groups_have_their_own_learning_rate_and_betas():
    seen = []

    class Look:
        def on_step(self, run):
            seen.append([(group["lr"], group["betas"]) for group in run.optimization.optimizer.param_groups])

    torch.manual_seed(0)
    objective = Grouped(extra=Critic())
    frozen = Grouped(extra=Critic().requires_grad_(False))
    for each in (objective, frozen):  # what is frozen is in no group
        trainer = vl.Trainer(
            max_epochs=1, batch_size=6, learning_rate=0.01, objective=each, lr_schedule="constant", callbacks=[Look()]
        )
        trainer.fit(model_of(), images_of(12), progress=False)
    assert seen[0] == [(0.01, (0.9, 0.99)), (pytest.approx(0.001), (0.5, 0.9))]
    assert seen[-1] == [(0.01, (0.9, 0.99))]


@pytest.mark.parametrize(
    ("groups", "error", "match"),
    [
        (lambda model: [list(model.parameters())], TypeError, "`parameter_groups` must give dicts with `params`, got "),
        (lambda model: [{"params": [3]}], TypeError, "`parameter_groups` must give parameters, got 3"),
        (
            lambda model: [{"params": [*model.parameters()], "lr_scal": 0.5}],
            ValueError,
            "`parameter_groups` .*'lr_scal': 0.5.* unexpected",
        ),
        (
            lambda model: [{"params": [*model.parameters()], "lr": 0.5}],
            ValueError,
            "`parameter_groups` .*'lr': 0.5.* multiple values",
        ),
        (
            lambda model: [{"params": [*model.parameters()], "betas": (2, 3)}],
            ValueError,
            "`parameter_groups` .* Invalid beta",
        ),
        (lambda model: [{"params": [*model.parameters()]}] * 2, ValueError, "give each weight .* at most once"),
        (lambda model: [{"params": nn.Linear(1, 1).parameters()}], ValueError, "give each weight .* at most once"),
        (lambda model: [{"params": [], "lr_scale": -1.0}], ValueError, "`lr_scale` must be >= 0, got -1"),
    ],
)
def test_wrong_groups(groups, error, match):
    objective = vl.Elbo()
    objective.parameter_groups = groups
    with pytest.raises(error, match=match):
        vl.Trainer(max_epochs=1, objective=objective).fit(model_of(), images_of(12), progress=False)
