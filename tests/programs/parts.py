"""Every prior and every likelihood, for tests of all."""

import vaelib as vl

PRIORS = {
    "standard": lambda image, latent: vl.StandardNormal(),
    "learned": lambda image, latent: vl.LearnedGaussian(latent),
    "mixture": lambda image, latent: vl.MixtureOfGaussians(latent, 3),
    "vamp": lambda image, latent: vl.VampPrior(image, 3),
    "realnvp": lambda image, latent: vl.FlowPrior(latent, num_transforms=2, hidden_features=(4,)),
    "nsf": lambda image, latent: vl.FlowPrior(latent, "nsf", num_transforms=2, hidden_features=(4,)),
}
LIKELIHOODS = {
    "bernoulli": vl.Bernoulli,
    "continuous": vl.ContinuousBernoulli,
    "gaussian fixed": lambda: vl.Gaussian(0.5),
    "gaussian learned": vl.Gaussian,
    "gaussian per pixel": lambda: vl.Gaussian("per_pixel"),
    "gaussian optimal": lambda: vl.Gaussian("optimal"),
    "laplace fixed": lambda: vl.Laplace(0.5),
    "laplace learned": vl.Laplace,
    "laplace per pixel": lambda: vl.Laplace("per_pixel"),
    "laplace optimal": lambda: vl.Laplace("optimal"),
    "logistic fixed": lambda: vl.DiscretizedLogistic(0.1),
    "logistic learned": lambda: vl.DiscretizedLogistic("learned"),
    "logistic per pixel": vl.DiscretizedLogistic,
}
OF_EACH_CLASS = ("bernoulli", "continuous", "gaussian optimal", "laplace per pixel", "logistic per pixel")
