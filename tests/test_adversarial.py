"""A discriminator beside the bound: gradients by the textbook, the term's start, and runs of the Trainer."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from runs import Crash, CrashAt, Watch, weights
from torch import nn

import vaelib as vl
from vaelib.training.checkpoints import newest_checkpoint

SHAPE = (3, 16, 16)


def vae(latent=None, likelihood=None):
    torch.manual_seed(0)
    parts = {"latent_dim": 3} if latent is None else {"latent": latent}
    return vl.conv_vae(SHAPE, hidden_channels=(4, 6), norm="group", likelihood=likelihood, **parts)


def points():
    torch.manual_seed(0)
    encoder = vl.ConvEncoder(SHAPE, 3, hidden_channels=(4, 6), norm="group")
    return vl.AutoEncoder(encoder, vl.ConvDecoder(3, SHAPE, hidden_channels=(6, 4), norm="group"))


MODELS = {
    "gaussian": lambda: vae(likelihood=vl.Laplace()),
    "scale per pixel": lambda: vae(likelihood=vl.Gaussian("per_pixel")),
    "codes": lambda: vae(vl.VectorQuantizer((4, 4, 4), 8, decay=None)),
    "points": points,
}


def discriminator():
    torch.manual_seed(1)
    judge = vl.PatchDiscriminator(3, width=4, num_layers=1)
    with torch.no_grad():
        judge.layers[-1].weight.mul_(4)  # its gradient is large enough for the adaptive weight to stay below its limit
    return judge


def adversarial(**options):
    return vl.Adversarial(discriminator(), **{"perceptual": vl.perceptual_distance, "start": 0, "ramp": 0} | options)


def images(count=5, seed=0):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def seeded():
    return torch.Generator().manual_seed(7)


def textbook(model, judge, x, loss, weight, share, beta=0.3):
    """Two passes: the model's with the discriminator held fixed, then the discriminator's on detached images."""
    judge.requires_grad_(False)
    draw = model.draw(model.observe(x), generator=seeded())
    params = model.decode(draw)
    found = params if model.likelihood is None else model.likelihood.mean(params)
    if model.likelihood is None:
        fixed = (x - params).square().sum((1, 2, 3)).mean()
    else:
        fixed = -model.likelihood.log_prob(x, params).mean()
    fixed = fixed + vl.perceptual_distance(x, found).mean()
    logits = judge(found)
    misled = -logits.mean() if loss == "hinge" else 0.5 * (logits - 1).square().mean()
    if weight == "adaptive":
        last = model.decoder.stages[-1].weight
        norms = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (fixed, misled)]
        weight = 0.5 * (norms[0] / (norms[1] + 1e-4)).clamp(max=3 * 16 * 16)
    penalty = 0.0 if draw.penalty is None else draw.penalty.mean()
    (fixed + beta * draw.kl.sum(1).mean() + penalty + share * weight * misled).backward()
    judge.requires_grad_(True)
    real, fake = judge(x), judge(found.detach())
    if loss == "hinge":
        (0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())).backward()
    else:
        (0.5 * ((real - 1).square().mean() + fake.square().mean())).backward()
    return share * weight


def gradients(*modules):
    return [parameter.grad for module in modules for parameter in module.parameters()]


@pytest.mark.parametrize("weight", ["adaptive", 0.7])
@pytest.mark.parametrize("loss", ["hinge", "least_squares"])
@pytest.mark.parametrize("name", MODELS)
def test_one_backward_pass_gives_the_gradients_of_two_textbook_passes(name, loss, weight):
    """At half of the ramp, in double precision."""
    model = MODELS[name]().double()
    elbo = None if name == "points" else vl.Elbo(beta=0.3)
    objective = adversarial(elbo=elbo, loss=loss, weight=weight, start=4, ramp=4).double()
    plain, judge, x = copy.deepcopy(model), copy.deepcopy(objective.discriminator), images().double()
    used = textbook(plain, judge, x, loss, weight, share=0.5)
    terms = objective(model, x, step=5, generator=seeded())
    terms.loss.backward()
    assert 0 < used < 0.9 * 0.5 * 0.5 * 768  # no limit is reached
    torch.testing.assert_close(terms.weight, torch.full((5,), float(used)).double(), rtol=1e-6, atol=0)
    for got, expected in zip(gradients(model, objective.discriminator), gradients(plain, judge), strict=True):
        assert (got - expected).norm() <= 1e-6 * expected.norm() + 1e-12  # hinge has no gradient at the last bias
    assert sum(gradient.norm() > 1e-3 for gradient in gradients(plain)) > 10
    of_fixed = terms.reconstruction + terms.perceptual + (terms.penalty if name == "codes" else 0)
    beta_kl = 0.3 * terms.kl
    torch.testing.assert_close(terms.loss, (of_fixed + beta_kl + terms.weight * terms.adversarial).mean())


def test_before_the_start_the_model_learns_as_without_and_the_discriminator_learns():
    model, x = vae(), images()
    plain = copy.deepcopy(model)
    terms = vl.Elbo(beta=0.3, extra=vl.perceptual_distance)(plain, x, generator=seeded())
    terms.loss.backward()
    objective = adversarial(elbo=vl.Elbo(beta=0.3), start=10)
    found = objective(model, x, step=9, generator=seeded())
    found.loss.backward()
    assert torch.equal(found.loss, terms.loss) and torch.equal(found.perceptual, terms.extra)
    assert all(map(torch.equal, gradients(model), gradients(plain)))
    assert found.weight.eq(0).all() and found.adversarial.ne(0).all()
    assert all(gradient.abs().max() > 0 for gradient in gradients(objective.discriminator))
    before = found.discriminator.mean()
    moves = torch.optim.Adam(objective.parameters(), 0.01)
    for _ in range(20):
        moves.zero_grad()
        loss = objective(model, x, step=0, generator=seeded())
        loss.loss.backward()
        moves.step()
    assert loss.discriminator.mean() < 0.9 * before


def test_the_term_enters_at_a_step_or_at_a_fraction_of_the_run():
    by_steps, by_fractions = adversarial(start=50, ramp=20), adversarial(start=0.5, ramp=0.2)
    by_fractions.set_total_steps(100)
    for objective in (by_steps, by_fractions):
        assert [objective.share(step) for step in (0, 49, 50, 59, 69, 99)] == [0, 0, 0.05, 0.5, 1, 1]
    assert adversarial(start=0, ramp=0).share(0) == 1
    with pytest.warns(UserWarning, match="never enters: `start` is step 50 of 50"):
        by_steps.set_total_steps(50)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: adversarial(start=0.5).share(0), ValueError, "`start` is a fraction of the run, 0.5, and the number"),
        (
            lambda: adversarial(ramp=0.1)(vae(), images()),
            ValueError,
            "`ramp` is a fraction of the run, 0.1, and the num",
        ),
        (
            lambda: adversarial(start=1.5),
            ValueError,
            r"`start` must be a fraction of the run in \[0, 1\], or an int, a",
        ),
        (lambda: adversarial(ramp=-1), ValueError, "`ramp` must be >= 0, got -1"),
        (lambda: adversarial(start="0.5"), TypeError, "`start` must be a number, got '0.5'"),
        (lambda: adversarial(weight="auto"), ValueError, "`weight` must be one of 'adaptive', got 'auto'"),
        (lambda: adversarial(weight=-1.0), ValueError, "`weight` must be >= 0"),
        (lambda: adversarial(loss="wasserstein"), ValueError, "`loss` must be .*'hinge'"),
        (lambda: adversarial(optimizer=0.1), TypeError, "`optimizer` must be a mapping such as"),
        (lambda: adversarial(optimizer={"params": []}), ValueError, "`optimizer` must not have `params`"),
        (lambda: adversarial(elbo=vl.Iwae(2)), TypeError, "`elbo` must be an Elbo, a Reconstruction or None"),
        (lambda: adversarial(elbo=vl.Elbo(extra=vl.perceptual_distance)), ValueError, "`elbo` must have no `extra`"),
        (lambda: adversarial(perceptual=3), TypeError, "`perceptual` must be callable"),
        (
            lambda: vl.Adversarial(nn.BatchNorm2d(3)),
            ValueError,
            "`discriminator` must have no batch normalisation, which",
        ),
        (lambda: vl.Adversarial(len), TypeError, "`discriminator` must be an nn.Module object"),
        (
            lambda: adversarial().double()(vae(), images()),
            TypeError,
            "`discriminator` must be of the model's dtype, torch.",
        ),
        (lambda: adversarial().set_total_steps(0), ValueError, "`total_steps` must be >= 1, got 0"),
        (lambda: adversarial(elbo=vl.Elbo())(points(), images()), TypeError, "`model` must have a prior"),
        (lambda: adversarial()(None, images()), TypeError, "`model` must be an AutoEncoder or a VAE for Adversarial"),
        (
            lambda: adversarial(perceptual=lambda x, y: (x - y).mean())(vae(), images()),
            ValueError,
            r"`perceptual\(...\)` must have shape \(5\), got \(1,\)",
        ),
        (
            lambda: adversarial(perceptual=lambda x, y: 1.0)(vae(), images()),
            TypeError,
            r"`perceptual\(...\)` must be a tensor, got 1.0",
        ),
        (
            lambda: vl.Adversarial(nn.Flatten(0), start=0, ramp=0)(vae(), images()),
            ValueError,
            r"`discriminator\(images\)` must have shape \(5, \.\.\.\)|\(5\)",
        ),
        (
            lambda: adversarial()(frozen_decoder(), images()),
            ValueError,
            '`weight` "adaptive" needs a decoder with a trained weight matrix: give a number',
        ),
        (
            lambda: adversarial()(unused_weight(), images()),
            ValueError,
            '`weight` "adaptive" needs a decoder that uses the last of its weights: give a number',
        ),
        (lambda: vl.PatchDiscriminator(norm="batch"), ValueError, "`norm` must be"),
        (lambda: vl.PatchDiscriminator(num_layers=0), ValueError, "`num_layers` must be >= 1"),
        (lambda: vl.PatchDiscriminator(1)(images()), ValueError, r"`images` must have shape \(B, 1, H, W\)"),
        (lambda: vl.PatchDiscriminator(3)(images()), ValueError, "`images` must have at least 24 x 24 pixels for 3"),
        (lambda: adversarial()(vae(), images(0)), ValueError, "`x` must hold at least one image, got shape"),
        (lambda: vl.perceptual_distance(images(0), images(0)), ValueError, "`x` must hold at least one image, got"),
        (lambda: vl.perceptual_distance(images(), images()[:2]), ValueError, "`images` must have"),
        (lambda: vl.perceptual_distance(images()[..., :9], images()[..., :9]), ValueError, "at least 11 x 11 pixels"),
    ],
)
def test_what_is_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()


def frozen_decoder():
    model = vae()
    model.decoder.requires_grad_(False)
    return model


def unused_weight():
    model = vae()
    model.decoder.unused = nn.Linear(2, 2)
    return model


@pytest.mark.parametrize("size", [(16, 16), (23, 48)])
def test_the_gradient_of_the_perceptual_distance_is_that_of_finite_differences(size):
    x, found = torch.rand(2, 2, 2, *size, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda y: vl.perceptual_distance(x, y), found.requires_grad_(), fast_mode=True)
    assert torch.autograd.gradcheck(lambda y: vl.perceptual_distance(y, x), found, fast_mode=True)


@pytest.mark.parametrize(("size", "scales"), [(16, 1), (64, 3), (180, 5)])
def test_the_structure_of_the_perceptual_distance_is_that_of_torchmetrics(size, scales):
    metrics = pytest.importorskip("torchmetrics.functional.image")
    from vaelib.objectives.perceptual import _EXPONENTS

    x = torch.rand(2, 1, size, size, dtype=torch.float64)
    found = (x + 0.1 * torch.randn_like(x)).clamp(0, 1)
    edges, similarity = 0.0, 1.0
    for scale, exponent in enumerate(used := _EXPONENTS[:scales]):
        a, b = (F.avg_pool2d(each, 2**scale) for each in (x, found))
        rows, columns = (a - b)[:, :, 1:] - (a - b)[:, :, :-1], (a - b)[..., 1:] - (a - b)[..., :-1]
        edges += (rows.abs().mean((1, 2, 3)) + columns.abs().mean((1, 2, 3))) / 2 / scales
        # Its SSIM counts reflected borders too, so they are cut here; its contrast is of the inner places already.
        options = {"data_range": 1.0, "reduction": "none"}
        _, whole = metrics.structural_similarity_index_measure(b, a, return_full_image=True, **options)
        _, contrast = metrics.structural_similarity_index_measure(b, a, return_contrast_sensitivity=True, **options)
        part = whole[..., 5:-5, 5:-5].mean((1, 2, 3)) if scale == scales - 1 else contrast
        similarity *= part ** (exponent / sum(used))
    torch.testing.assert_close(vl.perceptual_distance(x, found), size * size * (edges + 1 - similarity))


def test_equal_images_have_no_distance_and_flat_ones_a_finite_gradient():
    x = torch.rand(2, 3, 32, 32)
    assert vl.perceptual_distance(x, x).abs().max() < 1e-2
    flat = torch.zeros(2, 1, 32, 32, requires_grad=True)
    vl.perceptual_distance(1 - 2 * x[:, :1], flat).sum().backward()
    assert flat.grad.isfinite().all()


class Edges(nn.Module):
    """A fixed measure with a weight of its own, and values (B, 1, 1, 1), as LPIPS has."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, x, images):
        return (self.layer(x) - self.layer(images)).square().mean((1, 2, 3), keepdim=True)


