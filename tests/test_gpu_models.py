"""Objectives, priors, likelihoods and evaluations on a GPU give what they give on the CPU: same weights, same noise."""

import copy

import pytest
import torch

import vaelib as vl

# A warning of a GPU's is shown, and fails nothing.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""Of float32 with TF32 off; sums are over some hundred pixels, in another order."""

PRIORS = {
    "standard": lambda: vl.StandardNormal(),
    "learned": lambda: vl.LearnedGaussian((4,)),
    "mixture": lambda: vl.MixtureOfGaussians((4,), 3),
    "vamp": lambda: vl.VampPrior((1, 16, 16), 3),
    "realnvp": lambda: vl.FlowPrior((4,), num_transforms=2, hidden_features=(8,)),
    "nsf": lambda: vl.FlowPrior((4,), "nsf", num_transforms=2, hidden_features=(8,)),
}
LIKELIHOODS = {
    "bernoulli": vl.Bernoulli,
    "continuous bernoulli": vl.ContinuousBernoulli,
    "gaussian": vl.Gaussian,
    "laplace": vl.Laplace,
    "logistic": vl.DiscretizedLogistic,  # of 8-bit levels
}
OBJECTIVES = {
    "elbo": lambda: vl.Elbo(),
    "beta, free bits": lambda: vl.Elbo(beta=vl.linear_warmup(4, final=2.0), free_bits=0.1),
    "capacity": lambda: vl.Elbo(beta=10.0, capacity=vl.linear_warmup(8, final=5.0)),
    "iwae": lambda: vl.Iwae(4),
    "iwae dreg": lambda: vl.Iwae(4, gradient="dreg"),
    "piwae": lambda: vl.Iwae(2, num_groups=2, pool_decoder=True),
    "beta-tc": lambda: vl.BetaTcLoss(64),
    "factor": lambda: vl.FactorLoss(4, gamma=2.0, hidden_features=(8, 8)),
    "adversarial": lambda: vl.Adversarial(
        vl.PatchDiscriminator(1, width=4, num_layers=2), perceptual=vl.perceptual_distance, start=0, ramp=0
    ),
    "dip": lambda: vl.DipLoss(),
    "info": lambda: vl.InfoLoss(),
}
OF_AUTOENCODERS = {
    "reconstruction": lambda: vl.Reconstruction(),
    "wae": lambda: vl.WaeLoss(),
    "rae": lambda: vl.RaeLoss(0.1, 0.01),
    "rae l2": lambda: vl.RaeLoss(0.1, 0.01, penalty="l2"),
}


def vae_of(prior="standard", likelihood="bernoulli"):
    if prior in ("realnvp", "nsf"):
        pytest.importorskip("zuko", reason="zuko is not installed")
    torch.manual_seed(0)
    return vl.conv_vae(
        (1, 16, 16),
        4,
        hidden_channels=(4, 8),
        norm="group",
        prior=PRIORS[prior](),
        likelihood=LIKELIHOODS[likelihood](),
    )


def images(count=32):
    return vl.data.shapes(count, image_size=16).images.float() / 255


@pytest.fixture(autouse=True)
def noise(one_source):
    """Draws on every device are those of one generator of the CPU; products and convolutions are in whole float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield one_source
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def step_on(where, model, objective, noise, condition=None):
    """The objective's terms and all gradients, by name, on the CPU."""
    module = torch.nn.ModuleDict({"model": copy.deepcopy(model)})
    objective = copy.deepcopy(objective)
    if isinstance(objective, torch.nn.Module):
        module["objective"] = objective
    module.to(where)
    noise.manual_seed(1)
    view = module["model"] if condition is None else module["model"].given(condition.to(where))
    terms = objective(view, images().to(where), step=3)
    terms.loss.backward()
    gradients = {name: value.grad.cpu() for name, value in module.named_parameters() if value.grad is not None}
    assert {value.device.type for value in terms} == {torch.device(where).type}
    return {name: value.detach().cpu() for name, value in terms._asdict().items()} | gradients


