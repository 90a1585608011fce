"""Distances between sets of images: closed forms, hand values, laws, and torchmetrics as an oracle."""

import functools
import math
import sys

import pytest
import torch
from runs import seeded
from torch import nn

import vaelib as vl
from vaelib.errors import DataError, MissingExtraError
from vaelib.evaluation import Estimate, features_of, fid, fidelity, kid, precision_recall, reconstruction_quality
from vaelib.evaluation.fidelity import _halves


def normal(count, size=4, seed=0):
    return torch.randn(count, size, generator=seeded(seed), dtype=torch.float64)


# --- reconstructions


class Same(nn.Module):
    """An encoder, or a decoder, that gives back what it is given, or that with an error."""

    def __init__(self, error=0.0):
        super().__init__()
        self.error = error

    def forward(self, x):
        return x + self.error


def echo(image_shape, error=0.0):
    return vl.AutoEncoder(Same(), Same(error), image_shape=image_shape, latent_shape=image_shape)


def test_psnr_by_hand():
    """A constant error e gives -20 log10 e; what leaves [0, 1] is cut."""
    x = torch.rand(4, 1, 8, 8) * 0.5
    found = reconstruction_quality(echo((1, 8, 8), 0.1), x)
    assert found.psnr.value == pytest.approx(20.0, rel=1e-4)
    assert found.psnr.standard_error == pytest.approx(0.0, abs=1e-3)
    assert found.num_images == 4
    pair = torch.stack([torch.full((1, 8, 8), value) for value in (0.5, 0.95)])
    expected = Estimate.of(torch.tensor([20.0, -20 * math.log10(0.05)]))
    assert reconstruction_quality(echo((1, 8, 8), 0.1), pair).psnr == pytest.approx(expected, rel=1e-4)


def test_ssim_of_constant_images_by_hand():
    """Without structure the luminance term is left: (2 a b + c1) / (a^2 + b^2 + c1)."""
    x = torch.full((2, 3, 8, 8), 0.5)
    found = reconstruction_quality(echo((3, 8, 8), 0.25), x)
    expected = (2 * 0.5 * 0.75 + 1e-4) / (0.5**2 + 0.75**2 + 1e-4)
    assert found.ssim.value == pytest.approx(expected, rel=1e-6)


def test_what_comes_back_as_it_was():
    found = reconstruction_quality(echo((1, 8, 8)), torch.rand(3, 1, 8, 8))
    assert found.psnr.value == math.inf
    assert found.ssim.value == pytest.approx(1.0)


@pytest.mark.parametrize(("size", "fits"), [((175, 200), False), ((176, 177), True)])
def test_several_scales_where_they_fit(size, fits):
    x = torch.rand(2, 1, *size, generator=seeded())
    found = reconstruction_quality(echo((1, *size), 0.02), x)
    assert (found.ms_ssim is not None) == fits
    if found.ms_ssim is not None:
        assert 0.9 < found.ssim.value < found.ms_ssim.value < 1


def test_models_sets_and_batches():
    x = torch.rand(10, 1, 8, 8)
    vae = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,)).train()
    whole, *others = (reconstruction_quality(vae, data) for data in (x, vl.data.ImageDataset(x), [x[:3], x[3:]]))
    assert vae.training
    error = (vae.reconstruct(x) - x).square().mean((1, 2, 3))
    assert whole.psnr == pytest.approx(Estimate.of(-10 * error.log10()), rel=1e-4)
    for other in others:
        assert other.psnr == pytest.approx(whole.psnr, rel=1e-5) and other.ssim == pytest.approx(whole.ssim, rel=1e-5)


def test_wrong_arguments_of_reconstructions(monkeypatch):
    with pytest.raises(ValueError, match=r"SSIM needs images of at least 6 pixels a side, got \(1, 8, 5\)"):
        reconstruction_quality(echo((1, 8, 5)), torch.rand(2, 1, 8, 5))
    monkeypatch.setitem(sys.modules, "torchmetrics.functional", None)
    with pytest.raises(MissingExtraError, match=r"Comparing images needs .*vaelib\[metrics\]"):
        reconstruction_quality(echo((1, 8, 8)), torch.rand(2, 1, 8, 8))


# --- FID


