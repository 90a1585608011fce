# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib", "optuna>=4"]
# ///
"""A search with Optuna over latent size, learning rate, channels and strides, by validation ELBO.

    python examples/sweep.py --trials 30

Trials that fall behind the others at the same epoch are pruned by a callback of three lines. Every trial is kept in
`sweep.db`, so the same command adds trials to it. Prints the best ones in nats per validation image, and what the
best is worth on test images, which took no part in the choice. Writes the best model beside it.
"""

import argparse
from pathlib import Path

import optuna
import torch

import vaelib as vl


class Pruning:
    """Ends a trial that is worse than the median of those before it."""

    def __init__(self, trial):
        self.trial = trial

    def on_epoch(self, run):
        self.trial.report(run.history[-1].val.loss, run.epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def suggested(trial, image_shape):
    """A model and a learning rate."""
    latent_dim = trial.suggest_int("latent_dim", 4, 64, log=True)
    width = trial.suggest_categorical("width", (8, 16, 24))
    stages = trial.suggest_int("stages", 2, 4)
    stride = trial.suggest_int("stride", 2, 3)
    channels = [width * (i + 1) for i in range(stages)]
    model = vl.conv_vae(image_shape, latent_dim, hidden_channels=channels, kernel_size=stride + 1, stride=stride)
    return model, trial.suggest_float("learning_rate", 1e-3, 2e-2, log=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shapes", help="whatever vl.data.load takes, such as mnist or a folder")
    parser.add_argument("--trials", type=int, default=20, help="20 of shapes take about 5 minutes on one CPU core")
    parser.add_argument("--epochs", type=int, default=4, help="of each trial")
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"), help="folder of the study and the best model")
    parser.add_argument("--quick", action="store_true", help="3 trials of 500 images, to see that it runs")
    arguments = parser.parse_args()
    train, test = (vl.data.load(arguments.data, split, image_size=32) for split in ("train", "test"))
    train, val = train.subset(slice(len(train) // 10, None)), train.subset(slice(len(train) // 10))
    if arguments.quick:
        train, arguments.trials, arguments.epochs = train.subset(slice(500)), 3, 2

    def objective(trial):
        torch.manual_seed(0)
        vae, learning_rate = suggested(trial, train.image_shape)
        trainer = vl.Trainer(max_epochs=arguments.epochs, learning_rate=learning_rate, callbacks=[Pruning(trial)])
        loss = trainer.fit(vae, train, val, progress=False)[-1].val.loss
        vl.save(vae, arguments.out / f"trial_{trial.number}")
        return loss

    arguments.out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=f"{arguments.data}, {len(train)} images, {arguments.epochs} epochs",
        storage=f"sqlite:///{arguments.out / 'sweep.db'}",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=0),
    )
    study.optimize(objective, n_trials=arguments.trials)

    finished = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    print(f"{len(finished)} trials finished, {len(study.trials) - len(finished)} were pruned")
    print(f"{'ELBO, nats':>12}{'latent_dim':>12}{'width':>8}{'stages':>8}{'stride':>8}{'learning rate':>15}")
    for trial in sorted(finished, key=lambda trial: trial.value)[:5]:
        latent_dim, width, stages, stride, rate = (
            trial.params[name] for name in ("latent_dim", "width", "stages", "stride", "learning_rate")
        )
        print(f"{-trial.value:12.2f}{latent_dim:12}{width:8}{stages:8}{stride:8}{rate:15.4f}")
    best = vl.load(arguments.out / f"trial_{study.best_trial.number}")
    result = vl.evaluation.elbo(best, test, generator=torch.Generator().manual_seed(0))
    print(f"ELBO of the best: {result.elbo} nats per test image")


if __name__ == "__main__":
    main()