def compare(device, model, objective, noise, condition=None):
    there, here = (step_on(where, model, objective, noise, condition) for where in (device, "cpu"))
    torch.testing.assert_close(there, here, **CLOSE)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective(device, noise, name):
    torch.manual_seed(2)
    compare(device, vae_of(), OBJECTIVES[name](), noise)


@pytest.mark.parametrize("name", OF_AUTOENCODERS)
def test_an_objective_of_autoencoders(device, noise, name):
    torch.manual_seed(0)
    model = vl.AutoEncoder(
        vl.ConvEncoder((1, 16, 16), 4, hidden_channels=(4,), norm="group"),
        vl.ConvDecoder(4, (1, 16, 16), hidden_channels=(4,), norm="group"),
    )
    compare(device, model, OF_AUTOENCODERS[name](), noise)


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior(device, noise, name):
    compare(device, vae_of(prior=name), vl.Elbo(), noise)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_likelihood(device, noise, name):
    compare(device, vae_of(likelihood=name), vl.Elbo(), noise)


QUANTIZERS = {
    "vector": lambda: vl.VectorQuantizer((4, 4, 4), 16),
    "vector by gradients": lambda: vl.VectorQuantizer((4, 4, 4), 16, decay=None, gradient="rotation"),
    "residual": lambda: vl.ResidualQuantizer((4, 4, 4), 8, depth=2),
    "finite scalar": lambda: vl.FiniteScalarQuantizer((3, 4, 4), (8, 5, 2)),
    "binary spherical": lambda: vl.BinarySphericalQuantizer((6, 4, 4)),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_quantised_latent(device, noise, name):
    torch.manual_seed(0)
    latent = QUANTIZERS[name]()
    model = vl.conv_vae((1, 16, 16), hidden_channels=(4, 8), norm="group", latent=latent)
    compare(device, model, vl.Elbo(), noise)
    model, x = model.to(device), images().to(device)
    for _ in range(3):
        vl.Elbo()(model, x).loss.backward()
        if hasattr(latent, "after_step"):
            latent.after_step()
    with torch.no_grad():
        codes = model.encode(x)
        assert torch.equal(latent.embed(codes), model.embed(x))
        z = latent.embed(codes).cpu()
    assert torch.equal(latent.cpu().embed(codes.cpu()), z)


CONDITIONS = {
    "labels": (lambda: {"condition": vl.Labels(3, dropout=0.3)}, torch.arange(32) % 3),
    "a vector": (lambda: {"condition": vl.Vector(2)}, torch.linspace(0, 1, 64).view(32, 2)),
    "prior": (lambda: {"condition": vl.Labels(3), "prior": vl.ConditionalGaussian((4,), 3)}, torch.arange(32) % 3),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition(device, noise, name):
    torch.manual_seed(0)
    parts, condition = CONDITIONS[name]
    model = vl.conv_vae((1, 16, 16), 4, hidden_channels=(4, 8), norm="group", **parts())
    compare(device, model, vl.Elbo(), noise, condition)
    sample = model.eval().sample(2, condition=condition[:2], seed=0)
    torch.testing.assert_close(model.to(device).sample(2, condition=condition[:2], seed=0).cpu(), sample, **CLOSE)


def test_a_flow_posterior_and_a_corruption(device, noise):
    pytest.importorskip("zuko", reason="zuko is not installed")
    model = vl.VAE(
        vl.ConvEncoder((1, 16, 16), 4, hidden_channels=(4,), norm="group"),
        vl.ConvDecoder(4, (1, 16, 16), hidden_channels=(4,), norm="group"),
        latent=vl.GaussianLatent((4,), posterior=vl.FlowPosterior((4,))),
        corruption=vl.GaussianNoise(0.1),
    )
    compare(device, model, vl.Elbo(), noise)


@pytest.mark.parametrize("name", PRIORS)
def test_samples_of_a_seed_are_the_same_again(device, name, monkeypatch):
    model = vae_of(prior=name).to(device)
    monkeypatch.undo()  # the device's own draws
    drawn = [model.sample(4, generator=torch.Generator(device).manual_seed(s)).cpu() for s in (3, 3, 4)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


EVALUATIONS = {
    "elbo": lambda m, x: vl.evaluation.elbo(m, x).elbo.value,
    "terms": lambda m, x: torch.stack(list(vl.evaluation.per_image_terms(m, [x], vl.Elbo())[1:])),
    "log p(x)": lambda m, x: vl.evaluation.log_likelihood(m, x, num_samples=1000, progress=False).log_likelihood.value,
    "latents": lambda m, x: vl.evaluation.latents(m, x).kl.value,
    "codes": lambda m, x: vl.evaluation.encode(m, x)[0],
    "anomaly": lambda m, x: vl.evaluation.anomaly(m, x, x.flip(-1)).negative_elbo.value,
    "scores": lambda m, x: vl.evaluation.anomaly_scores(m, x).negative_elbo,
    "comparison": lambda m, x: vl.evaluation.compare(m, copy.deepcopy(m), x, progress=False).difference.value,
    "reconstructions": lambda m, x: vl.evaluation.reconstruction_quality(m, x).psnr.value,
    "fidelity": lambda m, x: (
        vl.evaluation.fidelity(
            lambda y: m.encode(y.to(next(m.parameters()).device))[0], x.to(next(m.parameters()).device), m.sample(32)
        ).fid.value
    ),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_evaluation(device, noise, name):
    if name == "reconstructions":
        pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    model, found = vae_of(), []
    for where in (device, "cpu"):
        noise.manual_seed(1)
        found.append(torch.as_tensor(EVALUATIONS[name](copy.deepcopy(model).to(where), images())).cpu().double())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_disentanglement(device):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    data = vl.data.shapes(240, image_size=16)
    found = vl.evaluation.disentanglement(vae_of().to(device), data, data.factors, num_resamples=2)
    assert 0 <= found.mig.value <= 1


def test_reconstructions(device):
    model, x = vae_of(), images()
    expected = model.reconstruct(x)
    torch.testing.assert_close(model.to(device).reconstruct(x.to(device)).cpu(), expected, **CLOSE)


def test_a_tensor_elsewhere_is_an_error_that_names_the_devices(cuda):
    with pytest.raises(ValueError, match="`x` must be on the device of the model's weights, cuda:0, got cpu"):
        vae_of().to(cuda).encode(images())


def test_a_prior_is_fitted_on_the_gpu(device):
    model = vae_of().to(device)
    z = model.encode(images(64).to(device))[0].detach()
    prior = vl.fit_prior(vl.MixtureOfGaussians((4,), 2).to(device), z, num_steps=5, batch_size=16)
    assert prior.log_prob(z).device.type == device.type


@pytest.mark.parametrize("there", ["cpu", "device"])
def test_saved_and_loaded_between_devices(device, tmp_path, there):
    where = device if there == "device" else torch.device("cpu")
    model = vae_of().to(where).eval()
    vl.save(model, tmp_path / "model")
    assert next(model.parameters()).device.type == where.type
    for target in ("cpu", device):
        loaded = vl.load(tmp_path / "model", device=target)
        assert next(loaded.parameters()).device.type == torch.device(target).type
        for name, value in loaded.state_dict().items():
            assert torch.equal(value.cpu(), model.state_dict()[name].cpu())


@pytest.mark.parametrize("prior", ["standard", "mixture", "realnvp"])
def test_a_generator_of_the_cpu_gives_the_same_numbers_for_a_model_on_the_gpu(device, monkeypatch, prior):
    """As every example seeds it: `torch.Generator().manual_seed(0)`, wherever the Trainer has left the model."""
    model, x = vae_of(prior), vl.data.ImageDataset(images(), dynamic=True, flip=True)
    monkeypatch.undo()
    found = []
    for where in (device, "cpu"):
        there, generator = copy.deepcopy(model).to(where), torch.Generator().manual_seed(0)
        elbo = vl.evaluation.elbo(there, x, generator=generator).elbo.value
        kl = vl.evaluation.latents(there, x, generator=generator).kl.value
        found.append((torch.tensor([elbo, kl]), there.sample(4, generator=generator).cpu()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)
