"""What measures are given: any holder of images, each image once, the same for every model of a seed."""

import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import Subset, TensorDataset

import vaelib as vl
from vaelib import evaluation
from vaelib._images import opened
from vaelib.errors import DataError
from vaelib.evaluation.inputs import batches_for

X = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def vae_of(latent_dim=2, **options):
    return vl.conv_vae((1, 8, 8), latent_dim, hidden_channels=(4,), **options)


class Seen(torch.nn.Module):
    """An encoder that keeps what it is given."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.images = encoder, []

    def forward(self, x):
        self.images.append(x)
        return self.encoder(x)


@pytest.mark.parametrize("batch_size", [3, 100])
def test_a_seed_decides_the_images_whatever_the_model_draws(batch_size):
    data = vl.data.ImageDataset(X, dynamic=True)
    seen = []
    for latent_dim, num_samples in ((2, 3), (4, 3), (2, 40)):
        vae = vae_of(latent_dim)
        vae.encoder = Seen(vae.encoder)
        generator = torch.Generator().manual_seed(5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few draws
            evaluation.log_likelihood(
                vae, data, num_samples=num_samples, batch_size=batch_size, generator=generator, progress=False
            )
        evaluation.elbo(vae, data, batch_size=1, generator=torch.Generator().manual_seed(5))
        images = torch.cat(vae.encoder.images)
        seen += [images[:7], images[7:]]
    assert len(seen[0]) == 7 and set(seen[0].unique().tolist()) == {0.0, 1.0}
    assert all(torch.equal(images, seen[0]) for images in seen)


def test_two_passes_of_one_generator_draw_anew():
    data, generator = vl.data.ImageDataset(X, dynamic=True), torch.Generator().manual_seed(5)
    first, _ = next(batches_for(vae_of(), data, 7, generator))
    torch.rand(1, generator=generator)  # the model draws
    assert not torch.equal(first, next(batches_for(vae_of(), data, 7, generator)).x)


MEASURES = {
    "elbo": evaluation.elbo,
    "log_likelihood": evaluation.log_likelihood,
    "compare": lambda model, data, **options: evaluation.compare(model, model, data, progress=False, **options),
    "anomaly_scores": evaluation.anomaly_scores,
    "encode": evaluation.encode,
    "latents": evaluation.latents,
    "reconstruction_quality": evaluation.reconstruction_quality,
    "disentanglement": lambda *given, **options: evaluation.disentanglement(
        *given, torch.zeros(7, 2).long(), **options
    ),
    "features_of": lambda model, data, **options: evaluation.features_of(torch.nn.Flatten(), data, **options),
}


NO_IMAGES = [
    (X[:0], DataError, "`data` must hold at least one image, got none"),
    ([], DataError, "`data` must hold at least one image, got none"),
    ([X[:0]], DataError, "`data` must hold at least one image, got none"),
    ([{"label": X}], TypeError, "`data` must be images, an ImageDataset, or batches .* got dict with the keys label"),
    ("runs/first", TypeError, "`data` must be images, an ImageDataset, or batches of images, got 'runs/first'"),
]


@pytest.mark.parametrize(("data", "error", "match"), NO_IMAGES)
@pytest.mark.parametrize("name", MEASURES)
def test_what_holds_no_images(name, data, error, match):
    with pytest.raises(error, match=match):
        MEASURES[name](vae_of(), data)


@pytest.mark.parametrize("name", MEASURES)
def test_a_wrong_model_or_batch_size_is_named(name):
    with pytest.raises(ValueError, match="`batch_size` must be >= 1, got 0"):
        MEASURES[name](vae_of(), X, batch_size=0)
    if name != "features_of":
        with pytest.raises(TypeError, match="`(model|first)` must be a VAE( or an AutoEncoder)?, got Identity"):
            MEASURES[name](torch.nn.Identity(), X)


WHOLE = {
    "8-bit numpy": lambda x: (x * 255).byte().numpy(),
    "8-bit tensor": lambda x: (x * 255).byte(),
    "numpy": lambda x: x.numpy(),
    "float64 numpy": lambda x: x.double().numpy(),
    "big-endian": lambda x: x.numpy().astype(">f4"),
    "backwards": lambda x: x.flip(0).numpy()[::-1],
    "TensorDataset": lambda x: TensorDataset(x, torch.arange(len(x))),
    "8-bit TensorDataset": lambda x: TensorDataset((x * 255).byte()),
    "Subset of TensorDataset": lambda x: Subset(TensorDataset(torch.cat([x, x])), range(len(x))),
    "Subset of a set": lambda x: Subset(vl.data.ImageDataset(torch.cat([x, x])), list(range(len(x)))),
    "Subset of Subset": lambda x: Subset(Subset(vl.data.ImageDataset(x), range(len(x))), range(len(x))),
}
BATCHES = {
    "numpy": lambda x: x.numpy(),
    "8-bit numpy": lambda x: (x * 255).byte().numpy(),
    "8-bit": lambda x: (x * 255).byte(),
    "tuple": lambda x: ((x * 255).byte(), torch.zeros(len(x))),
    "list of numpy": lambda x: [x.numpy(), 1],
    "image": lambda x: {"label": 1, "image": x},
    "pixel_values": lambda x: {"pixel_values": (x * 255).byte().numpy(), "labels": 1},
    "img": lambda x: {"img": x},
}
LEVELS = (X * 255).byte().float() / 255


def images_seen(use, data):
    """The images that the encoder was given, sorted, each once."""
    vae = vae_of()
    vae.encoder = Seen(vae.encoder)
    use(vae, data)
    assert {images.dtype for images in vae.encoder.images} == {torch.float32}
    seen = torch.cat(vae.encoder.images).flatten(1).unique(dim=0)
    return seen[seen.any(1)]  # black ones are of no test, but trained on beside `val`


USES = {
    "elbo": lambda vae, data: evaluation.elbo(vae, data, batch_size=3),
    "train": lambda vae, data: vl.Trainer(max_epochs=1, batch_size=3).fit(vae, data, progress=False),
    "val": lambda vae, data: vl.Trainer(max_epochs=1).fit(vae, [torch.zeros(3, 1, 8, 8)], data, progress=False),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", [*WHOLE, *(f"batches: {name}" for name in BATCHES)])
def test_every_holder_gives_the_same_images(name, use):
    batch = BATCHES.get(name.removeprefix("batches: ")) if name not in WHOLE else None
    data = WHOLE[name](LEVELS) if batch is None else [batch(LEVELS[:3]), batch(LEVELS[3:])]
    assert torch.equal(images_seen(USES[use], data), LEVELS.flatten(1).unique(dim=0))


def test_a_mapped_array_is_read_where_it_is(tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        assert opened("data", mapped).data_ptr() == mapped.ctypes.data
        assert len(images_seen(USES["elbo"], mapped)) == 7


class Items(torch.utils.data.Dataset):
    """Single images by number."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return X[index]


