# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib"]
# ///
"""One recipe on any number of processes: nothing in this script knows how many there are.

    python examples/distributed.py
    torchrun --nproc-per-node 2 examples/distributed.py
    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 examples/distributed.py

A step is over `batch_size` images whoever computes them, so the learning rate stays what it is; the first process
measures and writes. Batch normalisation would see each process's own images; group normalisation does not care.
With `--quick` it starts itself twice on the CPU, on one process and, with torchrun and gloo, on two.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

import vaelib as vl


def run_on_one_and_two(out):
    """The two commands above, on a few images."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for launcher in ([], torchrun):
        script = [__file__, "--images", "1000", "--epochs", "2", "--out", str(out)]
        subprocess.run([sys.executable, *launcher, *script], check=True, env=environment)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="of the training set")
    parser.add_argument("--epochs", type=int, default=8, help="8 take about a minute on one CPU core")
    parser.add_argument("--out", type=Path, default=Path("runs/distributed"), help="folder of the model")
    parser.add_argument("--quick", action="store_true", help="one process, then two, to see that both run")
    arguments = parser.parse_args()
    if arguments.quick:
        run_on_one_and_two(arguments.out)
        return

    train, test = (vl.data.load("shapes", split, image_size=32) for split in ("train", "test"))
    torch.manual_seed(0)
    vae = vl.conv_vae(train.image_shape, latent_dim=10, norm="group")
    trainer = vl.Trainer(max_epochs=arguments.epochs, batch_size=64)
    history = trainer.fit(vae, train.subset(slice(arguments.images)), progress=False)

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if os.environ.get("RANK", "0") == "0":
        vae.cpu()
        result = vl.evaluation.elbo(vae, test, generator=torch.Generator().manual_seed(0))
        speed = f"{history[-1].images_per_second:,.0f} images/s"
        print(f"processes: {processes}   ELBO {result.elbo} nats per test image, {speed}")
        vl.save(vae, arguments.out)


if __name__ == "__main__":
    main()
