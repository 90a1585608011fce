import sys

import numpy as np
import pytest
import torch
from PIL import Image

from vaelib import plots
from vaelib.errors import MissingExtraError


def size(path):
    with Image.open(path) as image:
        return image.size


def test_grid_of_any_channels_and_range(tmp_path):
    for channels in (1, 2, 3, 5):
        plots.save_grid(3 * torch.randn(10, channels, 8, 6), tmp_path / "grid.png", columns=5)
        assert size(tmp_path / "grid.png") == (5 * 8 + 2, 2 * 10 + 2)
    with pytest.raises(ValueError, match=r"`images` must be finite, got values in \[nan, nan\]"):  # not a black square
        plots.save_grid(torch.full((1, 1, 4, 4), float("nan")), tmp_path / "no.png")
    with pytest.raises(ValueError, match=r"`images` must have shape \(N, C, H, W\)"):
        plots.save_grid(torch.zeros(1, 8, 8), tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


def test_pairs_stand_above_each_other(tmp_path):
    plots.save_pairs(torch.ones(4, 1, 4, 4), torch.zeros(4, 1, 4, 4), tmp_path / "pairs.png", columns=4)
    rows = np.asarray(Image.open(tmp_path / "pairs.png").convert("L"))
    assert rows[3, 3] == 255
    assert rows[9, 3] == 0
    plots.save_pairs(torch.ones(3, 1, 4, 4), torch.zeros(3, 1, 4, 4), tmp_path / "pairs.png", columns=2)
    assert size(tmp_path / "pairs.png") == (2 * 6 + 2, 4 * 6 + 2)
    with pytest.raises(ValueError, match="`reconstructions` must have shape"):
        plots.save_pairs(torch.ones(3, 1, 4, 4), torch.ones(3, 1, 4, 5), tmp_path / "no.png")


def test_curves_and_embeddings(tmp_path):
    pytest.importorskip("matplotlib")
    plots.save_curves({"train": [3.0, 2.0], "val": [4.0, 3.0]}, tmp_path / "curves.png")
    for dims in (1, 2, 7):
        plots.save_embedding(torch.randn(30, dims), torch.arange(30) % 3, tmp_path / "embedding.png")
    plots.save_embedding(torch.randn(30, 2), None, tmp_path / "plain.png")
    points = torch.randn(30, 2)
    plots.save_embedding(points, torch.arange(30) % 2, tmp_path / "numbers.png")
    plots.save_embedding(points, torch.arange(30) % 2, tmp_path / "names.png", class_names=("cat", "dog"))
    assert (tmp_path / "numbers.png").read_bytes() != (tmp_path / "names.png").read_bytes()
    assert size(tmp_path / "curves.png")[0] == 960
    with pytest.raises(ValueError, match=r"`points` must have shape \(N, D\)"):
        plots.save_embedding(torch.randn(30), None, tmp_path / "no.png")


def test_the_plane_is_that_of_the_largest_variance():
    points = torch.randn(500, 4) * torch.tensor([1.0, 9.0, 0.1, 3.0]) + 5
    plane = plots.principal_plane(points)
    centred = points - points.mean(0)
    for axis, column in ((0, 1), (1, 3)):
        correlation = torch.corrcoef(torch.stack([plane[:, axis].float(), centred[:, column]]))[0, 1]
        assert correlation.abs() > 0.99


def test_wide_embeddings_are_quick_and_draw_nothing():
    points = torch.randn(40, 20_000)
    before = torch.get_rng_state()
    assert torch.equal(plots.principal_plane(points), plots.principal_plane(points))
    assert torch.equal(before, torch.get_rng_state())


def test_a_missing_matplotlib_is_named(monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingExtraError, match=r"curves and embeddings needs an optional .* pip install 'vaelib\[plots\]'"
    ):
        plots.save_curves({"a": [1.0]}, "x.png")
