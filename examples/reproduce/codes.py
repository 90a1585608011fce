"""The rate and the distortion of a Gaussian latent and of two quantised ones, of the same networks and epochs, in nats.

Each latent is a map of 4 x 7 x 7. The quantised ones have 49 codes of 512; their rate is 49 ln 512 with uniform codes,
and less by an autoregressive prior that is fitted to the codes of the training images.
"""

import time

import torch
from protocol import mnist, options, write

import vaelib as vl
from vaelib import evaluation

SHAPE, CODES = (4, 7, 7), 512
LATENTS = {
    "Gaussian": lambda: vl.GaussianLatent(SHAPE),
    "VQ": lambda: vl.VectorQuantizer(SHAPE, CODES),
    "FSQ": lambda: vl.FiniteScalarQuantizer(SHAPE, (8, 4, 4, 4)),
}


def measured(model, test):
    """The bound of test images and its parts."""
    found = evaluation.elbo(model, test, generator=torch.Generator().manual_seed(arguments.seed))
    return {
        "distortion": found.reconstruction.value,
        "rate": found.kl.value,
        "elbo": found.elbo.value,
        "standard_error": found.elbo.standard_error,
    }


arguments = options("codes", epochs=2)
epochs, num_steps = (1, 20) if arguments.quick else (arguments.epochs, 1000)
train, val, test = mnist(arguments)
results = {}
for name, make in LATENTS.items():
    torch.manual_seed(arguments.seed)
    model = vl.conv_vae((1, 28, 28), latent=make(), hidden_channels=(32, 64), residual_blocks=1)
    history = vl.Trainer(max_epochs=epochs, precision=arguments.precision).fit(model, train, progress=False)
    model.cpu().eval()
    own = "standard normal" if name == "Gaussian" else "uniform"
    results[name] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds_to_train": sum(record.seconds for record in history),
        "priors": {own: measured(model, test)},
    }
    if name != "Gaussian":
        used = evaluation.code_usage(model, test)
        results[name] |= {"dead": used.dead, "perplexity": used.perplexity}
        prior = vl.AutoregressiveCodes(model.latent.num_codes, model.latent.num_positions, width=64, num_blocks=2)
        started = time.perf_counter()
        model.prior = vl.fit_prior(prior, evaluation.encode(model, train), num_steps=num_steps, progress=False)
        results[name]["seconds_to_fit"] = time.perf_counter() - started
        results[name]["priors"]["autoregressive, fitted"] = measured(model, test)
    print(name, results[name], flush=True)
write(
    "codes",
    arguments,
    {
        "latents": results,
        "published": None,
        "source": "van den Oord et al. (2017): https://arxiv.org/abs/1711.00937",
        "epochs": epochs,
        "precision": arguments.precision,
    },
)
