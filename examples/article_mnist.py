# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib"]
# ///
"""The 2021 tutorial reproduced by vaelib, then surpassed, beside the tutorial's own loop in the same run.

    VAELIB_DATA=folder/with/MNIST python examples/article_mnist.py --epochs 3

Three models are trained in turn on MNIST at 32x32 with batches of 64, seed after seed: the tutorial's code as it is
(`standalone_article.py`), its network and recipe by vaelib (`vl.presets.article_vae`), and vaelib's defaults. Prints
the negative ELBO in nats per test image after every epoch, as the tutorial does, and the seconds of an epoch, and keeps
them as `results.json`. No epoch is chosen by these test images; `vl.data.hold_out` gives images to choose by.
"""

import argparse
import json
import os
import platform
import statistics
from pathlib import Path

import standalone_article
import torch

import vaelib as vl


def tutorial_epochs(epochs, seed, num_images):
    """The tutorial's code: one (nats, seconds) per epoch."""
    torch.manual_seed(seed)
    train, test = standalone_article.loaders(num_images)
    model = standalone_article.ArticleVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        seconds = standalone_article.train_epoch(model, optimizer, train)
        yield standalone_article.test_loss(model, test), seconds


def vaelib_run(model, trainer, data):
    """One (nats, seconds) per epoch."""
    history = trainer.fit(model, *data)
    return [(record.val.reconstruction + record.val.kl, record.seconds) for record in history]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1, help="each takes about a minute on 2 CPU cores")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each, with seeds 0, 1, ...")
    parser.add_argument("--out", type=Path, default=Path("runs/article_mnist"), help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="256 images, to see that it runs")
    arguments = parser.parse_args()
    epochs, num_images = arguments.epochs, 256 if arguments.quick else None

    os.environ.setdefault("VAELIB_DATA", ".")
    data = [vl.data.load("mnist", split, image_size=32) for split in ("train", "test")]
    if num_images:
        data = [images.subset(slice(num_images)) for images in data]
    recipe = {"learning_rate": 1e-3, "lr_schedule": "constant", "optimizer": torch.optim.Adam}

    results = {"tutorial's code": [], "article_vae by vaelib": [], "vaelib's defaults": []}
    for seed in range(arguments.seeds):
        results["tutorial's code"].append(list(tutorial_epochs(epochs, seed, num_images)))
        torch.manual_seed(seed)
        trainer = vl.Trainer(max_epochs=epochs, seed=seed, **recipe)
        results["article_vae by vaelib"].append(vaelib_run(vl.presets.article_vae(), trainer, data))
        torch.manual_seed(seed)
        trainer = vl.Trainer(max_epochs=epochs, seed=seed)
        results["vaelib's defaults"].append(vaelib_run(vl.conv_vae((1, 32, 32)), trainer, data))

    parameters = [sum(p.numel() for p in m.parameters()) for m in (vl.presets.article_vae(), vl.conv_vae((1, 32, 32)))]
    for (name, runs), count in zip(results.items(), (parameters[0], *parameters), strict=True):
        seconds = statistics.median(seconds for run in runs for _, seconds in run)
        print(f"{name:24}{count:9,} parameters  {seconds:5.1f} s/epoch (median)")
        for epoch in range(epochs):
            print(f"  epoch {epoch + 1}: " + ", ".join(f"{run[epoch][0]:.2f}" for run in runs) + " nats per test image")
    where = {"machine": platform.machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(json.dumps(where | {"nats_and_seconds": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
