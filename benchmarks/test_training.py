"""Training: vaelib's Trainer beside the tutorial's loop, pythae's trainer and a hand-written loop, interleaved.

All four train the tutorial's network from the same weights on the same images in batches of 64 with Adam at 1e-3.
Each runs in a process of its own, one at a time, and first proves that its loss on those weights is everybody's.
"""

import importlib.util
import itertools
import statistics
import tomllib
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from loop_process import Job, Loop, training_flops, write_files

import vaelib as vl
from vaelib.benchmark.roofline import rates

FLOORS = Path(__file__).parent / "floors.toml"
LOOPS = ("article", "pythae", "handwritten", "vaelib")
THREADS = torch.get_num_threads()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def seconds_to(loss, rounds):
    """Training time until the held-out loss was reached, linear within the round; infinity if never."""
    total = 0.0
    for before, after in itertools.pairwise(rounds):
        if after["loss"] <= loss:
            return total + after["seconds"] * (before["loss"] - loss) / (before["loss"] - after["loss"])
        total += after["seconds"]
    return float("inf")


@pytest.mark.filterwarnings("ignore")
def test_training(benchmark, tmp_path):
    if benchmark.disabled:
        pytest.skip("measured with --benchmark-only")
    if importlib.util.find_spec("pythae") is None:
        loops = tuple(loop for loop in LOOPS if loop != "pythae")
        print("pythae is not installed (pip install 'vaelib[bench]'): its row is missing")
    else:
        loops = LOOPS
    images = 6400
    write_files(tmp_path, vl.data.shapes(1024 + images, image_size=28).images, "article")
    jobs = [Job(loop, str(tmp_path), images=images, device=DEVICE, threads=THREADS) for loop in loops]
    with ExitStack() as stack:
        running = {job.loop: stack.enter_context(Loop(job)) for job in jobs}
        for loop in running.values():
            loop.read()
        first = [loop.rounds[0]["loss"] for loop in running.values()]
        assert first == pytest.approx([first[0]] * len(first), rel=1e-5), "the loops compute different losses"
        for loop in running.values():
            loop()  # compiles and warms up

        def others():
            for name in loops[:-1]:
                running[name]()

        benchmark.group = "training, the tutorial's network, batch 64"
        benchmark.pedantic(running["vaelib"], setup=others, rounds=9, iterations=1)
    report(benchmark, running, images)


def report(benchmark, running, num_images):
    speeds = {
        loop: [num_images / entry["seconds"] for entry in process.rounds[2:]] for loop, process in running.items()
    }
    target = max(process.rounds[-1]["loss"] for process in running.values())
    times = {loop: seconds_to(target, [process.rounds[0], *process.rounds[2:]]) for loop, process in running.items()}
    rate, flops = rates(THREADS)[DEVICE] / 1e9, training_flops("article")
    rows = {}
    for loop, values in speeds.items():
        speed = statistics.median(values)
        ratio = statistics.median(v / o for v, o in zip(speeds["vaelib"], values, strict=True))
        rows[loop] = {
            "images_per_second": round(speed),
            "vaelib_is_faster_by": round(ratio, 3),
            "seconds_to_loss": round(times[loop], 2),
            "of_gemm_rate": round(speed * flops / 1e9 / rate, 3),
        }
        print(f"\n{loop:12}", rows[loop], end="")
    print(
        f"\nloss {target:.1f} nats, products {rate:.0f} GFLOP/s, {flops / 1e6:.2f} MFLOP per image, {THREADS} threads"
    )
    benchmark.extra_info.update(rows=rows, threads=THREADS, device=DEVICE, torch=torch.__version__, gemm_gflops=rate)
    for loop, floor in tomllib.loads(FLOORS.read_text())["training"].items():
        assert loop not in rows or rows[loop]["vaelib_is_faster_by"] >= floor, f"{loop}: {rows[loop]}, floor {floor}"
