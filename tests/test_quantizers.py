"""Quantised latents: codes and z are one, the gradients are their formulas, codebooks follow k-means."""

import itertools
import math
import threading

import pytest
import torch
from runs import seeded
from torch import nn
from torch.nn import functional as F

import vaelib as vl
from vaelib.latents.codebook import Codebook
from vaelib.latents.quantizer import rotated, straight_through

QUANTIZERS = {
    "vector": lambda: vl.VectorQuantizer((3, 2, 2), 16),
    "vector by gradients": lambda: vl.VectorQuantizer((3, 2, 2), 16, decay=None, gradient="rotation"),
    "cosine": lambda: vl.VectorQuantizer((3, 2, 2), 16, cosine=True),
    "residual": lambda: vl.ResidualQuantizer((3, 2, 2), 16, depth=3),
    "finite scalar": lambda: vl.FiniteScalarQuantizer((3, 2, 2), (8, 5, 2)),
    "binary spherical": lambda: vl.BinarySphericalQuantizer((3, 2, 2)),
    "one position": lambda: vl.VectorQuantizer((6,), 16),
}


@pytest.fixture(params=QUANTIZERS)
def latent(request):
    torch.manual_seed(0)
    return QUANTIZERS[request.param]()


def features_for(latent, count=5):
    return torch.randn(count, *latent.latent_shape, generator=seeded())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_decoder_is_given_the_codes_bit_for_bit(latent, dtype):
    latent, features = latent.to(dtype), features_for(latent).to(dtype)
    for _ in range(3):
        draw = latent.draw(features, no_noise(features))
        for z in (draw.hidden, draw.z, latent.point(features)):
            assert z.dtype == dtype
            assert torch.equal(z, latent.embed(draw.codes))
        assert torch.equal(latent.encoded(features), draw.codes)
        assert draw.codes.shape == (5, latent.num_positions)
        if hasattr(latent, "after_step"):
            latent.after_step(generator=seeded())


def test_features_that_are_not_finite_are_no_codes(latent):
    """z says so, position by position, in training and after it; codes stay codes."""
    features = features_for(latent)
    wanted, positions = latent.point(features), latent.latent_shape[1:]
    features[(1, 0, *[0] * len(positions))], features[(2, 0, *[0] * len(positions))] = math.nan, math.inf
    for z in (latent.point(features), latent.draw(features, no_noise(features)).z):
        bad = z.isnan().flatten(2).any(1) if positions else z.isnan().all(1, keepdim=True)
        assert bad[:, 0].tolist() == [False, True, True, False, False]
        assert not bad[:, 1:].any()
        assert torch.equal(z[~z.isnan()], wanted[~z.isnan()])
    latent.embed(latent.encoded(features * math.nan))


@pytest.mark.parametrize("make", [lambda: vl.FiniteScalarQuantizer((2, 2, 2), (5, 3)), lambda: VQ((2, 2, 2), 5)])
def test_an_encoder_that_is_not_finite_is_found_by_evaluation(make):
    vae, images = of_codes(make())
    nn.init.constant_(vae.encoder.head.weight, math.nan)
    assert vae.reconstruct(images).isnan().flatten(1).any(1).all()
    evaluation = vl.evaluation
    for call in (evaluation.elbo, evaluation.encode, evaluation.embed, evaluation.code_usage):
        with pytest.raises(ValueError, match="`model` must give finite numbers, .* for 24 of 24 images"):
            call(vae, images)


def test_the_rate_is_that_of_uniform_codes(latent):
    draw = latent.draw(features_for(latent), torch.empty(5, 0))
    torch.testing.assert_close(draw.kl, torch.full((5, latent.num_positions), math.log(latent.num_codes)))
    torch.testing.assert_close(draw.log_p, -draw.kl.sum(1))
    torch.testing.assert_close(latent.log_prob(draw.z), draw.log_p)
    assert torch.equal(draw.log_q, torch.zeros(5))


LEVELS = [(count,) for count in range(2, 17)] + [
    tuple(torch.randint(2, 9, (length,), generator=seeded(seed)).tolist())
    for seed, length in zip(range(200), itertools.cycle((1, 2, 3, 4)))
]


def test_finite_scalars_have_every_value_once():
    """For every L from 2 to 16 and 200 tuples of levels: K = prod(L) values; codes and z are each other's inverse."""
    for levels in LEVELS:
        latent = vl.FiniteScalarQuantizer((len(levels),), levels)
        codes = torch.arange(math.prod(levels))[:, None]
        z = latent.embed(codes)
        assert len(z.unique(dim=0)) == latent.num_codes == math.prod(levels)
        assert torch.equal(latent.codes_of(z), codes)
        assert z.min() == -1
        assert z.max() <= 1


