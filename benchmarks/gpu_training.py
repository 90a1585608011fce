"""Training measured: `vl.Trainer` beside the tutorial's loop and a hand-written one, in turn, from the same weights.

    python benchmarks/gpu_training.py --out training.json --device cuda --seconds 170 --mnist mnist

Every loop runs in a process of its own and first shows that its loss on the same weights and images is the tutorial's.
Then come rounds in which each loop has its turn; a row is written again after each of them, with medians so far. A
second call with the same --out measures what is missing.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import torch
from gpu_records import Deadline, Records
from loop_process import Job, Loop, training_flops, write_files

import vaelib as vl
from vaelib.benchmark.roofline import rates
from vaelib.benchmark.worker import ProcessError

CONFIGURATIONS = (("article", 64), ("default", 64), ("article", 512), ("default", 512))
"""Networks and batch sizes, in order of worth."""
LOOPS = ("article", "vaelib", "handwritten", "vaelib bf16", "vaelib eager")
"""The tutorial's loop comes first: the others are compared with it."""
EAGER = ("article", "vaelib eager")
NAMES = {"article": "tutorial", "vaelib": "vl.Trainer compiled", "handwritten": "hand-written"} | {
    "vaelib bf16": "vl.Trainer compiled, bf16",
    "vaelib eager": "vl.Trainer eager",
}
LOSS_TOLERANCE = 1e-5
"""How far losses on the same weights may be apart, of their size."""
EPOCH = 60_000
HELD_OUT = 1024
PRODUCTS = {"vaelib bf16": " bf16"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=170.0, help="ends by itself before")
    parser.add_argument("--mnist", help="28x28 images by a name or path of vl.data.load; drawn shapes if not given")
    parser.add_argument("--quick", action="store_true", help="few images and rounds: to see that it runs")
    arguments = parser.parse_args()
    deadline = Deadline(arguments.seconds)
    images, data = read_images(arguments)
    records = Records(
        arguments.out,
        arguments.device,
        ("network", "batch", "loop"),
        data=data,
        quick=arguments.quick,
        loss_tolerance=LOSS_TOLERANCE,
        tf32="torch's settings: in convolutions, not in products",
        products={} if arguments.quick else rates(torch.get_num_threads()),
    )
    with deadline:
        measure_all(records, images, arguments, deadline)
    rounds = rounds_of(arguments)
    for network, batch in configurations_of(arguments):
        missing = [NAMES[loop] for loop in LOOPS if not is_done(records, network, batch, loop, rounds)]
        if missing:
            what = "" if len(missing) == len(LOOPS) else f": {', '.join(missing)}"
            records.skip(f"{network}, batch {batch}{what}", "no time was left")


def configurations_of(arguments):
    return CONFIGURATIONS[:1] if arguments.quick else CONFIGURATIONS


def rounds_of(arguments):
    return 2 if arguments.quick else 5


def read_images(arguments):
    """8-bit images (N, 1, H, W), the first of them held out, and what they are."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device: --device cpu rehearses")
    wanted = HELD_OUT + (640 if arguments.quick else EPOCH if arguments.device == "cuda" else 6400)
    if arguments.mnist is None:
        return vl.data.shapes(wanted, image_size=28).images, "shapes, since --mnist was not given"
    images = vl.data.load(arguments.mnist).images
    return images[:wanted], f"{Path(arguments.mnist).name}, {min(wanted, len(images)):,} images"


def measure_all(records, images, arguments, deadline):
    rounds = rounds_of(arguments)
    first_row_after = 0.0
    for network, batch in configurations_of(arguments):
        if all(is_done(records, network, batch, loop, rounds) for loop in LOOPS) or deadline.left() < first_row_after:
            continue
        print(f"{network}, batch {batch}", flush=True)
        with tempfile.TemporaryDirectory() as directory:
            write_files(directory, images, network)
            jobs = [job_of(loop, directory, network, batch, len(images) - HELD_OUT, arguments) for loop in LOOPS]
            configuration = Configuration(jobs, records)
            configuration.measure(rounds)
        first_row_after = max(first_row_after, configuration.first_row_after)


def is_done(records, network, batch, loop, rounds):
    row = records.find(network=network, batch=batch, loop=NAMES[loop])
    return row is not None and ("failed" in row or row["rounds"] >= rounds)


def job_of(loop, directory, network, batch, images, arguments):
    """The tutorial's loop on a GPU is so slow that a tenth of the images is enough: its time is linear in them."""
    if loop == "article" and arguments.device == "cuda":
        images //= 10
    return Job(loop, directory, network, batch, images, arguments.device, torch.get_num_threads())


