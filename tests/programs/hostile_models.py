"""Models and checkpoints in a directory that somebody has changed and made checksums fit: what comes of it, as JSON."""

import collections
import hashlib
import json
import random
import shutil
import sys
import time
from pathlib import Path

import torch
from mutating import mutated

import vaelib as vl
from vaelib import presets
from vaelib._weights import sealed
from vaelib.benchmark.worker import host_peak_mib
from vaelib.errors import ModelFileError
from vaelib.training.checkpoints import read_checkpoint, write_checkpoint

directory, how, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

shape = (1, 4, 4)


def nets():
    return vl.ConvEncoder(shape, 2, hidden_channels=(2,)), vl.ConvDecoder(2, shape, hidden_channels=(2,))


torch.manual_seed(0)
models = [
    vl.conv_vae(shape, 2, hidden_channels=(2, 3), dropout=0.1, corruption=vl.GaussianNoise(0.1)),
    vl.VAE(*nets(), prior=vl.VampPrior(shape, 3)),
    vl.VAE(*nets(), prior=vl.MixtureOfGaussians((2,), 3), likelihood=vl.ContinuousBernoulli()),
    vl.VAE(
        *nets(),
        latent=vl.GaussianLatent((2,), vl.FlowPrior((2,), hidden_features=(4,)), vl.FlowPosterior((2,), 1, (4,))),
    ),
    vl.AutoEncoder(*nets(), corruption=vl.Masking(0.5)),
    presets.article_vae(),
]
# fmt: off
ODD = [
    None, True, False, -1, 0, 1, 2, 3, 7, 10**5, 10**9, 10**18, 10**400, 0.5, 1e308, float("inf"), float("nan"),
    "", "x", [], {}, [1], [0], [10**9], [1, 10**6, 10**6], [4096] * 40, [2] * 2000, [[1]], "1", {"class": "VAE"},
    {"class": "Bernoulli"}, {"class": 3}, {"class": "FlowPrior", "latent_shape": [10**4], "kind": "nsf",
    "num_transforms": 10**6, "hidden_features": [10**4]}, {"class": "VampPrior", "image_shape": [1, 4, 4],
    "num_components": 10**12}, "nearest", "pixel_shuffle", "group", "none", "silu",
]
# fmt: on


def nodes(tree):
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from nodes(tree[key])


def odd_tree(tree, generator):
    places = list(nodes(tree))
    for _ in range(generator.choice((1, 1, 2, 3))):
        (one, key), (other, name) = generator.choice(places), generator.choice(places)
        kind = generator.randrange(6)
        try:
            if kind == 0 and isinstance(one, dict):
                del one[key]
            elif kind == 1 and isinstance(one, dict):
                one[generator.choice(("class", "stride", "more", ""))] = generator.choice(ODD)
            elif kind == 2:
                one[key] = json.loads(json.dumps(other[name]))
            else:
                one[key] = generator.choice(ODD)
        except (KeyError, IndexError, ValueError):  # the place went with a mutation before, or holds itself
            pass
    return tree


def write(content):
    (directory / "config.json").write_text(sealed(content))


def as_version_0_1():
    content = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({"format": "vaelib-model-1", "model": content["model"]}))


def state():
    return {"step": 1, "rate": 0.1, "list": [1, [2, "x"]], "model": {"a": torch.rand(3, 4), "b": torch.arange(5)}}


def attempt(generator, number):
    shutil.rmtree(directory, ignore_errors=True)
    if how == "checkpoint":
        write_checkpoint(directory, state())
        path = directory / "state.json"
        content = json.loads(path.read_text())
        content["format"], content["sha256"] = "vaelib-checkpoint-1", content["tensors_sha256"]
        if number % 2:
            path.write_text(json.dumps(odd_tree(content, generator)))
        else:
            path.write_bytes(mutated(json.dumps(content).encode(), generator))
        read_checkpoint(directory)
        return
    vl.save(models[number % len(models)], directory)
    content = json.loads((directory / "config.json").read_text())
    weights = directory / "model.safetensors"
    if how == "sealed config":
        del content["sha256"]
        write(content | {"model": odd_tree(content["model"], generator)})
    elif how == "config of version 0.1":
        as_version_0_1()
        (directory / "config.json").write_bytes(mutated((directory / "config.json").read_bytes(), generator))
    else:
        header = int.from_bytes(weights.read_bytes()[:8], "little") + 8
        data = weights.read_bytes()
        end = header if number % 2 else len(data)  # damage in the header, or anywhere
        data = mutated(data[:end], generator) + data[end:]
        weights.write_bytes(data)
        if how == "weights of version 0.1":
            as_version_0_1()
        else:
            del content["sha256"]
            write(content | {"weights_sha256": hashlib.sha256(data).hexdigest()})
    model = vl.load(directory)
    x = torch.rand(1, *getattr(model, "image_shape", shape)).to(next(model.parameters()).dtype)
    if isinstance(model, vl.VAE | vl.AutoEncoder) and x.numel() < 10**4:
        assert model.reconstruct(x).shape == x.shape


generator, counts, longest = random.Random(how), collections.Counter(), 0.0
for number in range(count):
    started = time.perf_counter()
    try:
        attempt(generator, number)
        counts["loaded"] += 1
    except ModelFileError as error:
        counts["refused"] += 1
        message = str(error)
        assert len(message) < 5000, len(message)
    longest = max(longest, time.perf_counter() - started)
peak = host_peak_mib() / 2**10
print(json.dumps({"loaded": counts["loaded"], "refused": counts["refused"], "seconds": longest, "peak_gib": peak}))
