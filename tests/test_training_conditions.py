"""The Trainer with a condition: each batch's reaches the model, whatever holds the images."""

import pytest
import torch
from PIL import Image
from runs import PosteriorMean, Watch, fit, images_of, tiny, weights
from torch.utils.data import DataLoader, Subset, TensorDataset

import vaelib as vl

NAMES = ("cross", "disc", "square")  # as folders are sorted


def labelled(count=40):
    """Images whose first pixel is a third of their label."""
    x, labels = images_of(count) / 255, torch.arange(count) % 3
    x[:, 0, 0, 0] = labels / 3
    return x, labels


def conditional(dropout=0.0, **kwargs):
    return tiny(hidden_channels=(4,), condition=vl.Labels(3, dropout, NAMES), **kwargs)


class Elbo(vl.Elbo):
    """Notes how many images were seen with a condition of their own."""

    def __init__(self):
        super().__init__()
        self.right, self.wrong = 0, 0

    def forward(self, model, x, *, step=0, generator=None):
        fits = model.embedding.argmax(1) == (3 * x[:, 0, 0, 0]).round().long()
        self.right, self.wrong = self.right + int(fits.sum()), self.wrong + int((~fits).sum())
        return super().forward(model, x, step=step, generator=generator)


X, LABELS = labelled()
PAIRS = TensorDataset(X, LABELS)
DICTS = [{"image": X[start : start + 10], "label": LABELS[start : start + 10].numpy()} for start in (0, 10, 20, 30)]
HOLDERS = {
    "set": (vl.data.ImageDataset(X, condition=LABELS), {}),
    "set, accumulated": (vl.data.ImageDataset(X, condition=LABELS), {"accumulate": 3}),
    "part of a set": (vl.data.ImageDataset(torch.cat([X, X]), condition=torch.cat([LABELS] * 2)).subset(slice(40)), {}),
    "TensorDataset": (PAIRS, {}),
    "Subset": (Subset(TensorDataset(torch.cat([1 - X, X]), torch.cat([LABELS, LABELS])), range(40, 80)), {}),
    "loader of pairs": (DataLoader(PAIRS, 10, shuffle=True), {}),
    "loader of a set": (DataLoader(vl.data.ImageDataset(X, condition=LABELS), 10, shuffle=True), {}),
    "dicts": (DICTS, {}),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_each_image_comes_with_its_own_condition(name):
    data, options = HOLDERS[name]
    objective = Elbo()
    fit(conditional(), data, data, objective=objective, **options)
    assert (objective.right, objective.wrong) == (2 * 2 * 40, 0)  # in training and validation, two epochs


def test_each_image_of_a_folder_comes_with_its_class_from_disk(tmp_path):
    for index, (image, label) in enumerate(zip(X, LABELS.tolist(), strict=True)):
        (tmp_path / NAMES[label]).mkdir(exist_ok=True)
        pixels = (255 * image[0]).round().byte().numpy()
        Image.fromarray(pixels).save(tmp_path / NAMES[label] / f"{index}.png")
    data, objective = vl.data.stream(tmp_path, "all", image_size=8, condition="labels", workers=0), Elbo()
    fit(conditional(), data, data, objective=objective)
    assert (objective.right, objective.wrong) == (2 * 2 * 40, 0)
    with pytest.raises(
        ValueError, match="`train` must have the classes of the model, a, b, c, got cross, disc, square"
    ):
        fit(tiny(condition=vl.Labels(3, names=("a", "b", "c"))), data)


def test_sets_and_pairs_train_alike():
    models = [conditional(dropout=0.3) for _ in range(2)]
    for model, name in zip(models, ("set", "TensorDataset"), strict=True):
        fit(model, HOLDERS[name][0])
    assert torch.equal(*map(weights, models))


WRONG = [
    (conditional, X, r"`train` must have a condition for a model that takes one, .*condition=\"labels\""),
    (conditional, [X], "`train` must have a condition for a model that takes one"),
    (conditional, DataLoader(X, 10), "`train` must have a condition for a model that takes one"),
    (tiny, HOLDERS["set"][0], r"`train` must have no condition for a model without one: build the model with"),
    (conditional, TensorDataset(X, LABELS + 1), r"`train`, image 2: `condition` must be in \[0, 3\), .*got 3"),
    (conditional, [(X, LABELS + 1)], r"`condition` must be in \[0, 3\)"),
]


def test_a_condition_that_is_missing_or_wrong_is_refused_before_the_first_step():
    for make, data, match in WRONG:
        with pytest.raises(ValueError, match=match):
            fit(make(), data, None, Watch(lambda run: pytest.fail("a step was made")))


class Foreign(torch.nn.Module):
    """A model of one's own, with something else of that name."""

    def __init__(self):
        super().__init__()
        self.vae, self.condition = tiny(), torch.nn.Identity()


def test_a_pair_for_a_model_without_a_condition_is_an_image():
    assert fit(tiny(), PAIRS)[-1].num_images == 40
    objective = lambda model, x, step: vl.Elbo()(model.vae, x, step=step)  # noqa: E731
    assert fit(Foreign(), PAIRS, objective=objective)[-1].num_images == 40


def test_validation_is_given_the_conditions():
    model, data = conditional(norm="none"), HOLDERS["set"][0]
    record = fit(model, data, data, objective=PosteriorMean(), max_epochs=1, learning_rate=1e-30)[0]
    with torch.no_grad():
        expected = PosteriorMean()(model.given(LABELS), X)
        others = PosteriorMean()(model.given((LABELS + 1) % 3), X)
    assert record.val.loss == pytest.approx(expected.loss.item(), rel=1e-5)
    assert record.val.loss != pytest.approx(others.loss.item(), rel=1e-5)


def test_the_null_embedding_is_trained():
    model = conditional(dropout=0.5)
    fit(model, PAIRS)
    assert model.condition.null.abs().min() > 0
    assert model.given(None).sample(2).shape == (2, 1, 8, 8)


def test_images_of_a_run_are_drawn_with_conditions_and_say_which(tmp_path, monkeypatch):
    grids, pairs = {}, []

    def noted_grid(images, path, *, columns=8, captions=()):
        grids[path.parent.name] = (images, columns, list(captions))

    monkeypatch.setattr("vaelib.plots.save_grid", noted_grid)
    monkeypatch.setattr("vaelib.plots.save_pairs", lambda x, made, path: pairs.append(made))
    monkeypatch.setattr("vaelib.plots.save_curves", lambda *_: None)
    model = conditional()
    fit(model, PAIRS, max_epochs=1, output_dir=tmp_path / "labels")
    samples, columns, captions = grids["samples"]
    assert (columns, captions) == (8, [*NAMES])
    torch.testing.assert_close(samples, model.sample(24, condition=torch.arange(3).repeat_interleave(8), seed=0))
    torch.testing.assert_close(pairs[0], model.reconstruct(X, condition=LABELS))
    assert grids["traversals"][0].shape == (14, 1, 8, 8)

    factors = torch.stack([torch.arange(40) / 39, torch.full((40,), 0.25)], dim=1)
    model = tiny(hidden_channels=(4,), condition=vl.Vector(2))
    fit(model, vl.data.ImageDataset(X, condition=factors), max_epochs=1, output_dir=tmp_path / "factors")
    samples, _, captions = grids["samples"]
    assert captions[:2] == ["0 0.25", "0.026 0.25"] and len(captions) == 8
    torch.testing.assert_close(samples, model.sample(64, condition=factors[:8].repeat_interleave(8, 0), seed=0))


def test_other_conditions_are_other_images(tmp_path):
    data = HOLDERS["set"][0]
    fit(conditional(), data, output_dir=tmp_path)
    other = vl.data.ImageDataset(X, condition=(LABELS + 1) % 3)
    with pytest.raises(ValueError, match="`train` must be the images that .* got others: condition .* there, .* here"):
        fit(conditional(), other, output_dir=tmp_path, resume=True)
    assert len(fit(conditional(), data, output_dir=tmp_path, resume=True)) == 2
