"""MiB that 10,000 calls of a bundle add to the process."""

import sys
from pathlib import Path

import numpy as np

from vaelib.runtime import OnnxVAE


def resident():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


model = OnnxVAE(sys.argv[1], threads=2)
generator = np.random.default_rng(0)
images, z = generator.random((600, 1, 8, 8), dtype=np.float32), np.zeros((600, 2), np.float32)
model.tune()


def calls(count):
    for _ in range(count):
        size = int(generator.integers(1, 600) if generator.random() < 0.2 else generator.integers(1, 20))
        model.encode(images[:size])
        model.decode(z[:size])
        model.score(images[: size % 30])


calls(500)
before = resident()
calls(10_000)
print(resident() - before)
