"""What tests/test_files.py kills: two models that are saved over each other for ever."""

import itertools

import torch

import vaelib as vl


def models():
    for seed, likelihood in enumerate((vl.Bernoulli(), vl.ContinuousBernoulli())):
        torch.manual_seed(seed)
        yield vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,), likelihood=likelihood)


def save_in_turns(directory, saved):
    """Sets the event ``saved`` after each."""
    for model in itertools.cycle([*models()]):
        vl.save(model, directory)
        saved.set()
