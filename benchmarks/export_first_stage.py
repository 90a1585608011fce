"""What the export of a first stage costs: seconds, CPU seconds and memory, each case in a process of its own.

    python benchmarks/export_first_stage.py            # all cases, on a quiet machine
    python benchmarks/export_first_stage.py 5M-any-size

Weights are random: neither time nor memory depends on them. The memory is the peak of the resident set, torch and all.
"""

import argparse
import subprocess
import sys
import tempfile
import time

CASES = {
    "5M-any-size": ({"image_shape": (3, 256, 256), "width": 32}, True),
    "5M-one-size": ({"image_shape": (3, 256, 256), "width": 32}, False),
    "84M-any-size": (
        {"image_shape": (3, 512, 512), "width": 128, "norm": "group", "attention": True, "quant_conv": True},
        True,
    ),
}
"""Arguments of ``vl.autoencoder_kl``, f8 all of them, and whether height and width are left free."""


def measure(name):
    """One row of the table: the export, then a decoded image of 512 x 512 where any size is allowed."""
    import numpy as np
    import torch

    import vaelib as vl
    from vaelib.benchmark.worker import host_peak_mib
    from vaelib.runtime import OnnxVAE

    options, dynamic_size = CASES[name]
    torch.manual_seed(0)
    model = vl.autoencoder_kl(**options).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with tempfile.TemporaryDirectory() as directory:
        wall, cpu = time.perf_counter(), time.process_time()
        vl.export_onnx(model, directory, dynamic_size=dynamic_size)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = host_peak_mib() / 2**10
        side = 64 if dynamic_size else 32
        z = np.random.default_rng(0).standard_normal((1, 4, side, side), np.float32)
        runtime, start = OnnxVAE(directory), time.perf_counter()
        shape = runtime.decode(z).shape[2:]
        decode = time.perf_counter() - start
    print(f"| {name} | {parameters:,} | {wall:.0f} | {cpu:.0f} | {peak:.1f} | {shape[0]} x {shape[1]}: {decode:.1f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="case", help=f"among {', '.join(CASES)}; all if none is given")
    parser.add_argument("--here", action="store_true", help="in this process, one case")
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - CASES.keys():
        parser.error(f"cases must be among {', '.join(CASES)}, got {', '.join(sorted(unknown))}")
    if arguments.here:
        measure(*arguments.cases)
        return
    print("| case | parameters | seconds | CPU seconds | peak memory, GiB | first decode, seconds |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for name in arguments.cases or CASES:
        subprocess.run([sys.executable, __file__, name, "--here"], check=True)


if __name__ == "__main__":
    main()
