"""The row of the flow prior on binarised MNIST, trained for the minutes that there are; a further call resumes it.

    python benchmarks/gpu_row.py --out row.json --runs runs --device cuda --seconds 120

It is `examples/reproduce/flow_prior.py` in bf16 with a limit of time: two thirds of it train, the rest evaluates.
After each epoch the JSON has its bound; at the end, log p(x) on as many test images as time allows.
"""

import argparse
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROW, EPOCHS = "flow_prior", 100
OF_TRAINING = 2 / 3


class Row:
    """The one row of the result file."""

    def __init__(self, results):
        self._results, self._row = results, {"row": ROW, "of_epochs": EPOCHS}

    def note(self, **values):
        self._row |= values
        self._results.note(rows=[self._row])


class Watch:
    """Writes every epoch, and asks the run to stop when its time is over, as a signal from outside would."""

    def __init__(self, row, seconds):
        self._row, self._until, self._asked = row, time.monotonic() + seconds, False

    def on_step(self, run):
        if time.monotonic() > self._until and not self._asked:
            self._asked = True
            os.kill(os.getpid(), signal.SIGTERM)

    def on_epoch(self, run):
        last = run.history[-1]
        self._row.note(
            epochs=len(run.history),
            minutes_to_train=sum(record.seconds for record in run.history) / 60,
            seconds_per_epoch=last.seconds,
            images_per_second=last.images_per_second,
            elbo_on_val=-(last.val.reconstruction + last.val.kl),
        )


def images(quick):
    """Binarised MNIST to train, to choose by and to test; or the reason why there is none."""
    import vaelib as vl

    try:
        sets = [vl.data.load("dynamic_mnist", split) for split in ("train", "val", "test")]
    except FileNotFoundError as error:
        return str(error)
    return [part.subset(slice(200)) for part in sets] if quick else sets


def train(arguments, row, sets):
    """The model of the best epoch so far, or of the last step before the first epoch has ended."""
    import vaelib as vl

    sys.path.insert(0, str(ROOT / "examples" / "reproduce"))
    from networks import flow_vae

    vae = flow_vae()
    directory = arguments.runs / ROW
    trainer = vl.Trainer(
        max_epochs=1 if arguments.quick else EPOCHS,
        batch_size=100,
        learning_rate=2e-3,
        precision="bf16",
        output_dir=directory,
        callbacks=[
            vl.EMA(0.999),
            vl.Checkpoints(keep_last=1),
            vl.Pictures(every=EPOCHS),
            Watch(row, OF_TRAINING * arguments.seconds),
        ],
    )
    try:
        trainer.fit(vae, *sets[:2], resume=True, progress=False)
        row.note(ended="all epochs are done")
    except vl.TrainingInterrupted as stopped:
        row.note(ended=f"out of time after step {stopped.step}; resumes from there")
    return vl.load(directory / "best", device=arguments.device) if (directory / "best").is_dir() else vae.eval()


def evaluate(vae, test, seconds, draws, row, quick):
    """The bound, then log p(x): of 20 images to see how long that takes, then of as many as there is time for."""
    import torch

    import vaelib as vl

    until = time.monotonic() + seconds
    device = next(vae.parameters()).device
    batch_size = 512 if device.type == "cpu" else 16_384
    generator = torch.Generator(device).manual_seed(0)
    row.note(elbo=estimate(vl.evaluation.elbo(vae, test, generator=generator).elbo), test_images=len(test))
    count, took = 20, 0.0
    while count:
        started = time.monotonic()
        found = vl.evaluation.log_likelihood(
            vae,
            test.subset(slice(count)),
            num_samples=draws,
            batch_size=batch_size,
            generator=generator,
            progress=False,
        )
        took = time.monotonic() - started
        row.note(
            log_likelihood=estimate(found.log_likelihood),
            num_images=found.num_images,
            num_samples=draws,
            effective_samples=found.effective_samples,
            seconds_to_evaluate=took,
        )
        affordable = min(len(test), int(0.7 * (until - time.monotonic()) / took * count))
        count = affordable if affordable > 2 * count and not quick else 0


def estimate(found):
    return {"value": found.value, "standard_error": found.standard_error}


def main():
    from gpu_results import Results

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the run, which a further call resumes")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--mnist", help="not used: MNIST is below VAELIB_DATA, where gpu.sh has put it")
    parser.add_argument("--quick", action="store_true", help="200 images, one epoch, 20 draws: to see that it runs")
    arguments = parser.parse_args()
    started = time.monotonic()
    results = Results(arguments.out, arguments.device)
    results.skip("hierarchy", "vaelib has no hierarchical model yet")
    if importlib.util.find_spec("zuko") is None:
        results.skip(ROW, "zuko is not installed")
        return
    sets = images(arguments.quick)
    if isinstance(sets, str):
        results.skip(ROW, sets)
        return
    row = Row(results)
    vae = train(arguments, row, sets)
    remaining = arguments.seconds - (time.monotonic() - started)
    evaluate(vae, sets[2], remaining, 20 if arguments.quick else 1000, row, arguments.quick)


if __name__ == "__main__":
    main()