def exactly(mean, covariance, count=200, seed=0):
    """Features whose sample mean and covariance are these."""
    x = normal(count, len(mean), seed)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (count - 1))).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def test_fid_of_gaussians_is_the_closed_form():
    """Diagonal covariances: the squared distance of the means, and of the standard deviations."""
    mean, other = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([1.0, 1.0, 0.0]).double()
    std, other_std = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 2.0, 0.25]).double()
    found = fid(exactly(mean, std.square().diag()), exactly(other, other_std.square().diag(), count=77, seed=1))
    assert found.value == pytest.approx(((mean - other).square() + (std - other_std).square()).sum().item())


def test_fid_of_covariances_that_do_not_commute():
    """tr (S1 S2)^(1/2) of 2x2 matrices: the root of trace + 2 root determinant, of their product."""
    first = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    second = torch.tensor([[1.0, -0.5], [-0.5, 3.0]], dtype=torch.float64)
    product = first @ second
    overlap = math.sqrt(product.trace().item() + 2 * math.sqrt(torch.linalg.det(product).item()))
    found = fid(exactly(torch.zeros(2).double(), first), exactly(torch.zeros(2).double(), second, seed=1))
    assert found.value == pytest.approx(2.0 + 1.0 + 1.0 + 3.0 - 2 * overlap)


def test_fid_is_a_distance():
    x, y = normal(100), 2 * normal(60, seed=1)
    assert fid(x, x).value == pytest.approx(0.0, abs=1e-6)
    assert fid(x, y).value == pytest.approx(fid(y, x).value)
    assert fid(x + 1e4, y + 1e4).value == pytest.approx(fid(x, y).value)
    wide = normal(30, 50)  # fewer images than features: a singular covariance
    assert fid(wide, wide).value == pytest.approx(0.0, abs=1e-5)


def test_fid_agrees_with_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    x, y = normal(150, 6), 1.5 * normal(90, 6, seed=1) + 0.3
    features = nn.Flatten()
    features.num_features = 6
    oracle = FrechetInceptionDistance(features)
    oracle.set_dtype(torch.float64)
    oracle.update(x, real=True)
    oracle.update(y, real=False)
    assert fid(x, y).value == pytest.approx(oracle.compute().item(), rel=1e-6)


def test_the_error_of_fid_is_its_spread():
    """Between equal covariances FID moves, to first order, by 2 d of the means' distance d alone."""
    found = [fid(normal(300, 3, seed), normal(200, 3, seed + 1000) + 0.5) for seed in range(200)]
    expected = 2 * math.sqrt(3 * 0.5**2 * (1 / 300 + 1 / 200))
    assert torch.tensor([estimate.value for estimate in found]).std().item() == pytest.approx(expected, rel=0.15)
    errors = torch.tensor([estimate.standard_error for estimate in found])
    assert errors.square().mean().sqrt().item() == pytest.approx(expected, rel=0.05)


# --- KID


def test_kid_agrees_with_torchmetrics_over_all_pairs():
    from torchmetrics.image.kid import poly_mmd

    x, y = normal(60), normal(60, seed=1) + 0.3
    assert kid(x, y).value == pytest.approx(poly_mmd(x, y).item())


def test_kid_by_hand():
    """x = 0, 2 and y = 1, 1, 1: kernel 1 between the x, 8 between the y, (1 + 27) / 2 across."""
    found = kid(torch.tensor([[0.0], [2.0]]), torch.ones(3, 1))
    assert found.value == pytest.approx(1 + 8 - 2 * (1 + 27) / 2)


def test_kid_is_unbiased_and_its_error_covers_it():
    """Of one distribution the mean is 0, though FID's is not; the error is not below the spread."""
    found = [kid(normal(40, seed=seed), normal(30, seed=seed + 1000)) for seed in range(300)]
    values = torch.tensor([estimate.value for estimate in found])
    assert abs(values.mean().item()) < 4 * values.std().item() / math.sqrt(300)
    assert (values < 0).any()
    errors = torch.tensor([estimate.standard_error for estimate in found])
    assert errors.square().mean().sqrt().item() >= values.std().item()


def test_the_error_of_kid_is_its_spread_where_the_sets_differ():
    found = [kid(normal(100, seed=seed), normal(80, seed=seed + 1000) + 0.7) for seed in range(300)]
    spread = torch.tensor([estimate.value for estimate in found]).std().item()
    errors = torch.tensor([estimate.standard_error for estimate in found])
    assert errors.square().mean().sqrt().item() == pytest.approx(spread, rel=0.15)


