# /// script
# requires-python = ">=3.11"
# dependencies = ["vaelib"]
# ///
"""What labels are worth: MNIST with and without them, by the same network in the same time, and digits as asked.

    VAELIB_DATA=folder/with/MNIST python examples/conditional.py --classifier mnist_classifier.safetensors

Prints KL and -ELBO of both models in nats per binarised test image, and log p(x) of some of them: of the conditional
model log p(x) = logmeanexp of log p(x|c) over the labels c. A label cannot be worth more than ln 10 = 2.30 nats. Then
asks for 1,000 digits, 100 of each, and lets a classifier read them, by default one that is trained here in two
minutes: first with z from the standard normal, then from p(z|c), a Gaussian for each label, fitted afterwards. Writes
`digits.png`, a column of each, and the two models.
"""

import argparse
from pathlib import Path

import mnist_classifier
import torch

import vaelib as vl
from vaelib import evaluation
from vaelib.evaluation import Estimate


def trained(condition, quick, epochs):
    """The same network, but for the channels of the label."""
    train = vl.data.load("dynamic_mnist", "train", condition=condition)
    if quick:
        train = train.subset(slice(1_000))
    torch.manual_seed(0)
    part = None if condition is None else vl.Labels(10)
    vae = vl.conv_vae(train.image_shape, latent_dim=8, hidden_channels=(32, 64), condition=part)
    vl.Trainer(max_epochs=epochs, batch_size=128).fit(vae, train)
    return vae.cpu().eval()


def fitted_prior(vae, images):
    """A Gaussian for each label, since z is not quite independent of it."""
    with torch.no_grad():
        batches = [(vae.given(batch.condition), batch.x) for batch in images.batches(500)]
        z = torch.cat([view.draw(view.observe(x)).z for view, x in batches])
    embedding = vae.condition.embed(images.condition)
    prior = vl.ConditionalGaussian(vae.latent_shape, embedding.shape[1])
    return vl.fit_prior(prior, z, embedding=embedding, num_steps=1_000, progress=False)


def as_asked(vae, classifier):
    """Digits, 100 of each, and how many of them the classifier reads as what was asked for."""
    asked = torch.arange(1_000) % 10
    digits = vae.sample(len(asked), condition=asked, seed=0)
    with torch.no_grad():
        read = torch.cat([classifier(part).argmax(1) for part in digits.split(500)])
    return digits, (read == asked).double().mean().item()


def classifier_of(path, quick):
    if path is not None:
        return mnist_classifier.load(path)
    images = vl.data.load("mnist", "train")
    classifier, epochs = mnist_classifier.MnistClassifier(), 3
    if quick:
        images, epochs = images.subset(slice(1_000)), 1
    return mnist_classifier.train(classifier, images, epochs, seed=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--classifier", type=Path, help="weights that examples/mnist_classifier.py has saved")
    parser.add_argument("--out", type=Path, default=Path("runs/conditional"), help="folder of the models and the image")
    parser.add_argument("--quick", action="store_true", help="1,000 images, one epoch, to see that it runs")
    arguments = parser.parse_args()
    test = vl.data.load("static_mnist", "test", condition="labels")  # the same pixels for both models
    few, num_samples, epochs, seen = test.subset(slice(500)), 100, arguments.epochs, slice(20_000)
    if arguments.quick:
        test, few, num_samples, epochs, seen = test.subset(slice(500)), test.subset(slice(20)), 50, 1, slice(1_000)

    without, labelled = (trained(condition, arguments.quick, epochs) for condition in (None, "labels"))
    log_p = []
    for name, vae in (("without labels", without), ("with labels", labelled)):
        draws = torch.Generator().manual_seed(0)
        terms = evaluation.per_image_terms(vae, test.batches(500), vl.Elbo(), generator=draws)
        marginal = evaluation.marginal_log_likelihood if vae.condition else evaluation.log_likelihood
        found = marginal(vae, few, num_samples=num_samples, progress=False)
        print(f"{name:15} KL {Estimate.of(terms.kl)}, -ELBO {Estimate.of(terms.reconstruction + terms.kl)}")
        print(f"{'':15} log p(x) of {len(few)} images {found.log_likelihood}")
        log_p.append(found.per_image)
        vl.save(vae, arguments.out / name.replace(" ", "_"))
    difference = evaluation.compare(labelled, without, test, progress=False).difference
    print(f"with labels, less without: ELBO {difference}, log p(x) {Estimate.of(log_p[1] - log_p[0])}")

    classifier = classifier_of(arguments.classifier, arguments.quick)
    _, share = as_asked(labelled, classifier)
    labelled.prior = fitted_prior(labelled, vl.data.load("static_mnist", "train", condition="labels").subset(seen))
    digits, share_of_fitted = as_asked(labelled, classifier)
    print(f"digits as asked, of 1,000: {share:.1%}, with the fitted prior {share_of_fitted:.1%}")
    vl.plots.save_grid(digits[:100], arguments.out / "digits.png", columns=10)


if __name__ == "__main__":
    main()
