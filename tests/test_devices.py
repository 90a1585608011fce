"""Every tensor on the model's device, and nothing in a step that waits for it, shown without an accelerator.

``StandIn`` is a device that this machine lacks: tensors on it say so, hold their values in the CPU's memory, and raise
where those of an accelerator would, above all in an operation with a tensor of the CPU.
"""

import inspect
import itertools
import math
import os
import sys
from types import SimpleNamespace

import accelerate
import pytest
import torch
from parts import LIKELIHOODS, OF_EACH_CLASS, PRIORS
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import vaelib as vl
from vaelib.training.optimization import follow

zuko = pytest.importorskip("zuko")
pytest.importorskip("sklearn")
pytest.importorskip("torchmetrics")

DEVICE = torch.device("mps", 0)  # torch takes this name without the hardware, and has fused optimisers for it
CPU = torch.device("cpu")
_GENERATORS = {}  # device by address, which is all that torch hands to an operation
_COPIES = (torch.ops.aten.copy_, torch.ops.aten._to_copy)
_LIBRARIES = tuple(os.path.dirname(library.__file__) + os.sep for library in (vl, zuko))
_INDEXING = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)


class OnDevice(torch.Tensor):
    """A tensor on ``DEVICE``, whose values are in ``held``; for torch's own code it is a shape only."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: DEVICE)
    is_meta = property(lambda self: False)

    @staticmethod
    def __new__(cls, held):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, device="meta", **layout)
        made.held = held
        return made

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        torch.Tensor.data.__set__(self, other)
        self.held = other.held

    def __repr__(self):
        return f"OnDevice({self.held})"

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, **options):
        raise TypeError(f"can't convert a tensor on {DEVICE} to numpy.")

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), keywords=None):
        raise RuntimeError(f"{operation} on {DEVICE} outside of StandIn.")


class DeviceGenerator(torch.Generator):
    """A generator of either device."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        _GENERATORS[made._cdata] = torch.device(device)
        return made

    device = property(lambda self: _GENERATORS[self._cdata])

    def clone_state(self):
        made = type(self)(self.device)
        made.set_state(self.get_state())
        return made


class StandIn(TorchDispatchMode):
    """Computes on the CPU what is on ``DEVICE``; notes in ``waits`` what would make the CPU wait for an accelerator."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __enter__(self):
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device=...)` copies where modes see it
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*error)

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        keywords = dict(keywords or {})
        leaves = [*_leaves(arguments), *_leaves([*keywords.values()])]
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        here = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
        held = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, OnDevice)}
        there = bool(held)
        if keywords.get("device") is not None:
            there = keywords["device"].type in (DEVICE.type, "meta")
            keywords["device"] = CPU
        if operation.overloadpacket is torch.ops.aten.copy_:
            there = isinstance(arguments[0], OnDevice)
        for generator in leaves:
            if isinstance(generator, torch._C.Generator):
                _check_generator(operation, generator, there)
        if held and here:
            _check_mixture(operation, arguments, here)
        if _waits(operation, arguments, bool(held), bool(here), there, keywords.get("non_blocking", False)):
            self.waits.append(f"{operation} in {_place()}")
        found = operation(*_mapped(_held, arguments), **{name: _mapped(_held, keywords[name]) for name in keywords})
        return _mapped(lambda leaf: _placed(leaf, held), found) if there else found


def _leaves(values):
    """What lists and tuples within each other hold; torch's tree_leaves takes twice the time of the operations."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _leaves(value)
        else:
            yield value


def _mapped(function, value):
    if isinstance(value, list | tuple):
        return type(value)([_mapped(function, part) for part in value])
    return function(value)


def _held(leaf):
    return leaf.held if isinstance(leaf, OnDevice) else leaf


def _placed(leaf, held):
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return held[id(leaf)] if id(leaf) in held else OnDevice(leaf)


def _check_generator(operation, generator, there):
    place = _GENERATORS.get(generator._cdata, CPU)
    if place.type != (DEVICE if there else CPU).type:
        raise RuntimeError(f"{operation}: expected a generator of the other device, found {place}.")


def _check_mixture(operation, arguments, here):
    """A number in the CPU's memory goes into most pointwise kernels, and indices are copied; all else raises."""
    if operation.overloadpacket in _COPIES:
        return
    if operation.overloadpacket in _INDEXING and isinstance(arguments[0], OnDevice):
        return
    pointwise = torch.Tag.pointwise in operation.tags
    written = operation._schema.is_mutable and not isinstance(arguments[0], OnDevice)
    if not pointwise or written or any(tensor.ndim for tensor in here):
        raise RuntimeError(
            f"{operation}: tensors of {DEVICE}, and of the CPU of shape {[tuple(t.shape) for t in here]}."
        )