def test_kid_in_blocks(monkeypatch):
    x, y = normal(50), normal(33, seed=1)
    whole, close = kid(x, y), precision_recall(x, y)
    monkeypatch.setattr(sys.modules["vaelib.evaluation.fidelity"], "_ROWS", 7)
    assert kid(x, y) == pytest.approx(whole)
    assert precision_recall(x, y) == close


# --- precision and recall


def test_precision_and_recall_by_hand():
    """On a line, each real one reaches its nearest at 1, 1, 1 and 7; the generated ones theirs at 0.5, 0.5, 2 and 2."""
    real = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    generated = torch.tensor([[0.5], [1.0], [16.0], [18.0]])
    found = precision_recall(real, generated, num_neighbors=1)
    assert found.precision.value == 3 / 4  # 16 lies 7 from 9, 18 does not
    assert found.recall.value == 2 / 4  # 2 lies 1 from 1, 9 far from all
    assert precision_recall(real, generated[:3], num_neighbors=1).recall.standard_error == math.inf  # a half is one


def test_the_errors_are_the_spread_of_what_halves_give():
    """Each half with neighbours of its own, by the function itself."""
    real, generated = normal(30, 2), normal(40, 2, seed=1) + 0.8
    found = precision_recall(real, generated, num_neighbors=2)
    random = torch.Generator().manual_seed(0)
    sides = [_halves(len(features), random)[1:] for features in (real, generated)]
    assert [side.sum(1).unique().tolist() for side in sides] == [[15], [20]]
    halves = [precision_recall(real[a], generated[b], num_neighbors=2) for a, b in zip(*sides, strict=True)]
    for name in ("precision", "recall"):
        values = torch.tensor([getattr(half, name).value for half in halves], dtype=torch.float64)
        assert getattr(found, name).standard_error == pytest.approx(values.std().item())


def covered(world, sizes, repetitions):
    """How often +-2 errors hold the mean over repetitions: (precision, recall), for our errors and a share's own."""
    found = [precision_recall(*world(*sizes, seed)) for seed in range(repetitions)]
    values, errors = torch.tensor(found, dtype=torch.float64).unbind(2)
    off = (values - values.mean(0)).abs()
    of_share = (values * (1 - values) / torch.tensor(sizes[::-1])).sqrt()
    return values.mean(0), *((off <= 2 * e).double().mean(0) for e in (errors, of_share))


def shifted(n, m, seed, latents=2):
    return normal(n, latents, seed), normal(m, latents, seed + 10_000) + torch.tensor([2.0] + [0.0] * (latents - 1))


def test_the_errors_of_precision_and_recall_cover():
    """Where the error of a share, over images taken as independent, covers half of the times."""
    _, ours, of_share = covered(shifted, (100, 100), 120)
    assert (ours > 0.84).all()
    assert (of_share < 0.7).all()


@pytest.mark.table
def test_the_table_of_coverage():
    """Prints the table of docs/results.md: 200 repetitions each, real and generated sets of these sizes."""

    def modes(n, m, seed, latents):
        random = torch.Generator().manual_seed(seed)
        centres = 3 * normal(5, latents, seed=99)
        real = centres[torch.randint(5, (n,), generator=random)] + 0.5 * normal(n, latents, seed + 5000)
        generated = centres[torch.randint(3, (m,), generator=random)] + 0.7 * normal(m, latents, seed + 10_000)
        return real, generated

    def curve(n, m, seed, latents):
        """Noisy points of one curve, the generated ones of its first three quarters."""

        def points(count, end, seed):
            turn = 6.3 * end * torch.rand(count, 1, generator=seeded(seed), dtype=torch.float64)
            return torch.sin(turn * torch.arange(1, latents + 1).log1p()) + 0.05 * normal(count, latents, seed + 5000)

        return points(n, 1.0, seed), points(m, 0.75, seed + 10_000)

    worlds = {
        "the same": lambda n, m, seed, latents: (normal(n, latents, seed), normal(m, latents, seed + 10_000)),
        "shifted by 2": shifted,
        "narrower, 0.6": lambda n, m, seed, latents: (
            normal(n, latents, seed),
            0.6 * normal(m, latents, seed + 10_000),
        ),
        "3 of 5 modes": modes,
        "3/4 of a curve": curve,
    }
    print("\n| sets | features | sizes | precision, recall | +-2 errors cover | with the error of a share |")
    print("| --- | --- | --- | --- | --- | --- |")
    every = []
    for name, world in worlds.items():
        for latents, sizes in ((2, (100, 100)), (8, (100, 100)), (8, (400, 200))):
            made = functools.partial(world, latents=latents)
            mean, ours, of_share = covered(made, sizes, 200)
            values = [", ".join(f"{x:.2f}" for x in pair.tolist()) for pair in (mean, ours, of_share)]
            print(f"| {name} | {latents} | {sizes[0]}, {sizes[1]} | {' | '.join(values)} |")
            every += [c for m, c in zip(mean.tolist(), ours.tolist(), strict=True) if 0.05 < m < 0.95]
    assert min(every) > 0.8
    assert 0.9 < sum(every) / len(every) < 0.99


