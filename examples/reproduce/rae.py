"""RAE and VAE on MNIST, each with a mixture fitted after training as its sampler: FID by an offline extractor.

The features are those of `examples/mnist_classifier.py`, not Inception's: the order compares with papers, the numbers
don't.
"""

import sys
import time
from pathlib import Path

import torch
from protocol import options, write

import vaelib as vl
from vaelib import evaluation

sys.path.insert(0, str(Path(__file__).parent.parent))
import mnist_classifier

arguments = options("rae", epochs=20)
epochs, num_steps = (1, 20) if arguments.quick else (arguments.epochs, 1000)
train, test = (vl.data.load("mnist", split) for split in ("train", "test"))
if arguments.quick:
    train, test = train.subset(slice(500)), test.subset(slice(200))

classifier = mnist_classifier.train(mnist_classifier.MnistClassifier(), train, min(epochs, 3), arguments.seed)
print(f"accuracy of the extractor: {mnist_classifier.accuracy(classifier, test):.2%}", flush=True)


def parts():
    shape = {"image_shape": (1, 28, 28), "latent_dim": 16}
    torch.manual_seed(arguments.seed)
    return vl.ConvEncoder(**shape, hidden_channels=(16, 32, 64)), vl.ConvDecoder(**shape, hidden_channels=(64, 32, 16))


@torch.no_grad()
def fid(model, prior):
    z = prior.sample(len(test), (16,), generator=torch.Generator().manual_seed(arguments.seed))
    z = z.to(next(model.parameters()).device)
    images = torch.cat([model.likelihood.mean(model.decode(part)) for part in z.split(500)])
    return evaluation.fidelity(classifier.features, test, images).fid._asdict()


results, started = {}, time.perf_counter()
for name, model, objective in (
    ("vae", vl.VAE(*parts()), vl.Elbo()),
    ("rae", vl.AutoEncoder(*parts(), likelihood=vl.Bernoulli()), vl.RaeLoss(1e-2, 1e-3)),
    ("autoencoder", vl.AutoEncoder(*parts(), likelihood=vl.Bernoulli()), vl.Reconstruction()),
):
    vl.Trainer(objective, max_epochs=epochs, batch_size=100, learning_rate=2e-3, precision=arguments.precision).fit(
        model, train, progress=False
    )
    codes = evaluation.encode(model.eval(), train)
    z = codes if isinstance(codes, torch.Tensor) else vl.reparameterize(*codes)
    mixture = vl.MixtureOfGaussians((16,), 10).start_from(z[:10])
    results[name] = {"mixture": fid(model, vl.fit_prior(mixture, z, num_steps=num_steps, learning_rate=0.02))}
    single = vl.fit_prior(vl.LearnedGaussian((16,)), z, num_steps=num_steps, learning_rate=0.05)
    results[name]["gaussian"] = fid(model, single)
    if name == "vae":
        results[name]["its own prior"] = fid(model, model.prior)
    print(name, results[name], flush=True)
write(
    "rae",
    arguments,
    {
        "fid": results,
        "published": None,  # by these features; by Inception's 9.9 (RAE-L2) and 9.4 (RAE-GP)
        "source": "Ghosh et al. (2020): https://arxiv.org/abs/1903.12436",
        "epochs": epochs,
        "seconds": time.perf_counter() - started,
    },
)