def test_a_network_as_the_measure_is_fixed_and_not_kept():
    measure = Edges()
    objective, model = adversarial(perceptual=measure), vae()
    terms = objective(model, images())
    terms.loss.backward()
    assert not measure.training and measure.layer.weight.grad is None
    assert terms.perceptual.shape == (5,) and terms.perceptual.min() > 0
    assert not [name for name in objective.state_dict() if "layer.weight" in name.removeprefix("discriminator.layers")]


@pytest.mark.filterwarnings("default:.*:UserWarning:torchvision")  # by arguments that lpips gives it
def test_lpips_is_a_measure_by_one_line():
    lpips = pytest.importorskip("lpips", reason="lpips is not installed")
    net = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    x, found = torch.rand(2, 2, 3, 64, 64)
    found.requires_grad_()
    judge = vl.PatchDiscriminator(3, width=4)
    objective = vl.Adversarial(judge, perceptual=lambda x, y: x[0].numel() * net(x, y, normalize=True), start=0, ramp=0)
    model = vl.conv_vae((3, 64, 64), 2, hidden_channels=(4,))
    terms = objective(model, x, generator=seeded())
    expected = 3 * 64 * 64 * net(2 * x - 1, 2 * model.decode_mean(model.draw(model.observe(x), generator=seeded())) - 1)
    torch.testing.assert_close(terms.perceptual, expected.flatten(), rtol=1e-4, atol=1e-3)
    terms.loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model))


