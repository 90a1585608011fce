"""What the rows share: binarised MNIST, training, the estimate of log p(x), and one JSON per row.

`python examples/reproduce/ROW.py FLAGS` trains a row and writes `results/ROW.json` beside it, with the flags that were
given; `--quick` sees that it runs.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

import vaelib as vl

RESULTS = Path(__file__).parent / "results"


def options(row, epochs):
    parser = argparse.ArgumentParser(description=f"Reproduces {row} on binarised MNIST.")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--samples", type=int, default=1000, help="importance samples an image")
    parser.add_argument("--images", type=int, help="test images to estimate on; all if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of torch; all cores if not given")
    parser.add_argument("--precision", default="fp32", help="of the networks in training; bf16 where the CPU has it")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of checkpoints; a stopped run resumes")
    parser.add_argument("--quick", action="store_true", help="200 images, one epoch, 20 samples: to see that it runs")
    arguments = parser.parse_args()
    arguments.code = code_of(RESULTS.parent)  # of what runs: HEAD may move before the result is written
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    return arguments


def mnist(arguments):
    """Dynamically binarised: 50,000 to train, 10,000 to choose by, 10,000 to test."""
    os.environ.setdefault("VAELIB_DATA", ".")
    sets = [vl.data.load("dynamic_mnist", split) for split in ("train", "val", "test")]
    if arguments.quick:
        return [images.subset(slice(200)) for images in sets]
    return [*sets[:2], sets[2].subset(slice(arguments.images))]


def code_of(directory):
    """The commit that is checked out and the tracked files that differ from it; None where there is no repository."""

    def git(*words):
        found = subprocess.run(["git", *words], cwd=directory, capture_output=True, text=True)
        return found.stdout.splitlines() if found.returncode == 0 else None

    commit, changed = git("rev-parse", "HEAD"), git("diff", "--name-only", "HEAD", "--", ":(exclude)*results/*.json")
    return {"commit": commit[0] if commit else None, "changed_files": changed}


def reproduce(row, vae, objective, arguments, published, source, published_on="dynamic", **recipe):
    """Train, estimate -log p(x) of the test images, and keep both; ``published_on``: how that MNIST was binarised."""
    train, val, test = mnist(arguments)
    trainer = vl.Trainer(
        objective,
        max_epochs=1 if arguments.quick else arguments.epochs,
        batch_size=100,
        precision=arguments.precision,
        seed=arguments.seed,
        output_dir=arguments.runs / row,
        callbacks=[vl.EMA(0.9 if arguments.quick else 0.999)],
        **recipe,
    )
    history = trainer.fit(vae, train, val, resume=True)
    started = time.perf_counter()
    vae.decoder.compile()
    generator = torch.Generator().manual_seed(arguments.seed)
    num_samples = 20 if arguments.quick else arguments.samples
    found = vl.evaluation.log_likelihood(vae, test, num_samples=num_samples, generator=generator)
    looked = vl.evaluation.latents(vae, test, generator=generator)
    write(
        row,
        arguments,
        {
            "nll": -found.log_likelihood.value,
            "standard_error": found.log_likelihood.standard_error,
            "num_images": found.num_images,
            "num_samples": found.num_samples,
            "effective_samples": found.effective_samples,
            "monte_carlo_error": found.monte_carlo_error,
            "bias": found.bias,
            "elbo": found.elbo.value,
            "kl": looked.kl.value,
            "active_units": looked.active_units,
            "latents": looked.in_words(),
            "published": published,
            "published_on": published_on,
            "source": source,
            "precision": arguments.precision,
            "parameters": sum(parameter.numel() for parameter in vae.parameters()),
            "epochs": len(history),
            "seconds_per_epoch": sorted(record.seconds for record in history)[len(history) // 2],
            "seconds_to_train": sum(record.seconds for record in history),
            "seconds_to_evaluate": time.perf_counter() - started,
        },
    )


def write(row, arguments, figures):
    """One JSON per row, with flags, code, seed, hardware and date; printed, and kept unless it was a quick run."""
    hardware = f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores, {platform.machine()}"
    if torch.cuda.is_available():
        hardware = f"{torch.cuda.get_device_name()}, {hardware}"
    result = {
        "row": row,
        "flags": " ".join(sys.argv[1:]),
        **figures,
        "seed": arguments.seed,
        "hardware": hardware,
        "torch": torch.__version__,
        **arguments.code,
        "date": datetime.date.today().isoformat(),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if not arguments.quick:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / f"{row}.json").write_text(text + "\n")
