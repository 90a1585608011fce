"""What a model is told beside the image: one embedding for encoder, decoder and prior, and clear errors."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn, rand, tensor

import vaelib as vl
from vaelib.vae import Given

SHAPE = (1, 8, 8)
NAMES = ("cat", "dog", "owl")


def conditional(condition, **arguments):
    return vl.conv_vae(SHAPE, 2, hidden_channels=(4,), norm="group", condition=condition, **arguments)


class Seen(nn.Module):
    """A network of one linear layer that keeps its input."""

    def __init__(self, inputs, outputs, shape=None):
        super().__init__()
        self.linear, self.shape, self.inputs = nn.Linear(inputs, math.prod(outputs)), outputs, []

    def forward(self, x):
        self.inputs.append(x)
        return self.linear(x.flatten(1)).unflatten(1, self.shape)


def linear_vae(condition, prior=None):
    """Its encoder gives two heads of two latents, so what both networks are given can be looked at."""
    encoder, decoder = Seen(64 * (1 + condition.embedding_size), (2, 2)), Seen(2 + condition.embedding_size, SHAPE)
    encoder.register_forward_hook(lambda module, inputs, output: (output[:, 0], output[:, 1]))
    return vl.VAE(encoder, decoder, condition=condition, prior=prior, image_shape=SHAPE, latent_shape=(2,))


@pytest.mark.parametrize(
    ("written", "labels"),
    [
        (2, [2]),
        ("owl", [2]),
        (["owl", 0, "dog"], [2, 0, 1]),
        (range(3), [0, 1, 2]),
        (np.int32(1), [1]),
        (np.array([1, 0], np.uint8), [1, 0]),
        (np.array(["dog", "cat"]), [1, 0]),
        (np.array("owl"), [2]),
        (np.array(2), [2]),
        (tensor(1), [1]),
        (tensor([2, 1], dtype=torch.int16), [2, 1]),
    ],
)
def test_labels_may_be_written_in_many_ways(written, labels):
    condition = vl.Labels(3, names=list(NAMES))
    found = condition.check(written)
    assert found.dtype == torch.int64
    assert found.tolist() == labels
    assert torch.equal(condition.embed(written), torch.eye(3)[labels])


@pytest.mark.parametrize(
    ("written", "rows"),
    [
        ([0.5, 1], [[0.5, 1]]),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (tensor([1, 2]), [[1, 2]]),
        (tensor([[0.25, 0.5]]), [[0.25, 0.5]]),
    ],
)
def test_vectors_may_be_written_in_many_ways(written, rows):
    found = vl.Vector(2).check(written)
    assert found.dtype == torch.float32
    assert found.tolist() == rows
    assert vl.Vector(1).check(0.5).tolist() == [[0.5]]
    assert vl.Vector(2).check(tensor([1, 2]).double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: vl.Labels(0), ValueError, "`num_classes` must be >= 1, got 0"),
        (lambda: vl.Labels(3, dropout=1.5), ValueError, "`dropout` must be >= 0 and <= 1, got 1.5"),
        (lambda: vl.Labels(3, names="abc"), TypeError, "`names` must be a sequence of str, got 'abc'"),
        (lambda: vl.Labels(3, names=[1, 2, 3]), TypeError, "`names` must be a sequence of str, got 1"),
        (lambda: vl.Labels(3, names=["cat"] * 3), ValueError, "`names` must be 3 different names, one a class"),
        (lambda: vl.Labels(3).check(3), ValueError, r"`condition` must be in \[0, 3\), the number of a class, got 3"),
        (lambda: vl.Labels(3).check(tensor([0, -1])), ValueError, r"`condition` must be in \[0, 3\), .* got -1"),
        (lambda: vl.Labels(3).check(np.array([0, 7])), ValueError, r"`condition` must be in \[0, 3\), .* got 7"),
        (lambda: vl.Labels(3).check("cat"), ValueError, "must be a number: the classes have no names, got 'cat'"),
        (lambda: vl.Labels(3, names=NAMES).check("cow"), ValueError, "must be one of 'cat', 'dog', 'owl', got 'cow'"),
        (lambda: vl.Labels(3).check(np.array("cat")), ValueError, "the classes have no names, got 'cat'"),
        (lambda: vl.Labels(3).check(1.0), TypeError, "must be the number or the name of a class, got 1.0"),
        (lambda: vl.Labels(3).check(True), TypeError, "must be the number or the name of a class, got True"),
        (lambda: vl.Labels(3).check(tensor([1.0])), TypeError, "must be labels of an integer dtype, got .*float32"),
        (lambda: vl.Labels(3).check(tensor([[1]])), ValueError, r"`condition` must have shape \(B\), got \(1, 1\)"),
        (lambda: vl.Labels(3).embed(None), ValueError, "must be given, got None: without `dropout` a condition has no"),
        (lambda: vl.Vector(0), ValueError, "`size` must be >= 1, got 0"),
        (lambda: vl.Vector(2).check("ab"), TypeError, "`condition` must be 2 numbers an image, got 'ab'"),
        (lambda: vl.Vector(2).check([[1], [2, 3]]), ValueError, r"must have shape \(B, 2\), got \[\[1\], \[2, 3\]\]"),
        (lambda: vl.Vector(2).check([1, 2, 3]), ValueError, r"`condition` must have shape \(B, 2\), got \(1, 3\)"),
        (lambda: vl.Vector(2).check([0.0, math.nan]), ValueError, "`condition` must be finite"),
        (lambda: vl.Vector(2).check(tensor([True, False])), TypeError, "must be real numbers, got dtype torch.bool"),
        (lambda: conditional(3), TypeError, "`condition` must be an nn.Module object, got 3"),
        (lambda: conditional(nn.Identity()), TypeError, "must have the methods `check`, `embed`, `dropped`, Identity"),
    ],
)
def test_wrong_conditions(call, error, match):
    with pytest.raises(error, match=match):
        call()


x = rand(4, *SHAPE)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m, u: m(x), r"must be given for a model with Labels: write model.given\(condition\), or condition="),
        (lambda m, u: m.sample(2), "must be given for a model with Labels"),
        (lambda m, u: vl.Elbo()(m, x), "must be given for a model with Labels"),
        (lambda m, u: u.sample(2, condition=1), r"must be None for a model without one: build it with .*vl.Labels"),
        (lambda m, u: m.given(1).given(2), r"`condition` must be given once"),
        (lambda m, u: m.given(None), "must be given, got None"),
        (lambda m, u: m.reconstruct(x, condition=[1, 2]), "must have one row, or one for each of 4 images, got 2"),
        (lambda m, u: m.sample(4, condition=[0, 1, 2]), "must have one row, or one for each of 4 images, got 3"),
        (lambda m, u: m.sample(4, condition="owl"), "the classes have no names"),
        (
            lambda m, u: vl.VAE(u.encoder, m.decoder, condition=vl.Labels(3)),
            r"`encoder` must take 3 channels more, those of the condition, got `image_shape` \(1, 8, 8\)",
        ),
        (
            lambda m, u: vl.VAE(m.encoder, vl.ConvDecoder(4, SHAPE), condition=vl.Labels(3)),
            r"the encoder has \(2,\), the decoder has \(1,\), without the 3 channels of the condition in the decoder",
        ),
    ],
)
def test_a_model_with_a_condition_wants_one_and_no_other_model_does(call, match):
    with pytest.raises(ValueError, match=match):
        call(conditional(vl.Labels(3)), conditional(None))


def of_prior(condition_size, condition):
    prior = vl.AutoregressiveCodes(5, 4, width=8, num_blocks=1, condition_size=condition_size)
    latent = vl.VectorQuantizer((2, 2, 2), 5, prior)
    return vl.conv_vae(SHAPE, hidden_channels=(4, 4), norm="none", latent=latent, condition=condition)


def test_a_prior_is_built_for_the_condition_of_the_model():
    match = r"`prior.condition_size` must be {}, .* got 4: write AutoregressiveCodes\(..., condition_size={}\)"
    for condition, size in ((vl.Labels(3), 3), (None, 0)):
        with pytest.raises(ValueError, match=match.format(size, size)):
            of_prior(4, condition)
        with pytest.raises(ValueError, match=match.format(size, size).replace("AutoregressiveCodes", "Conditional.*")):
            conditional(condition).prior = vl.ConditionalGaussian((2,), 4)
    model = of_prior(3, vl.Labels(3))
    with pytest.warns(UserWarning, match=r"does not know the condition, .* condition_size=3\)"):
        model.prior = vl.AutoregressiveCodes(5, 4, width=8, num_blocks=1)


def test_a_prior_that_is_fitted_afterwards_learns_the_null_embedding_from_its_rows():
    model = of_prior(3, vl.Labels(3, dropout=0.5)).eval()
    embedding = torch.cat([model.condition.embed([0, 1, 2]), model.condition.embed(None).expand(3, -1)])
    codes = tensor([[0] * 4] * 3 + [[1] * 4] * 3)
    model.prior = vl.fit_prior(
        model.prior, codes, embedding=embedding, num_steps=60, learning_rate=0.05, progress=False
    )
    for condition, code in ((None, 1), (2, 0)):
        prior, wanted = model.given(condition).latent.prior, codes[-1:] * code
        with torch.no_grad():
            assert prior.log_prob(wanted).exp().min() > 0.8
            assert torch.equal(prior.from_noise(torch.zeros(1, 4)), wanted)


def test_the_embedding_joins_image_and_latent():
    model = linear_vae(vl.Labels(3))
    images = rand(2, *SHAPE)
    model.given([2, 0]).reconstruct(images)
    joined = model.encoder.inputs[0]
    assert torch.equal(joined[:, :1], images)
    assert torch.equal(joined[:, 1:], torch.eye(3)[[2, 0]][:, :, None, None].expand(2, 3, 8, 8))
    assert torch.equal(model.decoder.inputs[0][:, 2:], torch.eye(3)[[2, 0]])
    assert {0.0, 1.0} == set(joined[:, 1:].flatten().tolist())  # the range of pixels


def test_planes_join_a_latent_map():
    vae = vl.conv_vae((3, 16, 8), latent_shape=(2, 4, 2), hidden_channels=(4, 8), condition=vl.Vector(3))
    assert (vae.image_shape, vae.latent_shape) == ((3, 16, 8), (2, 4, 2))
    assert (vae.encoder.image_shape, vae.decoder.latent_shape) == ((6, 16, 8), (5, 4, 2))
    assert vae.sample(6, condition=rand(2, 3)).shape == (6, 3, 16, 8)
    assert vae(rand(2, 3, 16, 8), condition=rand(2, 3)).z.shape == (2, 2, 4, 2)


def test_every_verb_takes_it_and_only_calls_given():
    vae = conditional(vl.Labels(3, dropout=0.5)).eval()
    images, view = rand(4, *SHAPE), vae.given(2)
    generators = (torch.Generator().manual_seed(1) for _ in range(2))
    pairs = [
        (vae.encode(images, condition=2)[0], view.encode(images)[0]),
        (vae.embed(images, condition=2), view.embed(images)),
        (vae.reconstruct(images, condition=2), view.reconstruct(images)),
        (vae.sample(3, condition=2, seed=0), view.sample(3, seed=0)),
        *zip(
            vae(images, condition=2, generator=next(generators)), view(images, generator=next(generators)), strict=True
        ),
    ]
    assert all(torch.equal(first, second) for first, second in pairs)
    assert not torch.equal(pairs[2][0], vae.reconstruct(images, condition=1))
    assert not torch.equal(pairs[2][0], vae.reconstruct(images, condition=[2, 2, 2, 1]))
    assert torch.equal(pairs[2][0][0], vae.reconstruct(images, condition=[2, 0, 0, 1])[0])


def test_draws_are_in_the_order_of_the_images():
    """B conditions of K B rows: all images of the first draw, all of the second, ..."""
    model = linear_vae(vl.Labels(3))
    view = model.given([0, 1])
    view.decode(view.draw(view.observe(rand(2, *SHAPE)), num_samples=3))
    assert model.decoder.inputs[0][:, 2:].argmax(1).tolist() == [0, 1] * 3
    model.decoder.inputs.clear()
    view.sample(6)
    assert model.decoder.inputs[0][:, 2:].argmax(1).tolist() == [0, 1] * 3
    one = vl.Iwae(3)(view, rand(2, *SHAPE))
    assert one.iwae.shape == (2,)


def test_dropout_is_one_decision_for_encoder_and_decoder():
    model = linear_vae(vl.Labels(3, dropout=0.5))
    with torch.no_grad():
        model.condition.null.fill_(0.5)
    view = model.given(torch.full((200,), 1))
    vl.Elbo()(view, rand(200, *SHAPE))
    planes, joined = model.encoder.inputs[0][:, 1:, 0, 0], model.decoder.inputs[0][:, 2:]
    assert torch.equal(planes, joined)
    dropped = (joined == 0.5).all(1)
    assert torch.equal(joined[~dropped], torch.eye(3)[1].expand((~dropped).sum(), 3))
    assert 60 < dropped.sum() < 140
    first, second = (
        model.given(torch.ones(200).long(), generator=torch.Generator().manual_seed(s)).embedding for s in (1, 1)
    )
    assert torch.equal(first, second)
    view.sample(200)  # in eval mode, whatever the model's mode
    assert not (model.decoder.inputs[1][:, 2:] == 0.5).any()
    assert view.training


def test_embed_and_encode_drop_no_label():
    vae = conditional(vl.Labels(3, dropout=1.0))
    nn.init.ones_(vae.condition.null)
    for verb in ("embed", "encode"):
        found = [getattr(view, verb)(x) for mode in (True, False) for view in (vae.train(mode).given(1),)]
        torch.testing.assert_close(*found)
    assert not torch.equal(vae.embed(x, condition=1), vae.given(None).embed(x))


def test_a_label_that_nobody_looked_at_is_no_null_embedding(monkeypatch):
    """In a training step on a device, where reading it would wait."""
    monkeypatch.setattr(vl.Labels, "looks_at", lambda self, values: False)
    vae = conditional(vl.Labels(3))
    found = vae.condition.embed(tensor([1, 3, -1]))
    assert torch.equal(found[0], tensor([0.0, 1.0, 0.0])) and found[1:].isnan().all()
    assert vl.Elbo()(vae.given(tensor([0, 1, 2, 3])), x).loss.isnan()


def test_a_view_is_no_model_to_save_or_train(tmp_path):
    view, match = conditional(vl.Labels(3)).given(1), r"`model` must be the model itself, got Given, what model.given\("
    for call in (vl.save, vl.export_onnx, lambda view, path: vl.Trainer(vl.Elbo(), output_dir=path).fit(view, x)):
        with pytest.raises(TypeError, match=match):
            call(view, tmp_path)


def test_the_null_embedding_is_learned_and_starts_at_zero():
    vae = conditional(vl.Labels(3, dropout=1.0))
    assert torch.equal(vae.condition.null, torch.zeros(3))
    assert conditional(vl.Labels(3)).condition.null is None
    vl.Elbo()(vae.given([0, 1, 2, 0]), rand(4, *SHAPE)).loss.backward()
    assert vae.condition.null.grad.abs().sum() > 0
    assert torch.equal(vae.given(None).embedding, vae.given(1).embedding[:1])


def twins(latent, exact):
    """An unconditional model and one with labels whose further weights are anything; ``exact`` makes first layers
    dyadic, whose sums are exact in whatever order they are added."""
    plain = vl.conv_vae((1, 12, 12), hidden_channels=(4, 8), **latent)
    labelled = vl.conv_vae((1, 12, 12), hidden_channels=(4, 8), condition=vl.Labels(5, dropout=0.1), **latent)
    weights = labelled.state_dict()
    for name, value in plain.state_dict().items():
        if exact and value.is_floating_point():
            value.copy_((value * 64).round() / 64)
        weights[name][tuple(slice(size) for size in value.shape)] = value  # of wider layers the first columns
    labelled.condition.dropout = 0.0
    return plain.eval(), labelled.eval()


@pytest.mark.parametrize("latent", [{"latent_dim": 33}, {"latent_shape": (4, 3, 3)}], ids=["vector", "map"])
@pytest.mark.parametrize("exact", [True, False])
def test_a_null_embedding_of_zeros_is_the_unconditional_model(latent, exact):
    """Bit for bit but for the order in which a matrix product adds: of a few rows it depends on how many columns there
    are, zeros included (32 latents and 1 label, one image: 2e-7)."""
    plain, labelled = twins(latent, exact)
    x = (rand(4, 1, 12, 12) * 256).round() / 256
    view = labelled.given(None)
    same = torch.equal if exact else lambda a, b: torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6) is None
    assert all(map(same, plain.encode(x), view.encode(x)))
    for z in (plain.embed(x), plain.latent.from_noise(torch.randn(4, plain.latent.noise_size))):
        z = (z * 64).round() / 64
        assert same(plain.decode(z), view.decode(z))
        assert same(plain.decode(z[:1]), view.decode(z[:1]))
    assert not torch.equal(plain.encode(x)[0], labelled.given(1).encode(x)[0])


def shifted():
    """p(z|c) = N(W c, I), or nearly so."""
    prior = vl.ConditionalGaussian((2,), 3)
    nn.init.normal_(prior.moments.weight)
    return prior


def test_a_prior_may_take_the_condition():
    model = linear_vae(vl.Labels(3), prior=shifted())
    images, view, embedding = rand(2, *SHAPE), model.given([2, 0]), torch.eye(3)[[2, 0]]
    draw = view.draw(view.observe(images), num_samples=2)
    own = model.prior.given(embedding.repeat(2, 1))
    assert torch.equal(draw.log_p, own.log_prob(draw.z))
    assert torch.equal(draw.kl, own.kl(draw.mu, draw.logvar))
    assert torch.equal(view.latent.log_prob(draw.z), draw.log_p)
    noise = torch.zeros(2, 2)
    assert torch.equal(view.latent.from_noise(noise), model.prior.moments(embedding)[:, :2])
    vl.Elbo()(view, images).loss.backward()
    assert model.prior.moments.weight.grad.abs().sum() > 0
    assert view.sample(4).shape == (4, *SHAPE)
    assert torch.equal(view.prior.from_noise(noise), view.latent.from_noise(noise))


class Takes(nn.Module):
    takes_condition = True

    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear, self.outputs = nn.Linear(inputs, math.prod(outputs)), outputs

    def forward(self, x, embedding):
        assert embedding.shape == (len(x), 3)
        return self.linear(torch.cat([x.flatten(1), embedding], 1)).unflatten(1, self.outputs)


class TakesTwo(Takes):
    def forward(self, x, embedding):
        return tuple(super().forward(x, embedding).unbind(1))


def test_pseudo_inputs_have_the_channels_of_the_condition():
    vae = conditional(vl.Labels(3), prior=vl.VampPrior((4, 8, 8), 5))
    assert vae.sample(2, condition=1).shape == (2, *SHAPE)
    with pytest.raises(
        ValueError, match="`prior` must take 3 channels more, those of the condition, got `image_shape`"
    ):
        conditional(vl.Labels(3), prior=vl.VampPrior(SHAPE, 5))
    with pytest.raises(ValueError, match="`prior` must not be a VampPrior where the encoder takes the condition"):
        vl.VAE(
            TakesTwo(67, (2, 2)),
            vl.ConvDecoder(5, SHAPE),
            condition=vl.Vector(3),
            prior=vl.VampPrior((4, 8, 8), 5),
            latent_shape=(2,),
        )


def test_a_network_may_take_the_condition_by_itself():
    vae = vl.VAE(TakesTwo(67, (2, 2)), Takes(5, SHAPE), condition=vl.Vector(3), image_shape=SHAPE, latent_shape=(2,))
    vl.Elbo()(vae.given(rand(4, 3)), rand(4, *SHAPE)).loss.backward()
    assert vae.encoder.linear.weight.grad[:, 64:].abs().sum() > 0
    assert vae.sample(2, condition=[0, 0, 1.0]).shape == (2, *SHAPE)


def autoregressive():
    prior = vl.AutoregressiveCodes(5, 4, condition_size=3, width=8, num_blocks=1)
    nn.init.normal_(prior.head.weight)
    return vl.VectorQuantizer((2, 2, 2), 5, prior)


MODELS = {
    "bernoulli": dict,
    "continuous bernoulli": lambda: {"likelihood": vl.ContinuousBernoulli()},
    "gaussian": lambda: {"likelihood": vl.Gaussian("per_pixel")},
    "laplace": lambda: {"likelihood": vl.Laplace("learned")},
    "discretized": lambda: {"likelihood": vl.DiscretizedLogistic("learned")},
    "learned prior": lambda: {"prior": vl.LearnedGaussian((2, 2, 2))},
    "mixture": lambda: {"prior": vl.MixtureOfGaussians((2, 2, 2), 3)},
    "vamp": lambda: {"prior": vl.VampPrior((4, 8, 8), 5)},
    "flow prior": lambda: {"prior": vl.FlowPrior((2, 2, 2), hidden_features=(8,))},
    "conditional prior": lambda: {"prior": vl.priors.ConditionalGaussian((2, 2, 2), 3)},
    "flow posterior": lambda: {
        "latent": vl.GaussianLatent((2, 2, 2), posterior=vl.FlowPosterior((2, 2, 2), hidden_features=(8,)))
    },
    "vq": lambda: {"latent": vl.VectorQuantizer((2, 2, 2), 5, decay=None)},
    "vq, autoregressive": lambda: {"latent": autoregressive()},
    "rvq": lambda: {"latent": vl.ResidualQuantizer((2, 2, 2), 5, depth=2)},
    "fsq": lambda: {"latent": vl.FiniteScalarQuantizer((2, 2, 2), (5, 3))},
    "bsq": lambda: {"latent": vl.BinarySphericalQuantizer((2, 2, 2))},
}


@pytest.mark.parametrize("name", MODELS)
def test_every_latent_prior_and_likelihood(name, tmp_path):
    arguments = {"latent_shape": (2, 2, 2), "hidden_channels": (4, 8), **MODELS[name]()}
    vae = vl.conv_vae(SHAPE, condition=vl.Labels(3, dropout=0.2), **arguments)
    images, labels = rand(4, *SHAPE).mul(255).round() / 255, tensor([0, 1, 2, 0])
    vl.Elbo()(vae.given(labels), images).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters() if p is not vae.condition.null)
    bound = vl.Iwae(2)(vae.given(labels), images)
    assert bound.iwae.shape == (4,)
    vae.eval()
    with torch.no_grad():
        first, other = (view.decode(view.embed(images)) for view in (vae.given(labels), vae.given(labels.flip(0))))
    assert [torch.equal(a, b) for a, b in zip(first, other, strict=True)] == [True, False, False, True]
    vl.save(vae, tmp_path)
    samples = vl.load(tmp_path).sample(4, condition=labels, seed=0)
    assert torch.equal(samples, vae.sample(4, condition=labels, seed=0))


OBJECTIVES = [
    vl.Elbo(),
    vl.Elbo(extra=lambda x, images: (x - images).abs().flatten(1).sum(1)),
    vl.Iwae(3),
    vl.Iwae(2, gradient="dreg"),
    vl.Iwae(1, gradient="stl"),
    vl.Iwae(2, num_groups=2, pool_decoder=True),
    vl.BetaTcLoss(100),
    vl.FactorLoss(2, hidden_features=(4,)),
    vl.DipLoss(),
    vl.InfoLoss(),
    vl.Reconstruction(),
    vl.WaeLoss(),
    vl.RaeLoss(0.1, 0.1),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_every_objective_takes_a_view(objective):
    """Both networks learn from the labels that occur, by the weights of these labels alone."""
    encoder = vl.ConvEncoder((4, 8, 8), 2, hidden_channels=(4,))
    decoder = vl.ConvDecoder(5, SHAPE, hidden_channels=(4,))
    of_points = isinstance(objective, vl.Reconstruction | vl.WaeLoss | vl.RaeLoss)
    model = (vl.AutoEncoder if of_points else vl.VAE)(encoder, decoder, condition=vl.Labels(3))
    objective(model.given([0, 2, 2, 0]), rand(4, *SHAPE)).loss.backward()
    for gradient in (encoder.stages[0].weight.grad[:, 1:].sum((2, 3)), decoder.stem[0].weight.grad[:, 2:]):
        assert gradient.abs().sum(0).gt(0).tolist() == [True, False, True]


@pytest.mark.parametrize("condition", [vl.Labels(3, dropout=0.1, names=NAMES), vl.Vector(3, dropout=0.1)])
def test_saved_and_loaded(tmp_path, condition):
    vae = conditional(condition).eval()
    nn.init.ones_(condition.null)
    vl.save(vae, tmp_path)
    loaded = vl.load(tmp_path)
    assert repr(loaded.condition) == repr(condition)
    for written in ("owl" if isinstance(condition, vl.Labels) else [0.0, 0.5, 1.0], None):
        found, wanted = (model.given(written) for model in (loaded, vae))
        assert torch.equal(found.embedding, wanted.embedding)
        assert torch.equal(found.sample(2, seed=0), wanted.sample(2, seed=0))


def test_a_view_is_the_model_but_for_the_condition():
    vae = conditional(vl.Labels(3)).eval()
    view = vae.given(0)
    assert isinstance(view, Given)
    assert (view.training, view.image_shape, view.likelihood) == (False, SHAPE, vae.likelihood)
    assert view.prior is vae.prior
    assert copy.copy(view).sample(1).shape == (1, *SHAPE)
    with pytest.raises(AttributeError, match="nothing"):
        view.nothing  # noqa: B018


def test_half_precision_and_double():
    vae = conditional(vl.Labels(3, dropout=0.5)).double()
    assert vae.sample(2, condition=1).dtype == torch.float64
    assert vl.Elbo()(vae.given([0, 1, 2, 0]), rand(4, *SHAPE).double()).loss.dtype == torch.float64


def _loss(model, condition, images):
    return vl.Elbo()(model.given(condition), images).loss


@pytest.mark.slow
@pytest.mark.parametrize("prior", [None, shifted()])
def test_a_step_compiles_as_one_graph(prior):
    vae = conditional(vl.Labels(3, dropout=0.5), prior=prior)
    compiled = torch.compile(_loss, fullgraph=True, backend="aot_eager")
    for size in (4, 6):
        compiled(vae, torch.randint(3, (size,)), rand(size, *SHAPE)).backward()
    assert vae.condition.null.grad.abs().sum() > 0