BITS = torch.ones(4, 1, 8, 8, dtype=torch.uint8)
WRONG = {
    "int64": (X.numpy().astype(np.int64), TypeError, "must be uint8, or floating point in .*, got dtype int64"),
    "no channels": (X[:, 0].numpy(), ValueError, r"must have shape \(N, C, H, W\), got \(7, 8, 8\)"),
    "objects": (np.array([None] * 3), TypeError, "must be uint8, or floating point in .*, got dtype object"),
    "bool": (X.numpy() > 0.5, TypeError, "must be uint8, or floating point in .*, got dtype bool"),
    "masked": (np.ma.masked_array(X.numpy(), X.numpy() > 0.5), TypeError, "in .0, 1., got a masked array"),
    "0 and 1": (
        BITS,
        ValueError,
        "must be clear about its range, got 8-bit values of 0 and 1: give floats, or 0 and 255",
    ),
    "numpy 0 and 1": (BITS.numpy(), ValueError, "must be clear about its range"),
    "batches of 0 and 1": ([BITS], ValueError, "must be clear about its range"),
    "a Dataset": (Items(), TypeError, "got Items, a Dataset of single images: give torch.utils.data.DataLoader"),
    "a Subset of it": (Subset(Items(), [1, 2]), TypeError, "got Items, a Dataset of single images"),
    "no key": (
        [{"label": X}],
        TypeError,
        "batches with one of the keys image, images, .* got dict with the keys label",
    ),
    "two keys": ([{"image": X, "img": X}], TypeError, "one of the keys .* got dict with the keys image, img"),
    "no keys": ([{}], TypeError, "one of the keys .* got dict with the keys none"),
    "text": ([{"image": "a.png"}], TypeError, "got str in dict"),
    "out of range": ([X.numpy() * 300], ValueError, r"must have values in \[0, 1\]"),
    "a number": (3, TypeError, "must be images, an ImageDataset, or batches of images, got 3"),
    "a name": ("mnist", TypeError, "must be images, an ImageDataset, or batches of images, got 'mnist'"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", WRONG)
def test_what_are_no_images_is_refused_alike(name, use):
    data, error, match = WRONG[name]
    with pytest.raises(error, match=match):
        USES[use](vae_of(), data)


def broken(part, weight):
    """A VAE whose weights of one part are all huge, or not finite."""
    vae = vae_of()
    for parameter in getattr(vae, part).parameters():
        torch.nn.init.constant_(parameter, weight)
    return vae


GIVES = {
    "elbo": ("the ELBO", evaluation.elbo),
    "log_likelihood": ("log p.x.", lambda m, x: evaluation.log_likelihood(m, x, num_samples=60, progress=False)),
    "compare": ("the ELBO", lambda m, x: evaluation.compare(m, m, x, progress=False)),
    "anomaly_scores": ("the ELBO", evaluation.anomaly_scores),
    "anomaly": ("the ELBO", lambda m, x: evaluation.anomaly(m, x, x)),
    "encode": ("the posterior", evaluation.encode),
    "latents": ("the posterior", evaluation.latents),
    "reconstruction_quality": ("the reconstruction", evaluation.reconstruction_quality),
    "disentanglement": ("the posterior", lambda m, x: evaluation.disentanglement(m, x, torch.zeros(7, 2).long())),
}


@pytest.mark.parametrize("name", GIVES)
@pytest.mark.parametrize("weight", [1e20, float("nan"), -1e38])
def test_a_model_that_is_not_finite_is_named(name, weight):
    """Not NaN, not 0.0 +- nan, not "Collapsed": what the measure would have returned."""
    what, measure = GIVES[name]
    with pytest.raises(
        ValueError, match=f"`(model|first)` must give finite numbers, but {what} is not finite for 7 of 7"
    ):
        measure(broken("encoder", weight), X)
    decoded = {"elbo", "log_likelihood", "compare", "anomaly_scores", "anomaly", "reconstruction_quality"}
    if name in decoded and weight != 1e20:  # one layer of 1e20 leaves finite logits
        with pytest.raises(ValueError, match="must give finite numbers, but .* is not finite for 7 of 7 images"):
            measure(broken("decoder", weight), X)


def with_broken_prior():
    prior = vl.LearnedGaussian((2,))
    torch.nn.init.constant_(next(prior.parameters()), float("nan"))
    return vae_of(prior=prior)


NOT_FINITE = [
    (lambda: evaluation.latents(with_broken_prior(), X), "`model` must .*, but the KL is not finite for 7 of 7 images"),
    (
        lambda: evaluation.anomaly_scores(vae_of(), X, background=broken("encoder", 1e20)),
        "`background` must give finite numbers",
    ),
    (
        lambda: evaluation.anomaly_scores(vae_of(), X, background=vae_of(likelihood=vl.Gaussian(0.5))),
        "`background` must have the model's likelihood, Bernoulli, got Gaussian",
    ),
    (
        lambda: evaluation.fidelity(lambda x: x.flatten(1) * float("nan"), X, X),
        r"`extractor\(images\)` must be finite, got values in \[nan, nan\]",
    ),
    (
        lambda: evaluation.fidelity(torch.nn.Flatten(), X, broken("decoder", float("nan")).sample(7)),
        r"`data` must have values in \[0, 1\], got \[nan, nan\]",
    ),
]


@pytest.mark.parametrize(("call", "match"), NOT_FINITE)
def test_other_parts_that_are_wrong(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_of_some_images_only():
    vae = vae_of()
    was = vae.decoder.forward
    vae.decoder.forward = lambda z: was(z) + torch.tensor([0.0, float("inf"), 0.0, 0, 0, 0, 0]).view(7, 1, 1, 1)
    with pytest.raises(ValueError, match="the ELBO is not finite for 1 of 7 images"):
        evaluation.elbo(vae, X)


def test_bits_of_dequantised_images_bound_a_code_length():
    """Of a density narrower than a level the bits of its lattice points are no code length."""
    levels = torch.randint(256, (2000, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    dequantised = (levels + torch.rand(levels.shape, generator=torch.Generator().manual_seed(1))) / 256
    for sigma in (0.1, 1e-3):
        normal = torch.distributions.Normal(levels / 255, sigma)
        nats = [-normal.log_prob(x).flatten(1).sum(1) for x in (levels / 255, dequantised)]
        lattice, honest = (vl.functional.bits_per_dim(n, (1, 2, 2), levels=256).mean() for n in nats)
        assert honest > 0
    assert lattice < 0
