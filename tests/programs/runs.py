"""Small runs of the Trainer, for the tests of training."""

import signal

import torch

import vaelib as vl


def tiny(seed=0, **kwargs):
    torch.manual_seed(seed)
    return vl.conv_vae((1, 8, 8), **({"latent_dim": 2, "hidden_channels": (4, 8)} | kwargs))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(module):
    return torch.cat([value.detach().flatten().double().cpu() for value in module.state_dict().values()])


def images_of(count, size=8, seed=0):
    return vl.data.shapes(count, image_size=size, seed=seed).images


def fit(model, train, val=None, *callbacks, **kwargs):
    fitted = {name: kwargs.pop(name) for name in ("resume",) if name in kwargs}
    options = {"max_epochs": 2, "batch_size": 16} | kwargs
    return vl.Trainer(callbacks=callbacks, **options).fit(model, train, val, progress=False, **fitted)


class PosteriorMean:
    """The ELBO's terms without a draw, so that runs, processes and gradients can be compared."""

    def __call__(self, model, x, *, step=0, generator=None):
        mu, logvar = model.encode(x)
        return vl.elbo_loss(x, model.decode(mu), mu, logvar, likelihood=model.likelihood)


class Watch:
    """Keeps what ``look(run)`` gives after each step, or at another event."""

    def __init__(self, look, event="on_step"):
        self.seen = []
        setattr(self, event, lambda run: self.seen.append(look(run)))


class Crash(Exception):
    pass


class CrashAt:
    """An error after a step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, run):
        if run.step == self.step:
            raise Crash


class StopAt:
    """Ctrl-C in the given steps, or in what comes after an epoch's."""

    def __init__(self, *steps, event="on_step"):
        self.steps = steps
        setattr(self, event, self.act)

    def act(self, run):
        if run.step in self.steps:
            signal.raise_signal(signal.SIGINT)