def test_the_same_set_and_sets_apart():
    x = normal(50)
    assert [share.value for share in precision_recall(x, x)] == [1.0, 1.0]
    assert precision_recall(x, x + 100) == ((0.0, 0.0), (0.0, 0.0))


def test_a_part_is_precise_but_recalls_little():
    """Generated images of one of two classes."""
    one, other = normal(100), normal(100, seed=1) + 50
    found = precision_recall(torch.cat([one, other]), normal(100, seed=2))
    assert found.precision.value > 0.8
    assert 0.4 < found.recall.value <= 0.5
    turned = precision_recall(normal(100, seed=2), torch.cat([one, other]))
    assert (turned.recall.value, turned.precision.value) == (found.precision.value, found.recall.value)


# --- sets of images


def test_features_come_in_eval_mode_from_any_data():
    extractor = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 5)).train()
    x = torch.rand(30, 1, 8, 8)
    whole, *others = (
        features_of(extractor, data, batch_size=7) for data in (x, vl.data.ImageDataset(x), [x[:9], x[9:]])
    )
    assert extractor.training and whole.dtype == torch.float64 and not whole.requires_grad
    for other in others:
        torch.testing.assert_close(other, whole)
    torch.testing.assert_close(features_of(lambda x: x.flatten(1), x), x.flatten(1).double())


def test_fidelity_is_its_parts():
    x, y = torch.rand(40, 1, 4, 4), torch.rand(30, 1, 4, 4) * 0.9
    found = fidelity(nn.Flatten(), x, y)
    parts = x.flatten(1), y.flatten(1)
    assert found.fid == pytest.approx(fid(*parts)) and found.kid == pytest.approx(kid(*parts))
    assert (found.precision, found.recall) == precision_recall(*parts)
    assert (found.num_real, found.num_generated) == (40, 30)
    assert fidelity(nn.Flatten(), vl.data.ImageDataset(x), [y]) == found


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda x: features_of(nn.Identity(), x),
            ValueError,
            r"`extractor\(images\)` must have shape \(30, F\), got \(30, 1, 8, 8\)",
        ),
        (lambda x: fid(normal(20), normal(20) / 0), ValueError, "`generated` must be finite"),
        (lambda x: features_of(nn.Flatten(), []), DataError, "`data` must hold at least one image"),
        (lambda x: features_of(nn.Flatten(), x, batch_size=0), ValueError, "`batch_size` must be >= 1"),
        (lambda x: fid(normal(20), normal(19)), ValueError, "`generated` must hold at least 20 images, got 19"),
        (lambda x: kid(normal(1), normal(2)), ValueError, "`real` must hold at least 2 images, got 1"),
        (lambda x: precision_recall(normal(3), normal(4)), ValueError, "`real` must hold at least 4 images, got 3"),
        (lambda x: precision_recall(normal(3), normal(4), num_neighbors=0), ValueError, "`num_neighbors` must be >= 1"),
        (lambda x: fid(normal(20), normal(20, 5)), ValueError, r"`generated` must have shape \(M, 4\), got \(20, 5\)"),
        (lambda x: kid(normal(20)[0], normal(20)), ValueError, r"`real` must have shape \(N, F\)"),
    ],
)
def test_wrong_arguments(call, error, match):
    x = torch.rand(30, 1, 8, 8)
    with pytest.raises(error, match=match):
        call(x)