class Configuration:
    """A network at a batch size: its loops, opened side by side, then measured in turn."""

    def __init__(self, jobs, records):
        self._jobs, self._records = jobs, records
        self._loops, self._counted_from = {}, dict.fromkeys(LOOPS, 2)
        self._flops = training_flops(jobs[0].network)
        self.first_row_after = 0.0
        """Seconds from the start to the first rows: less than this is no use to begin with."""

    def measure(self, rounds):
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            self._loops = {job.loop: stack.enter_context(Loop(job)) for job in self._jobs}
            self._tutorial = self._loops["article"]
            self._read()
            self._check_losses()
            self._begin(EAGER)
            self._round(EAGER)  # rows that are there even if the others compile for too long
            self.first_row_after = time.monotonic() - started
            self._begin([name for name in LOOPS if name not in EAGER])
            self._counted_from = {name: len(loop.rounds) for name, loop in self._loops.items()}
            for _ in range(rounds):
                self._round(LOOPS)

    def _begin(self, names):
        """The first round of loops, side by side: those that compile would take minutes one after the other."""
        names = [name for name in names if name in self._loops]
        for name in names:
            self._loops[name].ask()
        self._read(names)

    def _round(self, names):
        """A round of training of each loop in turn, and their rows."""
        for name in [name for name in names if name in self._loops]:
            self._loops[name].ask()
            self._read([name])
        for name in [name for name in names if name in self._loops]:
            self._records.put(self._row(name))

    def _read(self, names=None):
        """Wait for loops; one that failed has its row with the error and is closed, the others continue."""
        for name in list(self._loops) if names is None else names:
            try:
                self._loops[name].read()
            except ProcessError as error:
                self._fail(name, str(error))

    def _fail(self, name, error):
        loop = self._loops.pop(name)
        self._records.put(self._facts(loop) | {"failed": error})

    def _check_losses(self):
        """All compute the same loss on the same weights, or are no rows."""
        if not self._loops:
            return
        expected = next(iter(self._loops.values())).rounds[0]["loss"]
        for name, loop in list(self._loops.items()):
            loss = loop.rounds[0]["loss"]
            if not abs(loss - expected) <= LOSS_TOLERANCE * abs(expected):
                self._fail(name, f"its loss on the same weights is {loss:.6g} instead of {expected:.6g}")

    def _facts(self, loop):
        return {"network": loop.job.network, "batch": loop.job.batch_size, "loop": NAMES[loop.job.loop]}

    def _row(self, name):
        loop = self._loops[name]
        first, warm_up = loop.rounds[:2]
        rounds = self._counted(loop)
        seconds = statistics.median(entry["seconds"] for entry in rounds)
        speed = loop.job.images / seconds
        rate = self._records.environment["products"].get(loop.job.device + PRODUCTS.get(name, ""))
        return self._facts(loop) | {
            "images_per_second": speed,
            "epoch_seconds": EPOCH / speed,
            "times_tutorial": self._ratio(loop),
            "first_round_seconds": warm_up["seconds"],
            "compile_seconds": max(0.0, warm_up["seconds"] - seconds),
            "peak_device_mib": rounds[-1]["peak_device_mib"],
            "of_products": None if rate is None else speed * self._flops / rate,
            "loss_before": first["loss"],
            "loss_after": rounds[-1]["loss"],
            "rounds": len(rounds),
            "images_per_round": loop.job.images,
        }

    def _ratio(self, loop):
        """How many times as fast as the tutorial's loop, the median over rounds; None without that loop."""
        pairs = list(zip(self._counted(self._tutorial), self._counted(loop), strict=False))
        if not pairs:
            return None
        images = loop.job.images / self._tutorial.job.images
        return statistics.median(theirs["seconds"] * images / ours["seconds"] for theirs, ours in pairs)

    def _counted(self, loop):
        """The rounds in which every loop had its turn."""
        return loop.rounds[self._counted_from.get(loop.job.loop, 2) :]


if __name__ == "__main__":
    main()
