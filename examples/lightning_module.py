# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib", "lightning>=2.5"]
# ///
"""The same model and objective under Lightning, for those whose training is built on it.

    python examples/lightning_module.py --epochs 8

An objective of vaelib is called as `objective(model, x, step=...)` and returns a named tuple of nats whose `loss` is
a scalar: a training step is one line. The model stays a plain `vl.VAE`, saved and evaluated as always.
"""

import argparse
from pathlib import Path

import lightning
import torch
from torch.utils.data import DataLoader

import vaelib as vl


class LitVAE(lightning.LightningModule):
    """What Lightning asks, around a model and an objective."""

    def __init__(self, vae, objective, learning_rate):
        super().__init__()
        self.vae, self.objective, self.learning_rate = vae, objective, learning_rate

    def training_step(self, x, _):
        return self.objective(self.vae, x, step=self.global_step).loss

    def validation_step(self, x, _):
        terms = self.objective(self.vae, x, step=self.global_step)
        means = {"loss": terms.loss, "reconstruction": terms.reconstruction.mean(), "kl": terms.kl.mean()}
        self.log_dict(means, batch_size=len(x), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="8 take about a minute on one CPU core")
    parser.add_argument("--out", type=Path, default=Path("runs/lightning_module"), help="folder of model and metrics")
    parser.add_argument("--quick", action="store_true", help="2,000 images twice, to see that it runs")
    arguments = parser.parse_args()
    train, test = (vl.data.load("shapes", split, image_size=32) for split in ("train", "test"))
    if arguments.quick:
        train, arguments.epochs = train.subset(slice(2_000)), 2
    train, val = vl.data.hold_out(train)

    lightning.seed_everything(0, verbose=False)
    vae = vl.conv_vae(train.image_shape, latent_dim=10)
    trainer = lightning.Trainer(
        max_epochs=arguments.epochs,
        logger=lightning.pytorch.loggers.CSVLogger(arguments.out),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=10,
    )
    objective = vl.Elbo(beta=vl.linear_warmup(100))
    trainer.fit(
        LitVAE(vae, objective, learning_rate=2e-3),
        DataLoader(train, batch_size=64, shuffle=True),
        DataLoader(val, batch_size=256),
    )
    vae.cpu()

    result = vl.evaluation.elbo(vae, test, generator=torch.Generator().manual_seed(0))
    print(f"{'ELBO':16}{result.elbo} nats per test image")
    print(f"{'reconstruction':16}{result.reconstruction}")
    print(f"{'KL':16}{result.kl}")
    own = trainer.callback_metrics
    print(f"{'ELBO':16}{-own['reconstruction'] - own['kl']:.2f} nats per validation image, by Lightning")
    vl.save(vae, arguments.out)


if __name__ == "__main__":
    main()
