"""What a Trainer is given is checked where it is given; each error names argument, rule and value."""

import collections
import functools
import unittest.mock

import numpy as np
import pytest
import torch
from runs import tiny

import vaelib as vl


class Misspelt:
    def on_epoc(self, run):
        """Would never be called."""


class AsInLightning:
    def on_step(self, run):
        """Is called."""

    def on_train_epoch_end(self, run):
        """Would never be called."""


class Nothing:
    """No hook at all."""


class Hook:
    on_step = 3


class WithoutStep:
    def __call__(self, model, x):
        return vl.Elbo()(model, x)


class ModuleWithoutStep(torch.nn.Module):
    def forward(self, model, x):
        return vl.Elbo()(model, x)


HOOKS = "on_start, on_step, on_epoch and on_end"
CALL = r"objective\(model, x, step=...\)"
CALLS = {
    "a name": (lambda: vl.Trainer("elbo"), TypeError, f"`objective` must be an objective .* {CALL}, got 'elbo'"),
    "a model": (
        lambda: vl.Trainer(tiny()),
        TypeError,
        r"`objective` must be .*, got a model, which belongs in fit",
    ),
    "a class": (
        lambda: vl.Trainer(vl.Elbo),
        TypeError,
        r"`objective` must be an object, got the class Elbo: give Elbo\(\)",
    ),
    "no step": (lambda: vl.Trainer(WithoutStep()), TypeError, f"`objective` must be callable as {CALL}, got .*'step'"),
    "module": (
        lambda: vl.Trainer(ModuleWithoutStep()),
        TypeError,
        f"`objective` must be callable as {CALL}, got .*'step'",
    ),
    "lambda": (lambda: vl.Trainer(lambda x: x), TypeError, f"`objective` must be callable as {CALL}, got .*: too many"),
    "a network": (lambda: vl.Trainer(torch.nn.Linear(2, 2)), TypeError, f"`objective` must be callable as {CALL}"),
    "rate": (
        lambda: vl.Trainer(learning_rate=float("inf")),
        ValueError,
        "`learning_rate` must be > 0 and finite, got inf",
    ),
    "no rate": (lambda: vl.Trainer(learning_rate=float("nan")), ValueError, "`learning_rate` must be > 0, got nan"),
    "norm": (lambda: vl.Trainer(clip_norm=float("inf")), ValueError, "`clip_norm` must be > 0 and finite, got inf"),
    "seed": (lambda: vl.Trainer(seed=2**32), ValueError, "`seed` must be <= 4294967295, got 4294967296"),
    "compile": (lambda: vl.Trainer(compile="yes"), TypeError, "`compile` must be True, False or None, got 'yes'"),
    "sync": (lambda: vl.Trainer(sync_batch_norm=1), TypeError, "`sync_batch_norm` must be True or False, got 1"),
    "path": (lambda: vl.Trainer(output_dir=3), TypeError, "`output_dir` must be a path or None, got 3"),
    "no path": (lambda: vl.Trainer(output_dir=""), ValueError, "`output_dir` must be a path that is not empty, got ''"),
    "optimiser": (
        lambda: vl.Trainer(optimizer=torch.optim.SGD(tiny().parameters(), 0.1)),
        TypeError,
        "`optimizer` must be a class such as torch.optim.SGD, got an object of .*SGD",
    ),
    "a factory": (
        lambda: vl.Elbo(beta=vl.linear_warmup),
        TypeError,
        r"`beta` must be a number or a schedule, step -> float, got linear_warmup, which makes one",
    ),
    "of capacity": (
        lambda: vl.Elbo(capacity=vl.schedules.cyclical),
        TypeError,
        "`capacity` must be .*, got cyclical, which",
    ),
    "of beta-TC": (
        lambda: vl.BetaTcLoss(9, beta=vl.schedules.constant),
        TypeError,
        "`beta` must be .*, got constant, which makes one",
    ),
    "of rates": (
        lambda: vl.Trainer(lr_schedule=vl.linear_warmup),
        TypeError,
        "`lr_schedule` must be .* which makes one",
    ),
    "no argument": (lambda: vl.Elbo(beta=lambda: 1.0), TypeError, "`beta` must be .*, which raises for step 1"),
    "no number": (lambda: vl.Elbo(beta=lambda step: "1"), TypeError, r"`beta\(1\)` must be a number, got '1'"),
    "negative": (lambda: vl.Elbo(beta=lambda step: -1.0), ValueError, r"`beta\(1\)` must be >= 0, got -1.0"),
    "infinite": (lambda: vl.Elbo(beta=float("inf")), ValueError, "`beta` must be >= 0 and finite, got inf"),
    "extra": (lambda: vl.Elbo(extra=0.1), TypeError, "`extra` must be callable, .*got 0.1"),
    "one callback": (
        lambda: vl.Trainer(callbacks=vl.EMA()),
        TypeError,
        "`callbacks` must be a list of callbacks, got <",
    ),
    "scalar": (
        lambda: vl.Trainer(callbacks=np.array(3)),
        TypeError,
        r"`callbacks` must be a list of callbacks, got array\(3\)",
    ),
    "callbacks": (lambda: vl.Trainer(callbacks="ema"), TypeError, "`callbacks` must be a list of callbacks, got 'ema'"),
    "function": (
        lambda: vl.Trainer(callbacks=[vl.EMA(), lambda run: None]),
        TypeError,
        rf"`callbacks\[1\]` must have some of the methods {HOOKS}, got <function .*, which has none",
    ),
    "nothing": (lambda: vl.Trainer(callbacks=[Nothing()]), TypeError, rf"`callbacks\[0\]` must have some .* {HOOKS}"),
    "no method": (lambda: vl.Trainer(callbacks=[Hook()]), TypeError, rf"`callbacks\[0\]` must have some .* {HOOKS}"),
    "misspelt": (
        lambda: vl.Trainer(callbacks=[Misspelt()]),
        TypeError,
        rf"`callbacks\[0\]` must have no hooks but {HOOKS}, got Misspelt with on_epoc, which would never be called",
    ),
    "another's": (
        lambda: vl.Trainer(callbacks=[AsInLightning()]),
        TypeError,
        "got AsInLightning with on_train_epoch_end",
    ),
    "class": (
        lambda: vl.Trainer(callbacks=[vl.EMA]),
        TypeError,
        r"`callbacks\[0\]` must be an object, got the class EMA: give EMA\(...\)",
    ),
    "two": (
        lambda: vl.Trainer(callbacks=[vl.EMA(), vl.EMA()]),
        ValueError,
        "`callbacks` must hold at most one EMA, got 2",
    ),
    "no tracker": (vl.Trackers, ValueError, "`names` must hold at least one of .*tensorboard"),
    "threshold": (lambda: vl.CollapseWarning("a"), TypeError, "`threshold` must be a number, got 'a'"),
    **{
        f"{name}={value!r}": (
            lambda name=name, value=value: vl.Trainer(**{name: value}),
            ValueError,
            f"`{name}` must {rule}",
        )
        for name, value, rule in (
            ("max_epochs", 0, "be >= 1"),
            ("batch_size", 0, "be >= 1"),
            ("learning_rate", 0.0, "be > 0"),
            ("lr_schedule", "step", "be one of 'cosine', 'one_cycle', 'constant', got 'step'"),
            ("optimizer", "lion", "be one of 'adam', 'adamw', got 'lion'"),
            ("seed", -1, "be >= 0"),
            ("accumulate", 0, "be >= 1"),
            ("clip_norm", 0.0, "be > 0"),
            ("skip_norm", -1.0, "be > 0"),
            ("precision", "fp8", "be one of None, 'fp32', 'tf32', 'bf16', 'fp16', got 'fp8'"),
        )
    },
    "decay": (lambda: vl.EMA(1.5), ValueError, "`decay` must be >= 0 and <= 1"),
    "no patience": (lambda: vl.EarlyStopping(patience=0), ValueError, "`patience` must be >= 1"),
    "a tracker": (lambda: vl.Trackers("paper"), ValueError, "`names` must be of .*tensorboard.*, got 'paper'"),
    "no epochs": (lambda: vl.Pictures(every=0), ValueError, "`every` must be >= 1"),
    "no steps": (lambda: vl.Checkpoints(every=0), ValueError, "`every` must be >= 1"),
    "none kept": (lambda: vl.Checkpoints(keep_last=0), ValueError, "`keep_last` must be >= 1"),
    "patience": (
        lambda: vl.EarlyStopping(min_delta=float("inf")),
        ValueError,
        "`min_delta` must be >= 0 and finite, got inf",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_is_checked_where_it_is_given(name):
    call, error, match = CALLS[name]
    with pytest.raises(error, match=match):
        call()


Terms = collections.namedtuple("Terms", "loss reconstruction")
RESULTS = {
    "a tensor": (
        lambda loss, part: loss,
        "`objective` must return a named tuple whose first term is `loss`, got tensor",
    ),
    "a plain tuple": (lambda loss, part: (loss, part), "`objective` must return a named tuple .*, got \\(tensor"),
    "a float": (lambda loss, part: Terms(loss, 1.0), r"`objective\(...\).reconstruction` must be a tensor, got 1.0"),
    "a mean": (
        lambda loss, part: Terms(loss, part.mean()),
        r"`objective\(...\).reconstruction` must have shape \(20\)",
    ),
    "no mean": (lambda loss, part: Terms(part, part), r"`objective\(...\).loss` must have shape \(\), got \(20,\)"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_what_an_objective_returns_is_checked(name):
    result, match = RESULTS[name]

    def objective(model, x, *, step=0, generator=None):
        terms = vl.Elbo()(model, x)
        return result(terms.loss, terms.reconstruction)

    trainer = vl.Trainer(objective, max_epochs=1)
    with pytest.raises((TypeError, ValueError), match=match):
        trainer.fit(tiny(), torch.rand(20, 1, 8, 8), progress=False)


FITS = {
    "model": ({"model": "vae"}, "`model` must be an nn.Module object, got 'vae'"),
    "class": ({"model": vl.VAE}, "`model` must be an nn.Module object, got <class"),
    "resume": ({"resume": "yes"}, "`resume` must be True or False, got 'yes'"),
    "progress": ({"progress": 1}, "`progress` must be True or False, got 1"),
}


@pytest.mark.parametrize("name", FITS)
def test_what_fit_is_given_is_checked(name):
    changed, match = FITS[name]
    arguments = {"model": tiny(), "train": torch.rand(20, 1, 8, 8), "progress": False} | changed
    with pytest.raises((TypeError, ValueError), match=match):
        vl.Trainer(max_epochs=1).fit(**arguments)


def test_a_schedule_that_leaves_its_range_later_is_named_with_the_step():
    for value, match in ((float("nan"), "got nan"), (-1.0, "got -1.0")):
        trainer = vl.Trainer(max_epochs=4, lr_schedule=lambda step, value=value: 1.0 if step < 2 else value)
        with pytest.raises(ValueError, match=rf"`lr_schedule\(2\)` must be >= 0, {match}"):
            trainer.fit(tiny(), torch.rand(20, 1, 8, 8), progress=False)


def test_what_is_right_passes():
    """Objectives and schedules of every form, numpy's numbers, and callbacks that only keep a state beside a hook."""

    class Own(vl.EMA):
        def once(self, run):
            """No hook, and not named like one."""

    def objective(model, x, *, step, generator=None):
        return vl.Elbo()(model, x, generator=generator)

    for given in (
        objective,
        functools.partial(objective, generator=None),
        vl.Elbo(beta=np.float32(0.5)),
        vl.FactorLoss(2),
    ):
        vl.Trainer(given, callbacks=(Own(), vl.Checkpoints()), max_epochs=np.int64(1), batch_size=np.int32(10)).fit(
            tiny(), torch.rand(20, 1, 8, 8), progress=False
        )
    seen = unittest.mock.Mock()  # makes its methods when they are asked for, and lists none
    vl.Trainer(max_epochs=1, callbacks=iter([seen])).fit(tiny(), torch.rand(20, 1, 8, 8), progress=False)
    seen.on_epoch.assert_called_once()
    table = [0.0, 0.5, 1.0]
    assert vl.Elbo(beta=table.__getitem__).beta(2) == 1.0