def test_logits_of_an_image_are_those_in_any_batch():
    judge, x = vl.PatchDiscriminator(3, width=8, num_layers=2).double(), images(4).double()
    torch.testing.assert_close(judge(x)[2:3], judge(x[2:3]), rtol=1e-12, atol=1e-12)
    assert not [part for part in judge.modules() if "BatchNorm" in type(part).__name__]
    wide = vl.PatchDiscriminator(1, width=2, num_layers=5, norm="none")
    assert [layer.out_channels for layer in wide.layers if isinstance(layer, nn.Conv2d)] == [2, 4, 8, 16, 16, 16, 1]


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    """They take longer than the runs; tests/test_callbacks.py draws them."""
    monkeypatch.setattr("vaelib.plots.save_curves", lambda *_: None)


def trained(directory=None, *callbacks, resume=False, seed=0, **options):
    torch.manual_seed(seed)
    model = vl.conv_vae(SHAPE, 3, hidden_channels=(4, 6), norm="group")
    asked = {"start": 0.3, "ramp": 0.2} | {name: options.pop(name) for name in ("start", "weight") if name in options}
    objective = vl.Adversarial(vl.PatchDiscriminator(3, width=4, num_layers=1), **asked)
    settings = {"max_epochs": 3, "batch_size": 6, "learning_rate": 1e-3} | options
    parts = [vl.Checkpoints(every=2), vl.Pictures(every=9)] if directory is not None else []
    trainer = vl.Trainer(objective, output_dir=directory, callbacks=[*parts, *callbacks], **settings)
    history = trainer.fit(model, images(24), images(6, seed=1), resume=resume, progress=False)
    return model, objective, history


