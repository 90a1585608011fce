"""What a Trainer is given is checked where it is given; each error names argument, rule and value."""

import collections
import functools
import unittest.mock

import numpy as np
import pytest
import torch
from runs import fit, tiny
from torch import full, linspace, nn, rand

import vaelib as vl
from vaelib.errors import DataError


class Module(nn.Module):
    def forward(self, model, x):
        return vl.Elbo()(model, x)


def with_methods(**methods):
    return type("Given", (), methods)()


def hook(self, run):
    """Called, or not."""


HOOKS = "on_start, on_step, on_epoch and on_end"
CALL = r"objective\(model, x, step=...\)"
INFINITE, NAN = float("inf"), float("nan")
OF_A_TRAINER = {  # (argument, value, error, match after the name)
    TypeError: [
        ("objective", "elbo", f"must be an objective .* {CALL}, got 'elbo'"),
        ("objective", tiny(), "must be .*, got a model, which belongs in fit"),
        ("objective", vl.Elbo, f"must be an objective .* {CALL}, got <class .*Elbo'>. Give an object: Elbo"),
        ("objective", lambda model, x: vl.Elbo()(model, x), f"must be callable as {CALL}, got .*'step'"),
        ("objective", Module(), f"must be callable as {CALL}, got .*'step'"),
        ("objective", lambda x: x, f"must be callable as {CALL}, got .*: too many"),
        ("objective", nn.Linear(2, 2), f"must be callable as {CALL}"),
        ("compile", "yes", "must be True, False or None, got 'yes'"),
        ("sync_batch_norm", 1, "must be True or False, got 1"),
        ("output_dir", 3, "must be a str or a Path, got 3"),
        ("optimizer", torch.optim.SGD([rand(1)], 0.1), "must be a class such as torch.optim.SGD, got an object"),
        ("lr_schedule", vl.linear_warmup, "must be .* which makes one"),
        ("callbacks", vl.EMA(), "must be a list of callbacks, got <"),
        ("callbacks", np.array(3), r"must be a list of callbacks, got array\(3\)"),
        ("callbacks", "ema", "must be a list of callbacks, got 'ema'"),
    ],
    ValueError: [
        ("learning_rate", INFINITE, "must be > 0 and finite, got inf"),
        ("learning_rate", NAN, "must be > 0, got nan"),
        ("learning_rate", 0.0, "must be > 0"),
        ("clip_norm", INFINITE, "must be > 0 and finite, got inf"),
        ("clip_norm", 0.0, "must be > 0"),
        ("skip_norm", -1.0, "must be > 0"),
        ("seed", 2**32, "must be <= 4294967295, got 4294967296"),
        ("seed", -1, "must be >= 0"),
        ("output_dir", "", "must be the path of a file or directory, got ''"),
        ("callbacks", [vl.EMA(), vl.EMA()], "must hold at most one EMA, got 2"),
        ("max_epochs", 0, "must be >= 1"),
        ("batch_size", 0, "must be >= 1"),
        ("accumulate", 0, "must be >= 1"),
        ("lr_schedule", "step", "must be one of 'cosine', 'one_cycle', 'constant', got 'step'"),
        ("optimizer", "lion", "must be one of 'adam', 'adamw', got 'lion'"),
        ("precision", "fp8", "must be one of None, 'fp32', 'tf32', 'bf16', 'fp16', got 'fp8'"),
    ],
}


@pytest.mark.parametrize(
    ("error", "given"), [(error, given) for error in OF_A_TRAINER for given in OF_A_TRAINER[error]]
)
def test_an_argument_of_a_trainer_is_checked_where_it_is_given(error, given):
    name, value, match = given
    with pytest.raises(error, match=f"`{name}` {match}"):
        vl.Trainer(**{name: value})


CALLBACKS = [
    ([vl.EMA(), lambda run: None], rf"`callbacks\[1\]` must have some of the methods {HOOKS}, got <function"),
    ([with_methods()], rf"`callbacks\[0\]` must have some .* {HOOKS}"),
    ([with_methods(on_step=3)], rf"`callbacks\[0\]` must have some .* {HOOKS}"),
    ([with_methods(on_epoc=hook)], rf"`callbacks\[0\]` must have no hooks but {HOOKS}, got Given with on_epoc"),
    ([with_methods(on_step=hook, on_train_epoch_end=hook)], "got Given with on_train_epoch_end"),
    ([vl.EMA], r"`callbacks\[0\]` must be an object, got the class EMA: give EMA\(...\)"),
]


@pytest.mark.parametrize(("callbacks", "match"), CALLBACKS)
def test_callbacks_are_checked_where_they_are_given(callbacks, match):
    with pytest.raises(TypeError, match=match):
        vl.Trainer(callbacks=callbacks)


PARTS = [
    (
        lambda: vl.Elbo(beta=vl.linear_warmup),
        r"`beta` must be a number or a schedule, step -> float, got linear_warmup",
    ),
    (lambda: vl.Elbo(capacity=vl.schedules.cyclical), "`capacity` must be .*, got cyclical, which"),
    (lambda: vl.BetaTcLoss(9, beta=vl.schedules.constant), "`beta` must be .*, got constant, which makes one"),
    (lambda: vl.Elbo(beta=lambda: 1.0), "`beta` must be .*, which raises for step 1"),
    (lambda: vl.Elbo(beta=lambda step: "1"), r"`beta\(1\)` must be a number, got '1'"),
    (lambda: vl.Elbo(beta=lambda step: -1.0), r"`beta\(1\)` must be >= 0, got -1.0"),
    (lambda: vl.Elbo(beta=INFINITE), "`beta` must be >= 0 and finite, got inf"),
    (lambda: vl.Elbo(extra=0.1), "`extra` must be callable, .*got 0.1"),
    (vl.Trackers, "`names` must hold at least one of .*tensorboard"),
    (lambda: vl.Trackers("paper"), "`names` must be of .*tensorboard.*, got 'paper'"),
    (lambda: vl.CollapseWarning("a"), "`threshold` must be a number, got 'a'"),
    (lambda: vl.EMA(1.5), "`decay` must be >= 0 and <= 1"),
    (lambda: vl.EarlyStopping(patience=0), "`patience` must be >= 1"),
    (lambda: vl.EarlyStopping(min_delta=INFINITE), "`min_delta` must be >= 0 and finite, got inf"),
    (lambda: vl.Pictures(every=0), "`every` must be >= 1"),
    (lambda: vl.Checkpoints(every=0), "`every` must be >= 1"),
    (lambda: vl.Checkpoints(keep_last=0), "`keep_last` must be >= 1"),
]


