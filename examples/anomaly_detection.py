# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib"]
# ///
"""Which images are unlike those that were trained on? One class is held out of the training and then searched for.

    VAELIB_DATA=folder/with/MNIST python examples/anomaly_detection.py --odd 0

Prints, for three scores of a test image, their mean in nats over known and over odd images, and the AUROC: how often
an odd image has the higher score of the two, 0.5 by chance. It can be below: an odd image that is simpler than the
known ones, as a 1 among digits, has the higher likelihood. Writes `oddest.png`, the test images with the highest -ELBO.
"""

import argparse
from pathlib import Path

import torch

import vaelib as vl
from vaelib.evaluation import Estimate, auroc


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", help="with labels: mnist, or shapes, which needs no file")
    parser.add_argument("--odd", type=int, default=0, help="the class held out of the training")
    parser.add_argument("--epochs", type=int, default=4, help="4 of MNIST take about 2 minutes on one CPU core")
    parser.add_argument("--out", type=Path, default=Path("runs/anomaly_detection"), help="folder of the image")
    parser.add_argument("--quick", action="store_true", help="5,000 images, to see that it runs")
    arguments = parser.parse_args()
    train, test = (vl.data.load(arguments.data, split, image_size=28) for split in ("train", "test"))
    if arguments.quick:
        train, test = train.subset(slice(5_000)), test.subset(slice(2_000))

    torch.manual_seed(0)
    vae = vl.conv_vae(train.image_shape, latent_dim=16)
    vl.Trainer(max_epochs=arguments.epochs).fit(vae, train.subset(train.labels != arguments.odd))
    vae.cpu()

    terms = vl.evaluation.per_image_terms(vae, test.batches(500), vl.Elbo(), generator=torch.Generator().manual_seed(0))
    scores = {
        "-ELBO": terms.reconstruction + terms.kl,
        "reconstruction": terms.reconstruction,
        "KL": terms.kl,
    }
    is_odd = test.labels == arguments.odd
    print(f"{'score, nats':16}{'known':>18}{'odd':>18}{'AUROC':>18}")
    for name, score in scores.items():
        known, odd = score[~is_odd], score[is_odd]
        area, error = auroc(known, odd)
        print(f"{name:16}{Estimate.of(known)!s:>18}{Estimate.of(odd)!s:>18}{area:>10.3f} +- {error:.3f}")

    oddest = test.batch(scores["-ELBO"].argsort(descending=True)[:40])
    arguments.out.mkdir(parents=True, exist_ok=True)
    vl.plots.save_pairs(oddest, vae.reconstruct(oddest), arguments.out / "oddest.png")


if __name__ == "__main__":
    main()
