"""What each process of tests/test_distributed.py and tests/test_nodes.py runs: one call of `fit`, reported as JSON.

The first argument holds the settings. Faults come from the environment, as `FAULT=RANK:STEP`, and act once: where the
directory FAULTS has a file of that name, the fault has been.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

import vaelib as vl
from vaelib.training import processes

RANK = os.environ.get("RANK", "0")


class PosteriorMean:
    """The ELBO's terms without a draw, so that processes cannot differ by what they drew; notes which images it saw."""

    def __init__(self):
        self.seen = {True: [], False: []}

    def __call__(self, model, x, *, step=0, generator=None):
        self.seen[model.training] += numbers_of(x)
        mu, logvar = model.encode(x)
        return vl.elbo_loss(x, model.decode(mu), mu, logvar, likelihood=model.likelihood)


def numbers_of(x):
    """A number of each image that follows from all its pixels."""
    pixels = (x.flatten(1) * 255).round().long()
    return (pixels * torch.arange(1, pixels.shape[1] + 1) ** 2).sum(1).tolist()


def stop_for_ever():
    os.kill(os.getppid(), signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)


def kill_node():
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


ACTS = {
    "EXITS": lambda run: os._exit(9),
    "KILLED": lambda run: os.kill(os.getpid(), signal.SIGKILL),
    "FROZEN": lambda run: stop_for_ever(),
    "NODE_KILLED": lambda run: kill_node(),
    "STOPPED": lambda run: signal.raise_signal(signal.SIGTERM),
    "REASON": lambda run: setattr(run, "stop_reason", "enough"),
    "BUSY": lambda run: time.sleep(float(os.environ["BUSY_SECONDS"])),
}


PARTS = {
    "plain": lambda: {"latent_dim": 2},
    "codes": lambda: {"latent": vl.VectorQuantizer((2, 2, 2), 8, restart=0.5)},
    "codes by gradients": lambda: {"latent": vl.ResidualQuantizer((2, 2, 2), 8, 2, decay=None)},
    "labels": lambda: {"latent_dim": 2, "condition": vl.Labels(3)},
    "labels dropped": lambda: {"latent_dim": 2, "condition": vl.Labels(3, dropout=0.3)},
}


def adversarial():
    """From step 3 with the adaptive weight, which is of the images of all processes."""
    torch.manual_seed(1)
    return vl.Adversarial(vl.PatchDiscriminator(1, width=4, num_layers=1), start=3, ramp=2)


def state_of(objective):
    return objective.state_dict() if isinstance(objective, torch.nn.Module) else {}


class Faults:
    """Does what the environment asks for after a step; notes after each epoch the memory in use and the images seen."""

    def __init__(self, objective):
        self.memory, self.seen, self.validated, self._objective = [], [], [], objective

    def on_step(self, run):
        for name, act in ACTS.items():
            for place in os.environ.get(name, "").split():
                if place == f"{run.accelerator.process_index}:{run.step}":
                    mark = Path(os.environ.get("FAULTS", "nowhere")) / f"{name}-{place.replace(':', '-')}"
                    if not mark.exists():
                        if mark.parent.is_dir():
                            mark.write_text(str(os.getpid()))
                        act(run)
        if "SHOW_STEPS" in os.environ:
            print(f"step {run.step} of rank {RANK}", flush=True)

    def on_epoch(self, run):
        status = Path("/proc/self/status")
        self.memory.append(int(status.read_text().split("VmRSS:")[1].split()[0]) if status.exists() else 0)
        if self._objective is not None:
            self.seen.append(self._objective.seen[True])
            self.validated.append(self._objective.seen[False])
            self._objective.seen = {True: [], False: []}


def report_of(options):
    """What one run gave."""
    processes.SILENCE = options.pop("silence", processes.SILENCE)
    watched = PosteriorMean() if options.pop("posterior_mean") else None
    objective = adversarial() if options.pop("adversarial", False) else watched
    norm, images, shards = options.pop("norm"), options.pop("images"), options.pop("shards", None)
    resume, every = options.pop("resume", False), options.pop("every", None)
    workers = options.pop("workers", 0)
    torch.manual_seed(0)
    parts = PARTS[options.pop("parts", "plain")]()
    model = vl.conv_vae((1, 8, 8), hidden_channels=(8, 8), norm=norm, **parts)
    data, val = vl.data.shapes(images, image_size=8), vl.data.shapes(37, image_size=8, seed=1)
    if model.condition is not None:
        data, val = (vl.data.ImageDataset(each.images, condition=torch.arange(len(each)) % 3) for each in (data, val))
    if shards is not None:
        data = vl.data.stream(shards, "all", image_size=8, workers=workers)
    faults = Faults(watched)
    trainer = vl.Trainer(objective, callbacks=[faults, vl.Checkpoints(every)], **options)
    history = trainer.fit(model, data, val, progress=False, resume=resume)
    return {
        "train": [r.train.loss for r in history],
        "val": [r.val.loss for r in history],
        "images": [r.num_images for r in history],
        "weights": sum(p.double().sum().item() for p in model.parameters()),
        "state": [value.double().sum().item() for value in model.state_dict().values()],
        "weight": [getattr(r.train, "weight", 0.0) for r in history],
        "objective": [value.double().sum().item() for value in state_of(objective).values()],
        "seen": faults.seen,
        "validated": faults.validated,
        "memory": faults.memory,
        "rank": RANK,
    }


def main():
    report = report_of(json.loads(sys.argv[1]))
    if RANK == "0" or os.environ.get("ALL_RANKS"):
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