@pytest.mark.parametrize(("call", "match"), PARTS)
def test_an_argument_of_a_part_is_checked_where_it_is_given(call, match):
    with pytest.raises((TypeError, ValueError), match=match):
        call()


Terms = collections.namedtuple("Terms", "loss reconstruction")
RESULTS = [
    (lambda loss, part: loss, "`objective` must return a named tuple whose first term is `loss`, got tensor"),
    (lambda loss, part: (loss, part), "`objective` must return a named tuple .*, got \\(tensor"),
    (lambda loss, part: Terms(loss, 1.0), r"`objective\(...\).reconstruction` must be a tensor, got 1.0"),
    (lambda loss, part: Terms(loss, part.mean()), r"`objective\(...\).reconstruction` must have shape \(20\)"),
    (lambda loss, part: Terms(part, part), r"`objective\(...\).loss` must have shape \(\), got \(20,\)"),
]


@pytest.mark.parametrize(("result", "match"), RESULTS)
def test_what_an_objective_returns_is_checked(result, match):
    def objective(model, x, *, step=0, generator=None):
        terms = vl.Elbo()(model, x)
        return result(terms.loss, terms.reconstruction)

    with pytest.raises((TypeError, ValueError), match=match):
        fit(tiny(), rand(20, 1, 8, 8), objective=objective, batch_size=20)


OF_255 = linspace(0, 255, 128).view(2, 1, 8, 8)
FITS = [
    ({"model": "vae"}, TypeError, "`model` must be an nn.Module object, got 'vae'"),
    ({"model": vl.VAE}, TypeError, "`model` must be an nn.Module object, got <class"),
    ({"resume": "yes"}, TypeError, "`resume` must be True or False, got 'yes'"),
    ({"progress": 1}, TypeError, "`progress` must be True or False, got 1"),
    ({"train": rand(4, 1, 9, 9)}, ValueError, r"`train` must have images of the model's shape \(1, 8, 8\), got"),
    ({"val": rand(4, 1, 9, 9)}, ValueError, r"`val` must have images of the model's shape"),
    ({"train": rand(0, 1, 8, 8)}, DataError, "at least one pixel"),
    ({"train": []}, ValueError, "`train` must be images, or a loader of known length that is not empty"),
    ({"train": full((4, 1, 8, 8), NAN)}, ValueError, r"`images` must have values in \[0, 1\], got \[nan, nan\]"),
    ({"train": [OF_255]}, ValueError, r"`train` must have values in \[0, 1\], got \[0, 255\]"),
    (
        {"train": [OF_255], "model": tiny(likelihood=vl.Gaussian(0.5))},
        ValueError,
        r"`train` must have values in \[0, 1\], got \[0, 255\]",
    ),
    ({"val": iter([rand(2, 1, 8, 8)])}, TypeError, "`val` must be .* a loader that can be passed over again"),
    ({"train": [rand(2, 1, 8, 8).double()]}, TypeError, "dtype of the model's weights"),
]


@pytest.mark.parametrize(("given", "error", "match"), FITS)
def test_what_fit_is_given_is_checked(given, error, match):
    arguments = {"model": tiny(), "train": rand(20, 1, 8, 8), "progress": False} | given
    with pytest.raises(error, match=match):
        vl.Trainer(max_epochs=1).fit(**arguments)


def test_a_schedule_that_leaves_its_range_later_is_named_with_the_step():
    for value, match in ((NAN, "got nan"), (-1.0, "got -1.0")):
        with pytest.raises(ValueError, match=rf"`lr_schedule\(2\)` must be >= 0, {match}"):
            fit(tiny(), rand(40, 1, 8, 8), lr_schedule=lambda step, value=value: 1.0 if step < 2 else value)


def test_what_is_right_passes():
    """Objectives and schedules of every form, numpy's numbers, and callbacks that only keep a state beside a hook."""

    class Own(vl.EMA):
        def once(self, run):
            """No hook, and not named like one."""

    def objective(model, x, *, step, generator=None):
        return vl.Elbo()(model, x, generator=generator)

    of_a_function = functools.partial(objective, generator=None)
    for given in (objective, of_a_function, vl.Elbo(beta=np.float32(0.5)), vl.FactorLoss(2)):
        options = {"max_epochs": np.int64(1), "batch_size": np.int32(10), "objective": given}
        fit(tiny(), rand(20, 1, 8, 8), None, Own(), vl.Checkpoints(), **options)
    seen = unittest.mock.Mock()  # makes its methods when they are asked for, and lists none
    vl.Trainer(max_epochs=1, callbacks=iter([seen])).fit(tiny(), rand(20, 1, 8, 8), progress=False)
    seen.on_epoch.assert_called_once()
    table = [0.0, 0.5, 1.0]
    assert vl.Elbo(beta=table.__getitem__).beta(2) == 1.0