def test_the_trainer_says_how_long_the_run_is_and_averages_the_model_alone(tmp_path):
    rates = Watch(lambda run: [(group["lr"], group["betas"]) for group in run.optimization.optimizer.param_groups])
    average = vl.EMA(0.9)
    shares = Watch(lambda run: run.objective.share(run.step - 1))
    kept = Watch(lambda run: set(average.state_dict()))
    model, objective, history = trained(tmp_path, average, rates, shares, kept)
    assert shares.seen == pytest.approx([0, 0, 0, 0, 0.5, 1, 1, 1, 1, 1, 1, 1])
    assert [record.train.weight > 0 for record in history] == [False, True, True]
    assert all(rate == (rates.seen[0][0][0], (0.9, 0.99)) for rate in rates.seen[0][:1])
    assert rates.seen[0][1][1] == (0.5, 0.9)
    assert kept.seen[0] == set(model.state_dict()) and not any("discriminator" in name for name in kept.seen[0])
    assert history[-1].criterion is None
    assert torch.equal(weights(vl.load(tmp_path / "best")), weights(vl.load(tmp_path / "last")))
    assert newest_checkpoint(tmp_path)[1]["objective"].keys() == objective.state_dict().keys()


def test_the_discriminator_has_what_its_optimiser_is_given():
    rates = Watch(lambda run: [group["lr"] for group in run.optimization.optimizer.param_groups])
    torch.manual_seed(0)
    objective = adversarial(optimizer={"lr_scale": 0.25}, perceptual=None)
    trainer = vl.Trainer(objective, max_epochs=1, batch_size=6, lr_schedule="constant", callbacks=[rates])
    trainer.fit(vae(), images(12), progress=False)
    assert rates.seen[0] == [5e-3, 1.25e-3]


