"""Disentanglement on `shapes`, whose factors are known: MIG of VAE, beta-VAE and beta-TC-VAE."""

import statistics
import time

import torch
from protocol import options, write

import vaelib as vl

arguments = options("beta_tc", epochs=15)
train, test = (vl.data.load("shapes", split, image_size=32) for split in ("train", "test"))
if arguments.quick:
    train, test = train.subset(slice(500)), test.subset(slice(200))
objectives = {
    "vae": vl.Elbo(),
    "beta_vae": vl.Elbo(beta=4.0),
    "beta_tc": vl.BetaTcLoss(len(train), beta=4.0),
}
scores, started = {}, time.perf_counter()
for name, objective in objectives.items():
    migs = []
    for seed in range(1 if arguments.quick else 3):
        torch.manual_seed(seed)
        vae = vl.conv_vae(train.image_shape, latent_dim=10, hidden_channels=(16, 32, 64))
        epochs = 1 if arguments.quick else arguments.epochs
        vl.Trainer(objective, max_epochs=epochs, learning_rate=2e-3, seed=seed, precision=arguments.precision).fit(
            vae, train, progress=False
        )
        codes = vl.evaluation.encode(vae, test)[0]
        migs.append(vl.evaluation.mig(codes, test.factors).value)
        print(f"{name}, seed {seed}: MIG {migs[-1]:.3f}", flush=True)
    scores[name] = {"mig": statistics.mean(migs), "seeds": migs}
write(
    "beta_tc",
    arguments,
    {
        "mig": scores,
        "published": None,  # of this set, which is vaelib's own
        "source": "The scores of Chen et al. (2018): https://arxiv.org/abs/1802.04942",
        "epochs": arguments.epochs,
        "seconds": time.perf_counter() - started,
    },
)