def test_finite_scalars_reach_every_code_and_no_other():
    """The encoder's side: each code is what some features round to, and no feature, however large, leaves the grid."""
    for levels in LEVELS:
        latent = vl.FiniteScalarQuantizer((len(levels),), levels)
        each = torch.tensor([-1e30, *torch.linspace(-8, 8, 1601).tolist(), 1e30])
        for channel, count in enumerate(levels):
            features = torch.zeros(len(each), len(levels))
            features[:, channel] = each
            found = latent.point(features)[:, channel]
            assert len(found.unique()) == count, (levels, channel)
            assert (found.diff() >= 0).all()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.equal(latent.draw(features, no_noise(features)).z[:, channel], found)
        middle = torch.tensor([count // 2 for count in levels])
        assert (latent.encoded(torch.zeros(1, len(levels))) == (middle * latent._places).sum()).all()


def test_finite_scalars_are_those_of_the_article():
    """Mentzer et al., appendix A.1, in float64, with the inverse of tanh where it prints tan."""
    levels = torch.tensor([8, 5, 4, 2, 7], dtype=torch.float64)
    latent = vl.FiniteScalarQuantizer((5,), (8, 5, 4, 2, 7))
    x = 3 * torch.randn(500, 5, generator=seeded(), dtype=torch.float64)
    half = (levels - 1) * (1 + 1e-3) / 2
    offset = torch.where(levels % 2 == 1, 0.0, 0.5)
    wanted = (torch.tanh(x + torch.atanh(offset / half)) * half - offset).round() / (levels // 2)
    torch.testing.assert_close(latent.point(x), wanted)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_autocast_changes_no_code(name):
    torch.manual_seed(0)
    latent = QUANTIZERS[name]().eval()
    features = 2 * features_for(latent, 200)
    plain = latent.draw(features, torch.empty(200, 0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = latent.draw(features, torch.empty(200, 0))
        assert torch.equal(latent.encoded(features), plain.codes)
    assert torch.equal(mixed.codes, plain.codes)
    assert torch.equal(mixed.z, plain.z)


def test_straight_through():
    rows, vectors = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    weights = torch.randn(4, 3)
    out = straight_through(rows, vectors)
    (out * weights).sum().backward()
    assert torch.equal(out, vectors)
    assert torch.equal(rows.grad, weights)
    assert vectors.grad is None


def rotation_of(row, vector):
    """Of Fifty et al., equation 4, in full: R = I - 2 r r^T + 2 e z^T, times |vector| / |row|."""
    z, e = row / row.norm(), vector / vector.norm()
    r = (z + e) / (z + e).norm()
    turn = torch.eye(len(row), dtype=row.dtype) - 2 * torch.outer(r, r) + 2 * torch.outer(e, z)
    return vector.norm() / row.norm() * turn


def test_the_rotation_gradient_is_its_formula():
    rows = torch.randn(20, 5, dtype=torch.float64, generator=seeded(), requires_grad=True)
    vectors, weights = (torch.randn(20, 5, dtype=torch.float64, generator=seeded(seed)) for seed in (1, 2))
    out = rotated(rows, vectors)
    (out * weights).sum().backward()
    assert torch.equal(out, vectors)
    copy = rows.detach().clone().requires_grad_()
    for row, vector, weight in zip(copy, vectors, weights, strict=True):
        turned = rotation_of(row.detach(), vector) @ row
        torch.testing.assert_close(turned, vector)
        (turned * weight).sum().backward()
    torch.testing.assert_close(rows.grad, copy.grad)


def test_a_rotation_that_is_not_unique_is_straight_through():
    vector = torch.tensor([0.6, 0.8])
    rows = torch.stack([torch.zeros(2), -vector, -2 * vector, vector]).requires_grad_()
    vectors = torch.stack([vector, vector, vector, torch.zeros(2)])
    weights = torch.randn(4, 2)
    (rotated(rows, vectors) * weights).sum().backward()
    torch.testing.assert_close(rows.grad, weights)


def of_codes(latent, images=24):
    torch.manual_seed(0)
    vae = vl.conv_vae((1, 8, 8), hidden_channels=(4,), stride=4, norm="none", latent=latent)
    return vae, torch.randint(256, (images, 1, 8, 8), generator=seeded()) / 255


def no_noise(features):
    return torch.empty(len(features), 0)


def followed(latent, rows, seed=0, **options):
    """A training-mode draw of ``rows`` that the codebook follows; its codes."""
    codes = latent.draw(rows, no_noise(rows)).codes
    latent.after_step(generator=seeded(seed), **options)
    return codes


def started(rows, **options):
    """A quantiser of one position whose codes were placed by k-means on ``rows``."""
    torch.manual_seed(0)
    latent = vl.VectorQuantizer(rows.shape[1:], 8, **options)
    followed(latent, rows)
    return latent, latent.codebooks[0]


def clusters(count=300, centres=6, spread=0.05):
    middles = 3 * torch.randn(centres, 4, generator=seeded(5))
    return middles, middles[torch.arange(count) % centres] + spread * torch.randn(count, 4, generator=seeded(6))


@pytest.mark.parametrize("cosine", [False, True])
def test_a_step_without_decay_is_one_of_k_means(cosine):
    """From N = 0 too: each code is the mean of its vectors, and one without any stays."""
    rows = torch.randn(200, 4, generator=seeded(1))
    latent = vl.VectorQuantizer((4,), 30, decay=0.0, restart=0.0, cosine=cosine)
    book = latent.codebooks[0]
    book._first = None  # no k-means of the first step
    book.weight[:3] = book.weight[:1]  # of equal codes the first is taken
    for _ in range(2):
        before = book.weight.clone()
        codes = followed(latent, rows).flatten()
        compared = F.normalize(rows, dim=1) if cosine else rows
        for code in range(30):
            own = compared[codes == code]
            wanted = own.double().mean(0).float() if len(own) else before[code]
            torch.testing.assert_close(book.weight[code], wanted, atol=1e-6, rtol=0)
    assert len(codes.unique()) < 30


def test_a_step_with_decay_is_a_running_mean():
    rows = torch.randn(200, 4, generator=seeded(1))
    latent, book = started(rows, decay=0.9, restart=0.0)
    counts, sums = book.counts.clone(), book.sums.clone()
    codes = latent.draw(rows, no_noise(rows)).codes.flatten()
    one_hot = torch.eye(8)[codes]
    latent.after_step()
    torch.testing.assert_close(book.counts, 0.9 * counts + 0.1 * one_hot.sum(0))
    torch.testing.assert_close(book.sums, 0.9 * sums + 0.1 * one_hot.T @ rows)
    torch.testing.assert_close(book.weight, book.sums / book.counts[:, None])


def test_k_means_of_the_first_step_finds_clusters_and_leaves_counts_that_agree():
    """Else the first running mean throws the codes away (lucidrains/vector-quantize-pytorch #66)."""
    middles, rows = clusters()
    latent, book = started(rows)
    assert (torch.cdist(middles, book.weight).amin(1) < 0.2).all()
    torch.testing.assert_close(book.sums, book.counts[:, None] * book.weight)
    before = book.weight.clone()
    followed(latent, rows)
    torch.testing.assert_close(book.weight, before, atol=0.02, rtol=0)


@pytest.mark.parametrize("pieces", [4, 7])
def test_k_means_takes_as_many_vectors_however_they_come(pieces):
    rows, books = torch.randn(700, 4, generator=seeded(1)), []
    for parts in (1, pieces):
        torch.manual_seed(0)
        latent = vl.VectorQuantizer((4,), 2)
        for part in rows.chunk(parts):
            latent.draw(part, no_noise(part))
        latent.after_step(generator=seeded())
        books.append(latent.codebooks[0])
    assert books[0].counts.sum() == 2 * 256
    assert torch.equal(books[0].weight, books[1].weight)
    latent = vl.VectorQuantizer((4,), 2)
    latent.draw(rows, no_noise(rows))
    latent.after_step(lambda total: 2 * total, seeded())
    assert latent.codebooks[0].counts.sum() == 2 * 256  # of both processes


def test_k_means_looks_at_a_part_of_the_distances_at_once(monkeypatch):
    _, rows = clusters()
    whole, _ = started(rows)
    monkeypatch.setattr("vaelib.latents.codebook._DISTANCES", 8 * 50)
    sizes, distances = [], Codebook.distances
    monkeypatch.setattr(Codebook, "distances", lambda book, rows: sizes.append(len(rows)) or distances(book, rows))
    parted, _ = started(rows)
    assert {*sizes[1:]} == {50}  # the first is the step's own
    torch.testing.assert_close(parted.codebooks[0].weight, whole.codebooks[0].weight)


@pytest.mark.parametrize("decay", [0.99, None])
def test_a_dead_code_moves_beside_one_in_use_and_stays_alive(decay):
    _, rows = clusters(spread=0.5)
    latent, book = started(rows, decay=decay)
    with torch.no_grad():
        book.weight[2] = 1e3
        book.counts[2] = 0.0
        if decay is not None:
            book.sums[2] = 0.0
    followed(latent, rows)
    assert torch.cdist(book.weight[2:3], book.weight[[0, 1, 3, 4, 5, 6, 7]]).min() < 0.5
    assert book.counts[2] > 0.5 * book.counts.mean()
    if decay is not None:
        torch.testing.assert_close(book.sums, book.counts[:, None] * book.weight)
    for _ in range(5):
        assert (followed(latent, rows) == 2).any()


def test_no_dead_code_moves_to_vectors_that_are_all_the_same():
    """Empty background: the nearest of all codes there takes every vector, so another would be dead again."""
    rows = torch.cat([torch.full((500, 4), 9.0), torch.randn(100, 4, generator=seeded(1))])
    latent, book = started(rows)
    (background,) = latent.encoded(rows[:1])[0].tolist()
    for number in range(20):
        rows[:500] += 0.01  # an encoder that learns: the code follows at a distance
        book.counts[(background + 1 + number % 7) % 8] = 0.0
        followed(latent, rows, number)
        assert (torch.cdist(book.weight, rows[:1]) < 1.0).sum() == 1


def test_restarts_keep_codes_in_use():
    torch.manual_seed(0)
    rows = torch.randn(2000, 8, generator=seeded(3))
    used = {}
    for restart in (0.0, 0.1):
        latent = vl.VectorQuantizer((8,), 64, restart=restart, decay=0.9)
        latent.codebooks[0]._first = None
        with torch.no_grad():
            latent.codebooks[0].weight.add_(3.0)  # where the encoder's vectors are not
        for _ in range(60):
            followed(latent, rows)
        used[restart] = len(latent.encoded(rows).unique())
    assert used[0.0] < 32
    assert used[0.1] == 64


CODEBOOKS = [name for name in QUANTIZERS if hasattr(QUANTIZERS[name](), "after_step")]


def steps_of(name, pieces, processes=1):
    """Three steps over the same images: cut into ``pieces``, and shared out over ``processes``."""
    torch.manual_seed(0)
    copies = [QUANTIZERS[name]() for _ in range(processes)]
    for copy in copies[1:]:
        copy.load_state_dict(copies[0].state_dict())
    for step in range(3):
        features = torch.randn(16, *copies[0].latent_shape, generator=seeded(step))
        for copy, share in zip(copies, features.chunk(processes), strict=True):
            for piece in share.chunk(pieces):
                copy.draw(piece, no_noise(piece))
        together(copies, step)
    return [copy.state_dict() for copy in copies]


def together(copies, step):
    """What the trainer does in each process: ``after_step`` with sums over all of them, in lockstep by threads."""
    if len(copies) == 1:
        copies[0].after_step(generator=seeded(step))
        return
    barrier, values = threading.Barrier(len(copies)), {}

    def after(rank):
        def reduce(tensor):
            values[rank] = tensor.clone()
            barrier.wait()
            total = sum(values[i] for i in range(len(copies)))
            barrier.wait()
            return total

        copies[rank].after_step(reduce, seeded(step))

    threads = [threading.Thread(target=after, args=(rank,)) for rank in range(len(copies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("name", CODEBOOKS)
def test_accumulation_and_processes_make_no_difference(name):
    (whole,) = steps_of(name, 1)
    (accumulated,) = steps_of(name, 4)
    shared = steps_of(name, 2, processes=2)
    for other in (accumulated, *shared):
        for key, value in whole.items():
            torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-5)
    for key, value in shared[0].items():
        assert torch.equal(shared[1][key], value), key


@pytest.mark.parametrize("name", CODEBOOKS)
def test_a_state_that_was_saved_goes_on_bit_for_bit(name):
    torch.manual_seed(0)
    latent, other = QUANTIZERS[name](), QUANTIZERS[name]()
    batches = [torch.randn(16, *latent.latent_shape, generator=seeded(number)) for number in range(6)]
    for number in range(3):
        followed(latent, batches[number], number)
    other.load_state_dict(latent.state_dict())
    for number in range(3, 6):
        followed(latent, batches[number], number)
        followed(other, batches[number], number)
    for key, value in latent.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_only_training_moves_the_codebook_and_a_skipped_step_is_forgotten():
    _, rows = clusters()
    latent = vl.VectorQuantizer((4,), 6)
    before = {name: value.clone() for name, value in latent.state_dict().items()}

    def unchanged():
        return all(torch.equal(value, before[name]) for name, value in latent.state_dict().items())

    latent.after_step()
    latent.eval().draw(rows, no_noise(rows))
    latent.after_step()
    assert unchanged()
    followed(latent.train(), rows * torch.nan, moved=False)
    assert unchanged()
    followed(latent, rows)
    assert latent.codebooks[0].weight.isfinite().all()
    assert latent.codebooks[0].counts.sum() == len(rows)  # of k-means, which was still to be done
    assert not unchanged()
    before = {name: value.clone() for name, value in latent.state_dict().items()}
    followed(latent, rows * torch.nan, moved=False)
    followed(latent, rows)
    assert latent.codebooks[0].weight.isfinite().all()


def test_a_near_tie_of_a_codebook_is_one_of_all_after_it():
    latent = RQ((1,), 2, depth=3).eval()
    for book, step in zip(latent.codebooks, (1.0, 0.5, 0.25), strict=True):
        book.weight.copy_(torch.tensor([[0.0], [step]]))
    margins = latent.margins(torch.tensor([[0.5 + 1e-6], [0.9]]))
    assert (margins[0] < 1e-5).all()
    torch.testing.assert_close(margins[1], torch.tensor([0.8, 0.35, 0.1125]))


def test_what_is_pending_is_no_state():
    """Buffers are broadcast at each forward pass of several processes, from the first to all."""
    _, rows = clusters()
    latent, _ = started(rows)
    names = {name for name, _ in latent.named_buffers()}
    latent.draw(rows, no_noise(rows))
    assert {name for name, _ in latent.named_buffers()} == names
    assert {name.split(".")[-1] for name in latent.state_dict()} == {"weight", "counts", "sums"}


def test_a_loop_that_never_calls_after_step_is_told_once_and_holds_no_growing_memory():
    latent, features = vl.VectorQuantizer((4,), 2, decay=None), torch.randn(200, 4)
    for _ in range(99):
        latent.draw(features, no_noise(features))
    with pytest.warns(UserWarning, match=r"100 draws in training mode and no step: .* vae.latent.after_step\(\)"):
        latent.draw(features, no_noise(features))
    latent.draw(features, no_noise(features))  # no second warning, which would be an error
    assert len(latent.codebooks[0]._first) <= 2 * 256
    latent.after_step()
    for _ in range(99):  # counted from the last step on
        latent.draw(features, no_noise(features))


@pytest.mark.parametrize("commitment", [0.25, 2.0])
def test_the_commitment_is_summed_over_positions_and_channels(commitment):
    """In nats per squared latent: pythae #124 had the sum of one against the mean of the other."""
    features = torch.randn(5, 3, 2, 2)
    for decay, price in ((0.99, commitment), (None, 1 + commitment)):
        latent = vl.VectorQuantizer((3, 2, 2), 16, commitment=commitment, decay=decay)
        draw = latent.draw(features, no_noise(features))
        torch.testing.assert_close(draw.penalty, price * (features - draw.z).square().flatten(1).sum(1))


def test_commitment_moves_the_encoder_and_the_codebook_term_the_codes():
    features = torch.randn(5, 3, 2, 2, requires_grad=True)
    latent = vl.VectorQuantizer((3, 2, 2), 16, commitment=0.5, decay=None)
    draw = latent.draw(features, no_noise(features))
    (gradient,) = torch.autograd.grad(draw.penalty.sum(), features, retain_graph=True)
    torch.testing.assert_close(gradient, 2 * 0.5 * (features - draw.z).detach())
    (gradient,) = torch.autograd.grad(draw.penalty.sum(), latent.codebooks[0].weight, retain_graph=True)
    one_hot = torch.eye(16)[draw.codes.flatten()]
    rows = features.detach().flatten(2).transpose(1, 2).reshape(-1, 3)
    wanted = 2 * one_hot.T @ (one_hot @ latent.codebooks[0].weight.detach() - rows)
    torch.testing.assert_close(gradient, wanted)
    (gradient,) = torch.autograd.grad(draw.z.sum(), features)
    assert torch.equal(gradient, torch.ones_like(features))


def test_residual_codes_add_up_and_get_closer():
    features = torch.randn(40, 3, 2, 2)
    latent = vl.ResidualQuantizer((3, 2, 2), 16, depth=3)
    for _ in range(10):
        followed(latent, features)
    draw = latent.eval().draw(features, no_noise(features))
    rows = features.flatten(2).transpose(1, 2)
    left, errors, penalty = rows, [rows.square().sum()], 0.0
    for book, codes in zip(latent.codebooks, draw.codes.chunk(3, dim=1), strict=True):
        assert torch.equal(codes, torch.cdist(left, book.weight).argmin(-1))
        left = left - book.weight[codes]
        errors.append(left.square().sum())
        penalty = penalty + latent.commitment * left.square().flatten(1).sum(1)
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.25 * errors[1]
    torch.testing.assert_close(draw.penalty, penalty)
    torch.testing.assert_close((rows - left).transpose(1, 2).reshape(features.shape), draw.z)


def test_binary_codes_are_the_corners_of_the_sphere():
    latent = vl.BinarySphericalQuantizer((5,))
    codes = torch.arange(32)[:, None]
    z = latent.embed(codes)
    assert len(z.unique(dim=0)) == 32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(32))
    assert torch.equal(latent.codes_of(z), codes)
    assert torch.equal(latent.encoded(7 * z), codes)


def test_the_entropy_term_has_its_signs():
    """Bits of an image are to be certain, codes to differ between images; open-genie #9 had the second sign wrong."""
    latent = vl.BinarySphericalQuantizer((6,), commitment=0.0, entropy=1.0)
    signs = latent.embed(torch.randint(64, (400, 1), generator=seeded()))

    def penalty_of(features):
        return latent.draw(features, no_noise(features)).penalty.mean().item()

    certain, alike = penalty_of(signs), penalty_of(signs[:1].expand(400, 6))
    unsure = penalty_of(torch.randn(400, 6, generator=seeded()))
    assert certain < unsure < alike
    assert certain == pytest.approx(-6 * math.log(2), abs=0.6)
    assert alike == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("bits", [16, 36])
def test_the_entropy_term_has_a_slope_where_a_bit_is_certain(bits):
    features = torch.full((8, bits), 1e-3)
    features[:, 0] = 5.0
    features.requires_grad_()
    vl.BinarySphericalQuantizer((bits,)).draw(features, no_noise(features)).penalty.sum().backward()
    assert features.grad.isfinite().all()


def test_the_entropy_term_is_that_of_all_codes():
    """Bit by bit as over all 2^C codes, whose probabilities are a softmax of distances."""
    latent = vl.BinarySphericalQuantizer((4,), commitment=0.0, entropy=1.0)
    features = torch.randn(7, 4, generator=seeded())
    rows = F.normalize(features, dim=1)
    corners = latent.embed(torch.arange(16)[:, None])
    p = (4.0 * 4 / 2 * rows @ corners.T).softmax(1)
    of_images = torch.special.entr(p).sum(1)
    bits = (p[:, :, None] * (corners > 0)).sum(1).mean(0)
    of_average = (torch.special.entr(bits) + torch.special.entr(1 - bits)).sum()
    torch.testing.assert_close(latent.draw(features, no_noise(features)).penalty, of_images - of_average)


def test_many_bits_cost_memory_of_bits():
    latent = vl.BinarySphericalQuantizer((48, 2, 2))
    features = torch.randn(3, 48, 2, 2, requires_grad=True)
    draw = latent.draw(features, no_noise(features))
    draw.penalty.sum().backward()
    assert latent.num_codes == 2**48
    assert torch.equal(latent.embed(draw.codes), draw.z)
    torch.testing.assert_close(draw.kl.sum(1), torch.full((3,), 4 * 48 * math.log(2)))


def test_margins_say_how_near_a_code_is_to_another(latent):
    """What rounding may decide: zero where two codes are equally near, never below."""
    features = features_for(latent, 50)
    margins = latent.margins(features)
    assert margins.shape == (50, latent.num_positions)
    assert (margins >= 0).all()
    with torch.no_grad():
        moved = latent.encoded(features + 1e-3 * torch.randn_like(features))
    changed = margins[moved != latent.encoded(features)]
    assert (changed < 0.2).all()


def test_margins_in_closed_form():
    rows = torch.randn(20, 3)
    book = vl.VectorQuantizer((3,), 5)
    two = torch.cdist(rows, book.codebooks[0].weight).square().topk(2, largest=False).values
    torch.testing.assert_close(book.margins(rows)[:, 0], two[:, 1] - two[:, 0])
    torch.testing.assert_close(vl.BinarySphericalQuantizer((3,)).margins(rows)[:, 0], rows.abs().amin(1))
    edge = torch.atanh(torch.tensor([0.5 / 1.001]))  # half way from level 0 to level 1 of three
    torch.testing.assert_close(
        vl.FiniteScalarQuantizer((1,), (3,)).margins(edge[None]), torch.zeros(1, 1), atol=1e-6, rtol=0
    )


class Grey(nn.Module):
    """An encoder of images that are all of one grey."""

    def forward(self, x):
        return x.mean((2, 3))


class Pixels(nn.Module):
    def forward(self, z):
        return (3 * z - 1)[:, :, None, None].expand(-1, 1, 2, 2)


def test_the_bound_of_a_discrete_model_in_closed_form():
    """log p(x) >= log p(x|c) + log p(c), and the sum over c of p(x, c) is log p(x) of a model with three codes."""
    prior = vl.CodeTable(3, 1)
    with torch.no_grad():
        prior.logits.copy_(torch.tensor([[0.5, 0.3, 0.2]]).log())
    latent = vl.FiniteScalarQuantizer((1,), (3,), prior)
    model = vl.VAE(Grey(), Pixels(), latent=latent, image_shape=(1, 2, 2)).eval()
    x = torch.tensor([0.0, 0.2, 1.0])[:, None, None, None].expand(3, 1, 2, 2)
    terms = vl.Elbo()(model, x)
    z = [0.0, 0.0, 1.0]  # tanh(0.2) and tanh(1.0) rounded
    for i, (code, pixel) in enumerate(zip((1, 1, 2), (0.0, 0.2, 1.0), strict=True)):
        logit = 3 * z[i] - 1
        distortion = -4 * (pixel * logit - math.log1p(math.exp(logit)))
        rate = -math.log((0.5, 0.3, 0.2)[code])
        assert terms.reconstruction[i].item() == pytest.approx(distortion, abs=1e-6)
        assert terms.kl[i].item() == pytest.approx(rate, abs=1e-6)
    joint = torch.stack(
        [model.likelihood.log_prob(x, model.decode(latent.embed(torch.full((3, 1), c)))) for c in range(3)]
    )
    log_p = torch.logsumexp(joint + prior.logits.log_softmax(1).T, 0)
    assert (log_p >= -(terms.reconstruction + terms.kl)).all()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_saved_and_loaded(name, tmp_path):
    torch.manual_seed(0)
    latent = QUANTIZERS[name]()
    vae, x = of_codes(latent)
    vl.Elbo()(vae, x)
    if hasattr(latent, "after_step"):
        latent.after_step(generator=seeded())
    vl.save(vae, tmp_path / "model")
    loaded = vl.load(tmp_path / "model")
    assert torch.equal(loaded.encode(x), vae.eval().encode(x))
    assert torch.equal(loaded.reconstruct(x), vae.reconstruct(x))
    assert torch.equal(loaded.sample(3, seed=0), vae.sample(3, seed=0))
    for argument in ("commitment", "decay", "gradient", "cosine", "depth", "levels", "restart", "entropy"):
        assert getattr(loaded.latent, argument, None) == getattr(latent, argument, None)


def test_a_prior_is_trained_jointly_or_replaced():
    latent = vl.FiniteScalarQuantizer((2, 2, 2), (3, 3), vl.CodeTable(9, 4))
    vae, x = of_codes(latent)
    terms = vl.Elbo()(vae, x)
    terms.loss.backward()
    assert latent.prior.logits.grad.abs().sum() > 0
    with torch.no_grad():
        latent.prior.logits[:, vae.encode(x)[0]] += 2.0
    draw = vae.draw(vae.observe(x))
    torch.testing.assert_close(draw.kl, -latent.prior.log_prob(draw.codes))
    vae.prior = vl.UniformCodes(9, 4)
    torch.testing.assert_close(vae.draw(vae.observe(x)).kl, torch.full((24, 4), math.log(9)))


def test_a_prior_of_other_codes_is_refused_whenever_it_comes():
    vae, _ = of_codes(vl.FiniteScalarQuantizer((2, 2, 2), (3, 3)))
    with pytest.raises(ValueError, match="`prior.num_positions` must be 4, got 5"):
        vae.prior = vl.CodeTable(9, 5)
    assert vae.prior.num_positions == 4


class Shifted(nn.Module):
    """A prior of codes that takes a condition."""

    num_codes, num_positions = 9, 4

    def __init__(self, shift=None):
        super().__init__()
        self.shift = shift

    def given(self, embedding):
        return Shifted(embedding)

    def log_prob(self, codes):
        return -self.shift[:, :1].expand(-1, 4) * 1.0

    def from_noise(self, noise):
        return (self.shift[:, :1] + 0 * noise).long()


def test_a_condition_is_bound_to_the_prior_alone():
    latent = vl.FiniteScalarQuantizer((2, 2, 2), (3, 3), Shifted())
    bound = latent.given(torch.tensor([[2.0], [5.0]]))
    draw = bound.draw(torch.randn(2, 2, 2, 2), torch.empty(2, 0))
    assert torch.equal(draw.kl[:, 0], torch.tensor([2.0, 5.0]))
    assert torch.equal(bound.log_prob(draw.z), torch.tensor([-8.0, -20.0]))
    assert torch.equal(bound.codes_of(bound.from_noise(torch.zeros(2, 4)))[:, 0], torch.tensor([2, 5]))
    assert bound.num_positions == 4
    plain = QUANTIZERS["vector"]()
    assert plain.given(torch.zeros(1, 3)) is plain
    gaussian = vl.GaussianLatent((2,))
    assert gaussian.given(torch.zeros(1, 3)) is gaussian


def wrong(make, *arguments, **options):
    return lambda: make(*arguments, **options)


VQ, RQ, FSQ, BSQ = vl.VectorQuantizer, vl.ResidualQuantizer, vl.FiniteScalarQuantizer, vl.BinarySphericalQuantizer
WRONG = [
    (wrong(VQ, (3, 2), 16), ValueError, r"`latent_shape` must be \(D,\) or \(C, h, w\), got \(3, 2\)"),
    (wrong(VQ, (3,), 1), ValueError, "`num_codes` must be >= 2, got 1"),
    (wrong(VQ, (3,), 2, commitment=-1.0), ValueError, "`commitment` must be >= 0, got -1"),
    (wrong(VQ, (3,), 2, decay=1.5), ValueError, "`decay` must be >= 0 and <= 1, got 1.5"),
    (wrong(VQ, (3,), 2, restart=2.0), ValueError, "`restart` must be >= 0 and <= 1, got 2.0"),
    (wrong(VQ, (3,), 2, gradient="ste"), ValueError, "`gradient` must be one of 'straight_through', 'rotation'"),
    (wrong(VQ, (3,), 2, cosine=1), TypeError, "`cosine` must be True or False, got 1"),
    (wrong(VQ, (3,), 2, prior=3), TypeError, "`prior` must be an nn.Module"),
    (wrong(VQ, (3,), 2, vl.UniformCodes(4, 1)), ValueError, "`prior.num_codes` must be 2, got 4"),
    (wrong(VQ, (3, 2, 2), 2, vl.UniformCodes(2, 1)), ValueError, "`prior.num_positions` must be 4, got 1"),
    (wrong(RQ, (3,), 2, depth=0), ValueError, "`depth` must be >= 1, got 0"),
    (wrong(FSQ, (3,), (4, 4)), ValueError, r"`levels` must have 3 entries, got \(4, 4\)"),
    (wrong(FSQ, (2,), (4, 1)), ValueError, r"`levels\[1\]` must be >= 2, got 1"),
    (wrong(FSQ, (1,), (1001,)), ValueError, r"`levels\[0\]` must be <= 1000, got 1001"),
    (wrong(FSQ, (6,), (1000,) * 6), ValueError, "A position may have 4503599627370496 codes"),
    (wrong(BSQ, (53,)), ValueError, "A position may have 4503599627370496 codes, got 9007199254740992"),
    (wrong(BSQ, (3,), entropy=-0.1), ValueError, "`entropy` must be >= 0, got -0.1"),
    (lambda: BSQ((3,)).embed(torch.tensor([[8]])), ValueError, r"`codes` must have values in \[0, 8\), got \[8, 8\]"),
    (lambda: BSQ((3,)).embed(torch.tensor([[1.0]])), TypeError, "`codes` must be int64"),
    (
        lambda: vl.ResidualQuantizer((3,), 4, 2).codes_of(torch.zeros(2, 3)),
        ValueError,
        "`depth` must be 1 for codes of `z`, .* got 2",
    ),
    (
        lambda: vl.ResidualQuantizer((3,), 4, 2, vl.CodeTable(4, 2)).log_prob(torch.zeros(2, 3)),
        ValueError,
        "`depth` must be 1 for codes of `z`, .* got 2",
    ),
    (lambda: BSQ((3,)).codes_of(torch.zeros(2, 4)), ValueError, r"`z` must have shape \(B, 3\), got \(2, 4\)"),
]


@pytest.mark.parametrize(("call", "error", "match"), WRONG)
def test_wrong_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vector by gradients", "residual", "finite scalar", "binary spherical"])
def test_a_compiled_step_is_the_same(name):
    """One graph without a break; the first step, of which k-means is, costs one compilation more."""
    weights = []
    for wrap in (lambda function: function, lambda function: torch.compile(function, fullgraph=True)):
        torch._dynamo.reset()
        torch.manual_seed(0)
        vae, x = of_codes(QUANTIZERS[name]())
        optimizer, objective = torch.optim.SGD(vae.parameters(), 1e-3), vl.Elbo()
        loss = wrap(lambda batch, vae=vae, objective=objective: objective(vae, batch).loss)
        for number in range(4):
            optimizer.zero_grad()
            for piece in x.chunk(3):
                loss(piece).backward()
            optimizer.step()
            if hasattr(vae.latent, "after_step"):
                vae.latent.after_step(generator=seeded(number))
        weights.append(vae.state_dict())
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-4, atol=1e-5)
