# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib"]
# ///
"""Training without the Trainer: model, objective and optimiser as plain parts in a loop of your own.

    python examples/plain_loop.py --epochs 8

`vl.elbo_loss` takes tensors and knows no model; a schedule is a function of the step; the data set cuts its own
batches; `vl.evaluation` wants any model and any images. Prints nats per validation image after each epoch, and per test
image at the end.
"""

import argparse
from pathlib import Path

import torch

import vaelib as vl


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="8 take less than a minute on one CPU core")
    parser.add_argument("--out", type=Path, default=Path("runs/plain_loop"), help="folder of the model")
    parser.add_argument("--quick", action="store_true", help="2,000 images twice, to see that it runs")
    arguments = parser.parse_args()
    train, test = (vl.data.load("shapes", split, image_size=32) for split in ("train", "test"))
    if arguments.quick:
        train, arguments.epochs = train.subset(slice(2_000)), 2

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, val = (part.to(device) for part in vl.data.hold_out(train))
    generator = torch.Generator(device).manual_seed(0)
    vae = vl.conv_vae(train.image_shape, latent_dim=10).to(device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
    beta = vl.linear_warmup(100)

    print(f"{'epoch':>5}{'ELBO':>20}{'reconstruction':>20}{'KL':>18}   nats per validation image")
    step = 0
    for epoch in range(1, arguments.epochs + 1):
        vae.train()
        for x in train.batches(64, shuffle=True, generator=generator):
            out = vae(x, generator=generator)
            terms = vl.elbo_loss(x, *out, likelihood=vae.likelihood, prior=vae.prior, beta=beta(step))
            optimizer.zero_grad()
            terms.loss.backward()
            optimizer.step()
            step += 1
        result = vl.evaluation.elbo(vae, val, generator=generator)
        print(f"{epoch:5}{result.elbo!s:>20}{result.reconstruction!s:>20}{result.kl!s:>18}")
    result = vl.evaluation.elbo(vae, test, generator=generator)
    print(f"{'test':>5}{result.elbo!s:>20}{result.reconstruction!s:>20}{result.kl!s:>18}")
    vl.save(vae, arguments.out)


if __name__ == "__main__":
    main()