def _waits(operation, arguments, held, here, there, non_blocking):
    """Whether the CPU waits: for values, for shapes that depend on values, or for a copy between the two memories."""
    if operation.overloadpacket in _COPIES:
        crosses = (held and not there) or (here and there)
        return crosses and not (there and non_blocking)
    if operation.overloadpacket in _INDEXING:
        indices = [index for index in arguments[1] if index is not None]
        return held and any(index.dtype == torch.bool or not isinstance(index, OnDevice) for index in indices)
    return held and bool({torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(operation.tags))


def _place():
    """The innermost lines of the library and of zuko."""
    frame, found = sys._getframe(1), []
    while frame is not None and len(found) < 2:
        path = frame.f_code.co_filename
        if path.startswith(_LIBRARIES):
            found.append(f"{os.path.basename(path)}:{frame.f_lineno}")
        frame = frame.f_back
    return " called by ".join(found)


@pytest.fixture
def stand_in(monkeypatch):
    """The stand-in, which accelerate takes for the machine's accelerator."""
    monkeypatch.setattr(accelerate.Accelerator, "device", property(lambda self: DEVICE))
    monkeypatch.setattr(torch, "Generator", DeviceGenerator)
    with StandIn() as entered:
        yield entered


SHAPE = (1, 8, 8)
LATENTS = {"vector": (2,), "map": (1, 2, 2)}
FLOW = {"num_transforms": 2, "hidden_features": (4,)}
SMALL = {"width": 4, "num_blocks": 1, "num_heads": 2}
CODE_PRIORS = {
    "uniform": vl.UniformCodes,
    "table": vl.CodeTable,
    "autoregressive": lambda *size: vl.AutoregressiveCodes(*size, **SMALL),
    "conditional": lambda *size: vl.AutoregressiveCodes(*size, **SMALL, condition_size=2),
}
OBJECTIVES = {
    "elbo": lambda latents: vl.Elbo(),
    "elbo scheduled": lambda latents: vl.Elbo(beta=vl.linear_warmup(2), free_bits=0.1),
    "elbo capacity": lambda latents: vl.Elbo(beta=10.0, capacity=vl.linear_warmup(2, final=5.0)),
    "elbo extra": lambda latents: vl.Elbo(extra=lambda x, images: (x - images).abs().flatten(1).sum(1)),
    "beta-tc": lambda latents: vl.BetaTcLoss(12),
    "beta-tc weighted": lambda latents: vl.BetaTcLoss(12, estimator="weighted"),
    "factor": lambda latents: vl.FactorLoss(latents, hidden_features=(4, 4)),
    "dip i": lambda latents: vl.DipLoss(),
    "dip ii": lambda latents: vl.DipLoss(10.0, 10.0, kind="ii"),
    "info imq": lambda latents: vl.InfoLoss(),
    "info rbf": lambda latents: vl.InfoLoss(alpha=0.5, kernel="rbf"),
    "iwae": lambda latents: vl.Iwae(2),
    "iwae stl": lambda latents: vl.Iwae(2, gradient="stl", elbo_weight=0.5),
    "iwae dreg": lambda latents: vl.Iwae(2, num_groups=2, gradient="dreg"),
    "iwae pooled": lambda latents: vl.Iwae(2, num_groups=2, pool_decoder=True),
    "adversarial": lambda latents: vl.Adversarial(vl.PatchDiscriminator(1, width=4, num_layers=1), start=0, ramp=0),
}
OF_A_GAUSSIAN_POSTERIOR = ("beta-tc", "beta-tc weighted", "dip i", "dip ii", "iwae stl", "iwae dreg")
OF_AUTOENCODERS = {
    "reconstruction": vl.Reconstruction,
    "wae imq": vl.WaeLoss,
    "wae rbf": lambda: vl.WaeLoss(prior=vl.StandardNormal(), kernel="rbf"),
    "rae gradient": lambda: vl.RaeLoss(0.1, 0.01),
    "rae l2": lambda: vl.RaeLoss(0.1, 0.01, penalty="l2"),
}
CORRUPTIONS = {"noise": vl.GaussianNoise, "masking": vl.Masking, "salt": vl.SaltAndPepper}


def vae_of(prior="standard", likelihood="bernoulli", latent="vector", posterior=None, corruption=None, **networks):
    torch.manual_seed(0)
    shape = LATENTS[latent]
    networks = {"latent_shape": shape, "hidden_channels": (3,), "stride": 4, "norm": "none"} | networks
    of_the_encoder = {name: value for name, value in networks.items() if name != "upsample"}
    part = LIKELIHOODS[likelihood]() if isinstance(likelihood, str) else likelihood
    return vl.VAE(
        vl.ConvEncoder(SHAPE, **of_the_encoder),
        vl.ConvDecoder(None, SHAPE, **networks, param_channels=part.param_channels(1)),
        likelihood=part,
        latent=vl.GaussianLatent(
            shape,
            PRIORS[prior](SHAPE, shape) if isinstance(prior, str) else prior,
            None if posterior is None else vl.FlowPosterior(shape, **FLOW),
        ),
        corruption=corruption,
    )


def autoencoder_of(likelihood=None, **parts):
    torch.manual_seed(0)
    channels = 1 if likelihood is None else likelihood.param_channels(1)
    networks = {"hidden_channels": (3,), "stride": 4}
    encoder, decoder = (
        vl.ConvEncoder(SHAPE, 2, **networks),
        vl.ConvDecoder(2, SHAPE, **networks, param_channels=channels),
    )
    return vl.AutoEncoder(encoder, decoder, likelihood=likelihood, **parts)


QUANTIZERS = {
    "Vector": lambda: vl.VectorQuantizer((2, 2, 2), 4),
    "Residual": lambda: vl.ResidualQuantizer((2, 2, 2), 4, depth=2),
    "FiniteScalar": lambda: vl.FiniteScalarQuantizer((2, 2, 2), (3, 4)),
    "BinarySpherical": lambda: vl.BinarySphericalQuantizer((2, 2, 2)),
}


def quantised(latent):
    torch.manual_seed(0)
    return vl.conv_vae(SHAPE, hidden_channels=(3,), stride=4, norm="none", latent=latent)


def scaled():
    model = vae_of(latent="map")
    model.scaling = vl.LatentScaling(0.5, 2.0)
    return model


MODELS = {
    **{f"norm {norm}": lambda norm=norm: vae_of(norm=norm) for norm in ("batch", "group", "layer", "none")},
    **{f"upsample {how}": lambda how=how: vae_of(upsample=how) for how in ("transpose", "nearest", "pixel_shuffle")},
    **{name: lambda make=make: vae_of(corruption=make()) for name, make in CORRUPTIONS.items()},
    "residual": lambda: vae_of(residual_blocks=1, activation="leaky_relu"),
    "dropout": lambda: vae_of(dropout=0.2),
    "stages": lambda: vae_of(hidden_channels=(3, 3), stride=2, norm="batch"),
    "map": lambda: vae_of(latent="map"),
    "FlowPosterior": lambda: vae_of(posterior="flow"),
    "FlowPosterior of a map": lambda: vae_of(posterior="flow", latent="map"),
    "conv_vae": lambda: vl.conv_vae(SHAPE, 2, hidden_channels=(3,)),
    "autoencoder_kl": lambda: vl.autoencoder_kl(SHAPE, factor=2, channels=2, width=4, residual_blocks=1),
    "LatentScaling": lambda: scaled(),
    **{f"{name}Quantizer": lambda make=make: quantised(make()) for name, make in QUANTIZERS.items()},
    "codebook by gradients": lambda: quantised(vl.VectorQuantizer((2, 2, 2), 4, decay=None, gradient="rotation")),
    "article_vae": vl.presets.article_vae,
    "autoencoder": autoencoder_of,
    "autoencoder corrupted": lambda: autoencoder_of(corruption=vl.GaussianNoise()),
    "autoencoder likelihood": lambda: autoencoder_of(likelihood=vl.Bernoulli()),
}


def images_for(model, count=12):
    levels = torch.randint(256, (count, *model.image_shape), generator=torch.Generator().manual_seed(0))
    return levels / 255


class Marks:
    """The number of waits at the end of each step."""

    def __init__(self, stand_in):
        self.stand_in, self.found = stand_in, []

    def on_step(self, run):
        self.found.append(len(self.stand_in.waits))


def waits_of_a_step(stand_in, model, objective=None, train=None, callbacks=(), **options):
    """Of a whole run of three steps: in the second one, its batch, update and callbacks, when no metrics are read."""
    train = images_for(model) if train is None else train
    marks = Marks(stand_in)
    trainer = vl.Trainer(objective, max_epochs=1, batch_size=4, callbacks=[marks, *callbacks], **options)
    (record,) = trainer.fit(model, train, progress=False)
    assert {tensor.device for tensor in model.state_dict().values()} == {DEVICE}
    assert (record.step, record.skipped) == (3, 0)
    return stand_in.waits[marks.found[0] : marks.found[1]]


TRAINED = {
    **{f"model: {name}": lambda name=name: (MODELS[name](),) for name in MODELS},
    **{f"prior: {name}": lambda name=name: (vae_of(name),) for name in PRIORS},
    **{f"likelihood: {name}": lambda name=name: (vae_of(likelihood=name),) for name in LIKELIHOODS},
    **{f"objective: {name}": lambda name=name: (vae_of(), OBJECTIVES[name](2)) for name in OBJECTIVES},
    **{f"objective: {name}": lambda name=name: (autoencoder_of(), OF_AUTOENCODERS[name]()) for name in OF_AUTOENCODERS},
}


@pytest.mark.parametrize("name", TRAINED)
def test_every_part_is_trained_on_its_device(stand_in, name):
    assert waits_of_a_step(stand_in, *TRAINED[name]()) == []


@pytest.mark.parametrize("decay", [0.99, None])
def test_a_first_step_that_is_skipped_on_a_device_leaves_k_means_to_the_next(stand_in, decay):
    model = quantised(vl.VectorQuantizer((2, 2, 2), 4, decay=decay)).to(DEVICE)
    codebook, accelerator = model.latent.codebooks[0], SimpleNamespace(device=DEVICE, scaler=None, num_processes=1)
    before = codebook.weight.detach().cpu().clone()
    for step, moved in enumerate((False, True)):
        model.latent.draw(torch.randn(6, 2, 2, 2).to(DEVICE), torch.empty(6, 0).to(DEVICE))
        follow([model.latent], accelerator, 0, step, torch.tensor(moved).to(DEVICE))
        assert torch.equal(codebook.weight.detach().cpu(), before) is not moved
    assert codebook.counts.cpu().sum() == 6 * 4


def of_class(count):
    return torch.arange(count) % 3


CONDITIONS = {
    "labels": (lambda: {"condition": vl.Labels(3)}, of_class),
    "labels dropped": (lambda: {"condition": vl.Labels(3, dropout=0.5)}, of_class),
    "a vector": (lambda: {"condition": vl.Vector(2, dropout=0.5)}, lambda count: torch.rand(count, 2)),
    "prior": (lambda: {"condition": vl.Labels(3), "prior": vl.ConditionalGaussian((2,), 3)}, of_class),
    "codes": (
        lambda: {"condition": vl.Labels(2), "latent_dim": None, "latent": coded()},
        lambda count: of_class(count) % 2,
    ),
}


def coded():
    return vl.VectorQuantizer((2, 4, 4), 4, CODE_PRIORS["conditional"](4, 16))


def conditional(name, count=12):
    """A model and images with conditions, all in the CPU's memory."""
    parts, values = CONDITIONS[name]
    model = vl.conv_vae(SHAPE, **{"latent_dim": 2} | parts(), hidden_channels=(3,))
    return model, vl.data.ImageDataset(images_for(model, count), condition=values(count))


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_condition_is_trained_on_its_device(stand_in, name):
    model, train = conditional(name)
    assert waits_of_a_step(stand_in, model, train=train, callbacks=[vl.EMA()]) == []
    right, wrong = ([0.0, 1.0], [0.0, math.nan]) if name == "a vector" else (1, [9])
    assert model.sample(3, condition=right).device == DEVICE
    with pytest.raises(ValueError, match="`condition` must be"):
        model.given(torch.tensor(wrong).to(DEVICE))


STEPS = {
    "accumulate": {"accumulate": 2},
    "clip_norm": {"clip_norm": 0.1},
    "skip_norm": {"skip_norm": 1e9},
    "adamw": {"optimizer": "adamw"},
    "average": {"callbacks": [vl.EMA()]},
    "fused": {"optimizer": lambda parameters, lr: torch.optim.SGD(parameters, lr, fused=True)},
}


@pytest.mark.parametrize("options", STEPS)
def test_every_kind_of_step_stays_on_its_device(stand_in, options):
    assert waits_of_a_step(stand_in, vae_of(), **STEPS[options]) == []


SOURCES = {
    "dynamic, flipped": lambda x, folder: vl.data.ImageDataset(x, dynamic=True, flip=True),
    "8-bit": lambda x, folder: vl.data.ImageDataset((x * 255).to(torch.uint8), labels=torch.arange(len(x)) % 3),
    "a loader": lambda x, folder: torch.utils.data.DataLoader(x, batch_size=4),
    "a stream": lambda x, folder: images_of(folder),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_of_images_is_trained_from_without_a_wait(stand_in, tmp_path, source):
    model = vae_of()
    x = images_for(model)
    train = SOURCES[source](x, tmp_path)
    if source == "a stream":
        model = vl.conv_vae(train.image_shape, 2, hidden_channels=(3,))
    assert waits_of_a_step(stand_in, model, train=train) == []


def test_an_optimiser_that_is_not_fused_waits_once_a_step(stand_in):
    """The exception: whether the step is good decides whether the optimiser is called."""
    (wait,) = waits_of_a_step(stand_in, vae_of(), optimizer=torch.optim.SGD)
    assert "_local_scalar_dense" in wait and "optimization.py" in wait


def together(objectives, of_a_gaussian_posterior):
    """Every prior with every objective, each with one latent, posterior and likelihood, so that all pairs occur."""
    found = {}
    shapes = [*itertools.product(LATENTS, (None, "flow"))]
    for (p, prior), (o, objective) in itertools.product(enumerate(PRIORS), enumerate(objectives)):
        latent, posterior = shapes[(p + o) % len(shapes)]
        likelihood = OF_EACH_CLASS[(2 * p + o) % len(OF_EACH_CLASS)]
        found[prior, objective] = latent, None if objective in of_a_gaussian_posterior else posterior, likelihood
    return found


TOGETHER = together(OBJECTIVES, OF_A_GAUSSIAN_POSTERIOR)


@pytest.mark.slow
@pytest.mark.parametrize(("prior", "objective"), TOGETHER)
def test_every_combination_is_trained_on_its_device(stand_in, prior, objective):
    latent, posterior, likelihood = TOGETHER[prior, objective]
    model = vae_of(prior, likelihood, latent, posterior)
    assert waits_of_a_step(stand_in, model, OBJECTIVES[objective](math.prod(LATENTS[latent]))) == []


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("objective", OF_AUTOENCODERS)
def test_every_combination_of_autoencoders_is_trained_on_its_device(stand_in, objective, likelihood):
    model = autoencoder_of(likelihood=LIKELIHOODS[likelihood]())
    assert waits_of_a_step(stand_in, model, OF_AUTOENCODERS[objective]()) == []


def test_the_combinations_are_of_all_public_parts():
    """Whoever adds a prior, a likelihood, an objective, ... adds it to a table here."""

    def classes(module):
        found = {name: getattr(module, name) for name in module.__all__}
        return {
            name
            for name, kind in found.items()
            if inspect.isclass(kind) and not issubclass(kind, tuple) and not getattr(kind, "_is_protocol", False)
        }

    def names(parts):
        return {type(part).__name__ for part in parts}

    of_codes = names(make(3, 4) for make in CODE_PRIORS.values())
    of_latents = names(make(SHAPE, (2,)) for make in PRIORS.values())
    assert of_latents | of_codes == classes(vl.priors) - {"CodePrior", "ConditionalGaussian", "Prior"}
    assert names(parts()["condition"] for parts, _ in CONDITIONS.values()) == classes(vl.conditions) - {"Condition"}
    assert names(make() for make in LIKELIHOODS.values()) == classes(vl.likelihoods)
    assert names(LIKELIHOODS[name]() for name in OF_EACH_CLASS) == classes(vl.likelihoods)
    objectives = [make(2) for make in OBJECTIVES.values()] + [make() for make in OF_AUTOENCODERS.values()]
    assert names(objectives) == classes(vl.objectives)
    assert names(make() for make in CORRUPTIONS.values()) == classes(vl.corruptions)
    assert {*classes(vl.latents) - {"GaussianLatent", "PointLatent"}, *vl.presets.__all__} <= {*MODELS}
    functions = {name for name in vl.evaluation.__all__ if inspect.isfunction(getattr(vl.evaluation, name))}
    assert {*EVALUATIONS, *OF_VALUES} == functions - {"unit_of"}
    for table, of_a_gaussian_posterior in ((TOGETHER, OF_A_GAUSSIAN_POSTERIOR), (EVALUATED, ("latents",))):
        rows = [(*pair, *rest) for pair, rest in table.items()]
        values = [{row[column] for row in rows} for column in range(5)]
        missing = {
            pair
            for one, other in itertools.combinations(range(5), 2)
            for pair in {*itertools.product(values[one], values[other])} - {(row[one], row[other]) for row in rows}
        }
        assert missing == {(objective, "flow") for objective in of_a_gaussian_posterior}


def images_of(folder, count=12):
    for i, image in enumerate(images_for(vae_of(), count)):
        vl.plots.save_grid(image[None], folder / f"{i:02d}.png", columns=1)
    return vl.data.stream(folder)


SETS = {name: make for name, make in SOURCES.items() if name != "a loader"}


@pytest.mark.parametrize("source", SETS)
def test_every_set_is_cut_into_batches_on_its_device(stand_in, tmp_path, source):
    data, generator = SETS[source](images_for(vae_of()), tmp_path).to(DEVICE), torch.Generator(DEVICE)
    assert [batch.device for batch in data.batches(6, shuffle=True, generator=generator)] == [DEVICE] * 2
    for indices in (torch.tensor([3, 1]), torch.tensor([3, 1], device=DEVICE), slice(2)):
        assert len(data.subset(indices)) == 2


FACTORS = torch.cartesian_prod(torch.arange(4), torch.arange(5))
EVALUATIONS = dict.fromkeys(
    ("activation_ranges", "elbo", "embed", "encode", "latent_statistics", "latents", "reconstruction_quality"),
    lambda call, model, x, g: call(model, x, generator=g),
) | {
    "anomaly": lambda call, model, x, g: call(model, x, 1 - x, background=model, generator=g),
    "anomaly_scores": lambda call, model, x, g: call(model, x, background=model, generator=g),
    "code_usage": lambda call, model, x, g: call(quantised(QUANTIZERS["Vector"]()).to(DEVICE), x, generator=g),
    "compare": lambda call, model, x, g: [
        call(model, model, x, num_samples=draws, generator=g, progress=False) for draws in (None, 20)
    ],
    "disentanglement": lambda call, model, x, g: call(model, x, FACTORS, num_resamples=2),
    "features_of": lambda call, model, x, g: call(extractor(), x),
    "fidelity": lambda call, model, x, g: call(extractor(), x, model.sample(20, generator=g)),
    "log_likelihood": lambda call, model, x, g: call(model, x, num_samples=20, generator=g, progress=False),
    "marginal_log_likelihood": lambda call, model, x, g: call(
        conditional("labels")[0].to(DEVICE), x, num_samples=20, generator=g, progress=False
    ),
    "rfid": lambda call, model, x, g: call(extractor(), model, x, generator=g),
    "text_reconstruction": lambda call, model, x, g: call(
        vl.conv_vae((1, 24, 24), 2, hidden_channels=(3,)).to(DEVICE), num_images=2
    ),
    "per_image_terms": lambda call, model, x, g: call(model, [x[:5], x[5:]], vl.Elbo(), generator=g),
}
WITHOUT_CONDITIONS = (
    "anomaly",
    "code_usage",
    "features_of",
    "fidelity",
    "marginal_log_likelihood",
    "per_image_terms",
    "text_reconstruction",
)
OF_VALUES = {
    "high_frequency_energy": lambda call, x: call(x),
    **dict.fromkeys(
        ("beta_vae_score", "dci", "factor_vae_score", "mig", "modularity", "sap"),
        lambda call, x: call(codes(x), FACTORS, num_resamples=2),
    ),
    **dict.fromkeys(("fid", "kid", "precision_recall"), lambda call, x: call(codes(x), codes(1 - x))),
    "auroc": lambda call, x: call(x.mean((1, 2, 3)), x.amax((1, 2, 3))),
    "modularity_chance": lambda call, x: call(codes(x), FACTORS),
}


def extractor():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).to(DEVICE)


def codes(images):
    return images.flatten(1)[:, :3]


def check_evaluation(name, model, x, place=DEVICE):
    generator = torch.Generator(place).manual_seed(0)
    result = EVALUATIONS[name](getattr(vl.evaluation, name), model.to(DEVICE), x, generator)
    assert not any(isinstance(value, OnDevice) for value in _leaves([result])), "results are on the CPU"


@pytest.mark.filterwarnings("ignore:`num_samples`")
@pytest.mark.parametrize(
    ("place", "of_generator"), [(CPU, DEVICE), (DEVICE, CPU)], ids=["images on the CPU", "generator of the CPU"]
)
@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_evaluation_runs_on_the_models_device(stand_in, name, place, of_generator):
    check_evaluation(name, vae_of(), images_for(vae_of(), 20).to(place), of_generator)


@pytest.mark.filterwarnings("ignore:`num_samples`")
@pytest.mark.parametrize("condition", ["labels dropped", "prior"])
@pytest.mark.parametrize("name", [name for name in EVALUATIONS if name not in WITHOUT_CONDITIONS])
def test_every_evaluation_gives_conditions_on_the_models_device(stand_in, name, condition):
    check_evaluation(name, *conditional(condition, 20), CPU)


@pytest.mark.parametrize("name", OF_VALUES)
def test_every_evaluation_takes_values_of_the_device(stand_in, name):
    result = OF_VALUES[name](getattr(vl.evaluation, name), images_for(vae_of(), 20).to(DEVICE))
    assert not any(isinstance(value, OnDevice) for value in _leaves([result]))


@pytest.mark.parametrize("name", ["embed", "encode", "disentanglement", "reconstruction_quality"])
def test_every_evaluation_of_autoencoders_runs_on_their_device(stand_in, name):
    check_evaluation(name, autoencoder_of(), images_for(vae_of(), 20))


OF_THE_ENCODER_OR_NO_MODEL = ("features_of", "disentanglement", "text_reconstruction")
EVALUATED = together([name for name in EVALUATIONS if name not in OF_THE_ENCODER_OR_NO_MODEL], ("latents",))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`num_samples`")
@pytest.mark.parametrize(("prior", "name"), EVALUATED)
def test_every_combination_is_evaluated_on_its_device(stand_in, prior, name):
    latent, posterior, likelihood = EVALUATED[prior, name]
    check_evaluation(name, vae_of(prior, likelihood, latent, posterior), images_for(vae_of(), 20))


@pytest.mark.parametrize("place", [None, CPU, DEVICE])
@pytest.mark.parametrize("prior", PRIORS)
def test_images_are_sampled_with_a_generator_of_either_device(stand_in, prior, place):
    model = vae_of(prior).to(DEVICE)
    generator = None if place is None else torch.Generator(place).manual_seed(0)
    assert model.sample(3, generator=generator).device == DEVICE
    assert model.prior.sample(3, (2,), generator=generator, device=DEVICE).device == DEVICE


@pytest.mark.parametrize("place", [CPU, DEVICE])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_images_are_drawn_on_the_models_device(stand_in, likelihood, place):
    model, generator = vae_of(likelihood=likelihood).to(DEVICE), torch.Generator(place).manual_seed(0)
    x = images_for(model).to(DEVICE)
    out = model(x, generator=generator)
    assert model.reconstruct(x).device == DEVICE
    assert model.likelihood.sample(out.recon_params, generator=generator).device == DEVICE


@pytest.mark.parametrize("prior", [name for name in PRIORS if name != "standard"])
def test_a_prior_is_fitted_on_its_device(stand_in, prior):
    model = vae_of(prior).to(DEVICE)
    x, z = images_for(model, 3).to(DEVICE), torch.randn(3, 2, device=DEVICE)
    if hasattr(model.prior, "start_from"):
        model.prior.start_from(x if prior == "vamp" else z)
    stand_in.waits.clear()
    vl.fit_prior(model.prior, z, num_steps=2)
    assert not [wait for wait in stand_in.waits if "_to_copy" in wait]
    assert model.eval().prior.log_prob(z).device == DEVICE


@pytest.mark.parametrize("name", CODE_PRIORS)
def test_a_prior_over_codes_stays_on_its_device(stand_in, name):
    prior = CODE_PRIORS[name](5, 4).to(DEVICE)
    codes = torch.zeros(3, 4, dtype=torch.int64, device=DEVICE)
    embedding = torch.ones(3, 2, device=DEVICE) if name == "conditional" else None
    view = prior if embedding is None else prior.given(embedding)
    stand_in.waits.clear()
    assert view.log_prob(codes).device == DEVICE
    assert view.next_logits(codes, codes[:, 0]).device == DEVICE
    assert stand_in.waits == []
    assert view.from_noise(torch.randn(3, 4, device=DEVICE)).device == DEVICE
    if name != "uniform":
        stand_in.waits.clear()
        vl.fit_prior(prior, codes, embedding=embedding, num_steps=2, progress=False)
        assert not [wait for wait in stand_in.waits if "_to_copy" in wait]


def test_scaled_latents_stay_on_the_models_device(stand_in):
    model = scaled().to(DEVICE)
    z = model.embed(images_for(model).to(DEVICE), scaled=True)
    assert z.device == model.decode_mean(z, scaled=True).device == DEVICE


def test_what_a_prior_keeps_moves_with_it(stand_in):
    model = vae_of("vamp").eval()
    model.prior.fix()
    assert model.to(DEVICE).prior.log_prob(torch.randn(3, 2, device=DEVICE)).device == DEVICE


def test_the_stand_in_computes_what_the_cpu_does(stand_in, monkeypatch):
    found = []
    for place in (DEVICE, CPU):
        monkeypatch.setattr(accelerate.Accelerator, "device", place)
        model = vae_of("realnvp", "gaussian optimal", norm="batch", posterior="flow")
        x = images_for(model)
        (record,) = vl.Trainer(max_epochs=1, batch_size=4).fit(model, x, x, progress=False)
        found.append([*record.train, *record.val])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_tensors_of_the_device_are_drawn(stand_in, tmp_path):
    model = vae_of().to(DEVICE)
    x = images_for(model).to(DEVICE)
    vl.plots.save_pairs(x, model.reconstruct(x), tmp_path / "pairs.png")
    vl.plots.save_grid(model.sample(4), tmp_path / "grid.png")
    vl.plots.save_embedding(torch.randn(9, 3, device=DEVICE), torch.arange(9, device=DEVICE), tmp_path / "map.png")


@pytest.mark.parametrize(
    "prior", ["mixture", *(pytest.param(p, marks=pytest.mark.slow) for p in PRIORS if p != "mixture")]
)
def test_a_run_that_is_written_and_resumed_stays_on_its_device(stand_in, tmp_path, prior):
    model = vae_of(prior)
    x = images_for(model, 8)
    for epochs in (1, 2):
        trainer = vl.Trainer(max_epochs=epochs, batch_size=4, output_dir=tmp_path, callbacks=[vl.EMA()])
        history = trainer.fit(model, x, x, resume=epochs > 1, progress=False)
    assert history[-1].step == 4
    assert {tensor.device for tensor in model.state_dict().values()} == {DEVICE}


class PriorOnTheHost(vl.StandardNormal):
    def log_prob(self, z):
        return super().log_prob(z * torch.ones(2))

    def kl(self, mu, logvar, z=None):
        return super().kl(mu, logvar) * torch.ones(2)


class LikelihoodOnTheHost(vl.Bernoulli):
    def __init__(self):
        super().__init__()
        self.weights = torch.ones(8)  # no buffer, so it stays where it was made

    def log_prob(self, x, recon_params):
        return super().log_prob(x, recon_params * self.weights)


class NoiseOfTheHost(vl.GaussianNoise):
    def forward(self, x, *, generator=None):
        return x + 0 * torch.rand(x.shape, generator=torch.Generator(), device=x.device)


def extra(term):
    """An objective with one more term of each image, which is of no other effect."""
    return vl.Elbo(extra=lambda x, images: 0 * images.flatten(1).sum(1) + 0 * term(x, images))


MISPLACED = {
    "a prior": (lambda: vae_of(PriorOnTheHost()), None, "mul.Tensor: tensors of"),
    "a likelihood": (lambda: vae_of(likelihood=LikelihoodOnTheHost()), None, "mul.Tensor: tensors of"),
    "a corruption's generator": (lambda: vae_of(corruption=NoiseOfTheHost()), None, "generator of the other device"),
    "an objective": (vae_of, extra(lambda x, images: (x * torch.rand(8)).sum()), "mul.Tensor: tensors of"),
    "indices": (vae_of, extra(lambda x, images: x.gather(3, torch.zeros(4, 1, 8, 8).long()).sum()), "gather.default"),
    "indexed": (vae_of, extra(lambda x, images: torch.rand(9)[x.argmax(3)].sum()), "index.Tensor: tensors of"),
    "a part of a stack": (vae_of, extra(lambda x, images: torch.stack([x.sum(), torch.ones(())])[0]), "stack|cat"),
    "the result": (vae_of, extra(lambda x, images: torch.zeros(()).add_(x.sum())), "add_.Tensor: tensors of"),
}


@pytest.mark.parametrize("fault", MISPLACED)
def test_a_tensor_of_the_cpu_in_the_wrong_place_raises(stand_in, fault):
    model, objective, match = MISPLACED[fault]
    with pytest.raises(RuntimeError, match=match):
        waits_of_a_step(stand_in, model(), objective)


WAITS = {
    "item": (lambda x, images: x.sum().item(), "_local_scalar_dense"),
    "float": (lambda x, images: float(x.sum()), "_local_scalar_dense"),
    "bool": (lambda x, images: 1 if x.sum() > 0 else 0, "_local_scalar_dense"),
    "tolist": (lambda x, images: x.sum().tolist(), "_to_copy"),
    "cpu": (lambda x, images: x.sum().cpu(), "_to_copy"),
    "numpy": (lambda x, images: x.sum().cpu().numpy().item(), "_to_copy"),
    "a mask as an index": (lambda x, images: x[x > 0.5].sum(), "index.Tensor"),
    "masked_select": (lambda x, images: x.masked_select(x > 0.5).sum(), "masked_select"),
    "nonzero": (lambda x, images: x.nonzero().sum(), "nonzero"),
    "unique": (lambda x, images: x.unique().sum(), "unique"),
    "equal": (lambda x, images: torch.equal(x, images), "equal"),
    "a tensor that is made": (lambda x, images: torch.tensor(1.0, device=x.device), "_to_copy"),
    "a tensor that is moved": (lambda x, images: torch.rand(()).to(x.device), "_to_copy"),
    "indices of the CPU": (lambda x, images: x[torch.arange(2)].sum(), "index.Tensor"),
}


@pytest.mark.parametrize("fault", WAITS)
def test_what_waits_for_the_device_in_a_step_is_found(stand_in, fault):
    term, operation = WAITS[fault]
    (wait,) = waits_of_a_step(stand_in, vae_of(), extra(term))
    assert operation in wait and "test_devices" not in wait


def test_what_does_not_wait_is_not_found(stand_in):
    """A number in the CPU's memory, one that is filled in on the device, a copy that is not waited for."""

    def term(x, images):
        moved = torch.rand(4).to(x.device, non_blocking=True)
        return moved * torch.tensor(2.0) + x.new_full((), 3.0) + x.masked_fill(x > 0.5, 0.0).mean()

    assert waits_of_a_step(stand_in, vae_of(), extra(term)) == []