def test_a_large_gradient_of_the_discriminator_changes_nothing_for_the_model():
    """Neither is the model's clipped by it, nor the step skipped, before the term has entered."""
    found = []
    for objective in (vl.Elbo(), adversarial(start=99, perceptual=None)):
        model, x = vae(), images(12)
        if isinstance(objective, vl.Adversarial):
            with torch.no_grad():
                objective.discriminator.layers[0].weight.mul_(1e4)
        limits = {"clip_norm": 1.0, "skip_norm": 1e5, "optimizer": torch.optim.SGD}
        with (
            pytest.warns(UserWarning, match="never enters") if isinstance(objective, vl.Adversarial) else nullcontext()
        ):
            history = vl.Trainer(objective, max_epochs=2, batch_size=6, **limits).fit(model, x, progress=False)
        assert history[-1].skipped == 0
        found.append(weights(model))
    assert torch.equal(*found)


def test_early_stopping_has_nothing_to_compare():
    with pytest.raises(ValueError, match="an EarlyStopping, which needs a bound to compare; Adversarial has none"):
        trained(None, vl.EarlyStopping())


@pytest.mark.parametrize("weight", ["adaptive", 0.5])
def test_a_run_with_a_discriminator_resumes_to_the_bit(weight, tmp_path):
    model, objective, history = trained(tmp_path / "whole", vl.EMA(0.9), CrashAt(-1), weight=weight)
    with pytest.raises(Crash):
        trained(tmp_path / "run", vl.EMA(0.9), CrashAt(7), weight=weight)
    again = trained(tmp_path / "run", vl.EMA(0.9), CrashAt(-1), resume=True, seed=5, weight=weight)
    assert torch.equal(weights(again[0]), weights(model)) and torch.equal(weights(again[1]), weights(objective))
    assert [[*r.train, *r.val] for r in again[2]] == [[*r.train, *r.val] for r in history]


def test_pieces_give_the_gradient_of_the_whole_if_the_weight_is_a_number():
    found = []
    for pieces in (1, 3):
        model = points()  # nothing is drawn
        objective = adversarial(weight=50.0)
        trainer = vl.Trainer(
            objective, max_epochs=2, batch_size=6, accumulate=pieces, optimizer=torch.optim.SGD, learning_rate=1e-4
        )
        trainer.fit(model, images(12), progress=False)
        found += [torch.cat([weights(model), weights(objective.discriminator)])]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_the_adaptive_weight_of_a_step_in_pieces_is_that_of_each_piece():
    """As documented: the step's gradient is the mean of the pieces' own, and not that of the whole batch."""
    moves, seen, sgd = [], [], {"optimizer": torch.optim.SGD, "learning_rate": 1.0, "lr_schedule": "constant"}
    for count in (1, 2):
        model, objective = points(), adversarial()
        objective.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
        before = torch.cat([weights(model), weights(objective.discriminator)])
        trainer = vl.Trainer(objective, max_epochs=1, batch_size=6, accumulate=count, **sgd)
        trainer.fit(model, images(6), progress=False)
        moves.append(before - torch.cat([weights(model), weights(objective.discriminator)]))
    model, objective = points(), adversarial()
    pieces = [objective(model, piece) for piece in seen[1:]]
    assert (pieces[0].weight[0] / pieces[1].weight[0] - 1).abs() > 1e-3
    (sum(piece.loss for piece in pieces) / 2).backward()
    expected = torch.cat([gradient.flatten() for gradient in gradients(model, objective.discriminator)])
    assert (moves[1] - expected).norm() < 1e-5 * expected.norm() < 0.01 * (moves[0] - expected).norm()


@pytest.mark.parametrize("compile", [False, True])
def test_the_trainer_runs_it_in_mixed_precision_and_reports_that_it_is_not_compiled(compile, caplog):
    history = trained(precision="bf16", compile=compile, learning_rate=1e-4)[2]
    assert history[-1].train.weight > 0 and history[-1].skipped == 0
    assert history[-1].val.discriminator > 0
    assert [record.getMessage() for record in caplog.records] == (
        ["The step is not compiled: torch.compile cannot run Adversarial."] if compile else []
    )
