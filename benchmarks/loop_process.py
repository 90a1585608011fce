"""A training loop as a process, seen from outside: what it is asked, and its answers."""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import vaelib as vl
from vaelib.benchmark.worker import Process

EXAMPLES = Path(__file__).parent.parent / "examples"
LOOPS = Path(__file__).parent / "loops.py"
SIZE = (32, 32)


class Job(NamedTuple):
    """What a loop is asked to do; `directory` holds the files of `write_files`."""

    loop: str
    directory: str
    network: str = "article"
    batch_size: int = 64
    images: int = 6400
    """Training images of a round."""
    device: str = "cpu"
    threads: int = 1


class Loop:
    """A training loop in a process of its own; use it in a `with`. `read` raises `ProcessError` once that has ended."""

    def __init__(self, job):
        self.job, self.rounds = job, []
        arguments = ["-W", "ignore", str(LOOPS), json.dumps(job._asdict())]
        self._process = Process(arguments, Path(job.directory, f"{job.loop}.log"))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.__exit__(*error)

    def ask(self):
        """Begin a round of training."""
        self._process.send()

    def read(self):
        """Wait for the end of a round: seconds, held-out loss, peak GPU memory; at first for the loss before any."""
        self.rounds.append(self._process.answer())

    def __call__(self):
        self.ask()
        self.read()


def write_files(directory, images, network):
    """What all loops read: 8-bit images (N, 1, 28, 28), of which the first are held out, and the first weights."""
    torch.manual_seed(0)
    torch.save(images, Path(directory, "images.pt"))
    torch.save(plain_network(network).state_dict(), Path(directory, "weights.pt"))


def plain_network(name):
    """The network as the tutorial's loop trains it: called with images, it gives images, mu and logvar."""
    sys.path.insert(0, str(EXAMPLES))
    from standalone_article import ArticleVAE

    return {"article": ArticleVAE, "default": Plain}[name]()


class Plain(nn.Module):
    """The default network, with the interface of the tutorial's."""

    def __init__(self):
        super().__init__()
        self.model = vl_model("default")

    def forward(self, x):
        mu, logvar = self.model.encode(x)
        z = mu + torch.randn_like(mu) * torch.exp(logvar / 2)
        return torch.sigmoid(self.model.decode(z)), mu, logvar


def training_flops(network):
    """Floating-point operations of a training image, forward and backward, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    model = vl_model(network)
    with FlopCounterMode(display=False) as counter:
        vl.Elbo()(model, torch.rand(64, *model.image_shape)).loss.backward()
    return counter.get_total_flops() / 64


def vl_model(network):
    """The network as vaelib's model, untrained."""
    return vl.presets.article_vae() if network == "article" else vl.conv_vae((1, *SIZE))
