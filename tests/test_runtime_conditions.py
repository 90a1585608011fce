"""Bundles with a condition or with codes, written by hand, against numpy."""

import math

import hand_made
import numpy as np
import pytest
import torch

from vaelib.errors import ModelFileError
from vaelib.priors.codes import codes_at as codes_of_torch
from vaelib.runtime import OnnxVAE, Plan
from vaelib.runtime.codes import codes_at, uniform_codes
from vaelib.runtime.inputs import checked_condition

IMAGES = np.random.default_rng(1).random((40, 1, 2, 2), dtype=np.float32)
Z = np.random.default_rng(2).standard_normal((40, 2), dtype=np.float32)


@pytest.fixture(scope="module", params=["labels", "vector"])
def model(request, tmp_path_factory):
    make = hand_made.conditional if request.param == "labels" else hand_made.of_a_vector
    return OnnxVAE(make(tmp_path_factory.mktemp("hand") / "bundle"), threads=2)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return OnnxVAE(hand_made.conditional(tmp_path_factory.mktemp("hand") / "bundle"), threads=2)


@pytest.fixture(scope="module")
def vector(tmp_path_factory):
    return OnnxVAE(hand_made.of_a_vector(tmp_path_factory.mktemp("hand") / "bundle"), threads=2)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    return OnnxVAE(hand_made.quantised(tmp_path_factory.mktemp("hand") / "bundle"), threads=2)


@pytest.fixture(scope="module")
def uniform(tmp_path_factory):
    return OnnxVAE(hand_made.quantised(tmp_path_factory.mktemp("hand") / "bundle", is_uniform=True), threads=2)


def decoded(z, rows):
    pixels = np.concatenate([z, rows], axis=1) @ hand_made.PIXELS
    return 1 / (1 + np.exp(-pixels.reshape(-1, 1, 2, 2)))


def encoded(images, rows):
    return np.concatenate([images.reshape(-1, 4), rows], axis=1) @ hand_made.MU


def test_each_image_has_its_own_condition(model):
    """In one call and in cut ones; labels are one-hot here, so a vector of one 1 gives the same."""
    labels = np.arange(40) % 3
    rows = np.eye(3, dtype=np.float32)[labels]
    condition = labels if model.metadata["condition"]["kind"] == "labels" else rows
    for part in ("encoder", "decoder"):
        model._graphs.engine(part).fix(Plan(chunk=7, workers=2))
    mu = encoded(IMAGES, rows)
    given = model.given(condition=condition)
    np.testing.assert_allclose(model.encode(IMAGES, condition=condition)[0], mu, atol=1e-5)
    np.testing.assert_allclose(given.embed(IMAGES), mu, atol=1e-5)
    np.testing.assert_allclose(model.decode(Z, condition=condition), decoded(Z, rows), atol=1e-5)
    np.testing.assert_allclose(given.reconstruct(IMAGES), decoded(mu, rows), atol=1e-5)
    assert np.array_equal(given.reconstruct(IMAGES), model.reconstruct(IMAGES, condition=condition))
    assert np.array_equal(
        given.decode(Z),
        np.concatenate(
            [given._given(condition[i : i + 1]).ask("decoder", "z", Z[i : i + 1], "z", ("mean",))[0] for i in range(40)]
        ),
    )


def test_samples_have_their_condition(labelled):
    noise = np.random.default_rng(3).standard_normal((6, 2), np.float32)
    for condition, rows in ((2, [2] * 6), ([0, 1], [0, 1] * 3), (["owl", 0, "dog"], [2, 0, 1] * 2)):
        expected = decoded(noise, np.eye(3)[rows])
        np.testing.assert_allclose(labelled.sample(6, condition=condition, seed=3), expected, atol=1e-5)
        assert np.array_equal(
            labelled.sample(6, condition=condition, seed=3), labelled.given(labels=condition).sample(6, seed=3)
        )
    assert labelled.sample(0, condition=1).shape == (0, 1, 2, 2)
    walk = labelled.given(labels="dog").interpolate(Z[:2], Z[2:4], 3)
    np.testing.assert_allclose(walk[:, 0], labelled.decode(Z[:2], condition=1), atol=1e-6)
    assert labelled.given(labels=[0, 1]).traverse(Z[:2], [0], [0.0, 1.0]).shape == (2, 1, 2, 1, 2, 2)


def test_a_vector_of_one_number_is_written_as_torch_takes_it():
    described = {"kind": "vector", "size": 1}
    for value in (0.5, [0.5], [[0.5]]):
        assert checked_condition(described, value).tolist() == [[0.5]]


def test_scores_have_their_condition(labelled):
    noise = np.random.default_rng(0).standard_normal((40, 2), dtype=np.float32)
    found = labelled.given(labels=2).score(IMAGES)
    np.testing.assert_allclose(found, -(2 + noise.sum(1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "call", "error", "match"),
    [
        ("labelled", lambda m: m.sample(1), ValueError, "takes a condition: pass `condition=`, or call `model.given"),
        ("labelled", lambda m: m.encode(IMAGES), ValueError, "The model takes a condition"),
        ("labelled", lambda m: m.score(IMAGES), ValueError, "The model takes a condition"),
        ("labelled", lambda m: m.given(), ValueError, "Either `labels` or `condition` must be given, got none"),
        ("labelled", lambda m: m.given(labels=1, condition=1), ValueError, "must be given, got both"),
        ("labelled", lambda m: m.given(labels=3), ValueError, r"`labels` must be labels in \[0, 3\), got 3\."),
        ("labelled", lambda m: m.sample(1, condition=-1), ValueError, r"`condition` must be labels in .*, got -1"),
        ("labelled", lambda m: m.given(labels="cow"), ValueError, "`labels` must be among cat, dog, owl, got 'cow'"),
        ("labelled", lambda m: m.given(labels=1.0), TypeError, "`labels` must be whole numbers or names, got 1.0"),
        ("labelled", lambda m: m.given(labels=True), TypeError, "`labels` must be whole numbers or names, got True"),
        ("labelled", lambda m: m.given(labels=[[1]]), ValueError, r"`labels` must have shape \(B\), got"),
        ("labelled", lambda m: m.given(labels=[0, 1, 2]).decode(Z), ValueError, "each of the 40 images, got 3"),
        ("labelled", lambda m: m.given(labels=[0, 1]).encode(IMAGES), ValueError, "each of the 40 images, got 2"),
        ("labelled", lambda m: m.given(labels=[0, 1]).score(IMAGES), ValueError, "each of the 40 images, got 2"),
        ("labelled", lambda m: m.given(labels=[]).decode(Z), TypeError, "`labels` must be whole numbers or names"),
        ("nameless", lambda m: m.given(labels="cat"), ValueError, "labels by number: the bundle has no names .* 'cat'"),
        ("nameless", lambda m: m.given(labels=0.5), TypeError, "`labels` must be whole numbers, got 0.5"),
        ("vector", lambda m: m.given(labels=1), ValueError, "`labels` must be None: the model's condition is a vector"),
        ("vector", lambda m: m.given(condition=[1.0]), ValueError, r"`condition` must have shape \(B, 3\), got \(1"),
        ("vector", lambda m: m.sample(1, condition=7), ValueError, r"`condition` must have shape \(B, 3\), got \(\)"),
        ("vector", lambda m: m.given(condition=[1, 2, np.nan]), ValueError, "`condition` must be finite"),
        ("vector", lambda m: m.given(condition=["a"] * 3), TypeError, "`condition` must be numbers, got"),
        ("quantised", lambda m: m.given(labels=1), ValueError, "`labels` must be None: the model takes no condition"),
        ("quantised", lambda m: m.decode(Z, condition=1), ValueError, "`condition` must be None: .* got 1"),
        ("quantised", lambda m: m.decode_codes(np.full((1, 4), 5)), ValueError, r"must have values in \[0, 5\)"),
        ("quantised", lambda m: m.embed_codes(np.full((1, 4), -1)), ValueError, r"in \[0, 5\), got \[-1, -1\]"),
        ("quantised", lambda m: m.decode_codes(np.zeros((1, 3), int)), ValueError, r"`codes` must have shape \(B, 4\)"),
        ("quantised", lambda m: m.decode_codes(np.zeros((1, 4))), TypeError, "whole numbers, got dtype float64"),
        ("quantised", lambda m: m.decode_codes([[1, 2, 3, 4]]), TypeError, "must be a numpy array, got list"),
        ("quantised", lambda m: m.from_noise(np.zeros((1, 3), np.float32)), ValueError, r"must have shape \(B, 4\)"),
        ("quantised", lambda m: m.from_noise(np.full((1, 4), np.inf)), ValueError, "`noise` must be finite"),
        ("quantised", lambda m: m.elbo_terms(IMAGES, IMAGES), ValueError, "`noise` must be None: a draw"),
        ("labelled", lambda m: m.encode_codes(IMAGES), ValueError, "has no codes: its latent is not quantised"),
        ("labelled", lambda m: m.decode_codes(np.zeros((1, 4), int), condition=1), ValueError, "has no codes"),
    ],
)  # fmt: skip
def test_wrong_conditions_and_codes(request, tmp_path, kind, call, error, match):
    if kind == "nameless":
        model = OnnxVAE(hand_made.conditional(tmp_path / "bundle", names=None))
    else:
        model = request.getfixturevalue(kind)
    with pytest.raises(error, match=match):
        call(model)


def test_codes_there_and_back(quantised):
    """The same for a batch and for each image alone."""
    nearest = np.abs(IMAGES.reshape(40, 4, 1) - hand_made.CODEBOOK[:, 0]).argmin(2)
    codes = quantised.encode_codes(IMAGES)
    assert codes.dtype == np.int64 and np.array_equal(codes, nearest)
    assert np.array_equal(codes, np.concatenate([quantised.encode_codes(image[None]) for image in IMAGES]))
    assert np.array_equal(quantised.encode(IMAGES), codes)
    images = quantised.decode_codes(codes)
    np.testing.assert_array_equal(images.reshape(40, 4), hand_made.CODEBOOK[codes, 0])
    assert np.array_equal(images, quantised.reconstruct(IMAGES))
    assert np.array_equal(quantised.embed(IMAGES), quantised.embed_codes(codes.astype(np.int32)))
    assert quantised.decode_codes(codes[:0]).shape == (0, 1, 2, 2)
    np.testing.assert_allclose(quantised.score(IMAGES, num_samples=9), -2 * IMAGES.sum((1, 2, 3)), rtol=1e-6)


def test_a_code_is_drawn_after_the_other(quantised):
    noise = np.random.default_rng(5).standard_normal((30, 4), np.float32)
    codes = np.zeros((30, 4), np.int64)
    for position in range(4):
        logits = hand_made.TABLE[position] + codes[:, :position] @ hand_made.STEPS[:position]
        drawn = codes_of_torch(torch.from_numpy(logits), torch.from_numpy(noise[:, position : position + 1]))
        codes[:, position] = drawn[:, 0]
    assert len(np.unique(codes)) == 5
    assert np.array_equal(quantised.sample(30, seed=5), quantised.decode_codes(codes))
    assert np.array_equal(quantised.from_noise(noise), quantised.embed_codes(codes))
    assert np.array_equal(quantised.sample(3, seed=5), quantised.sample(30, seed=5)[:3])
    assert quantised.sample(0).shape == (0, 1, 2, 2)


def test_uniform_codes_need_no_graph(uniform):
    noise = np.random.default_rng(5).standard_normal((30, 4), np.float32)
    codes = np.floor(5 * torch.special.ndtr(torch.from_numpy(noise).double()).numpy()).astype(int)
    assert np.array_equal(uniform.sample(30, seed=5), uniform.decode_codes(codes))


@pytest.mark.parametrize("num_codes", [2, 7, 100])
def test_the_inverse_distribution_is_torchs(num_codes):
    """10,000 codes of flat, steep and one-sided tables, at noise of all sizes."""
    generator = np.random.default_rng(num_codes)
    scale = np.repeat([0.0, 1.0, 100.0, 1e4], 2500)[:, None]
    logits = (scale * generator.standard_normal((10_000, num_codes))).astype(np.float32)
    noise = (generator.standard_normal(10_000) * np.tile([1.0, 1.0, 10.0, 1e30], 2500)).astype(np.float32)
    expected = codes_of_torch(torch.from_numpy(logits), torch.from_numpy(noise[:, None]))[:, 0].numpy()
    assert np.array_equal(codes_at(logits, noise), expected)
    flat = codes_of_torch(torch.zeros(1, num_codes), torch.from_numpy(noise[None]))[0].numpy()
    assert np.array_equal(uniform_codes(noise, num_codes), flat)


def test_the_largest_codebook():
    assert uniform_codes(np.array([-40.0, 0.0, 40.0]), 2**36).tolist() == [0, 2**35, 2**36 - 1]
    assert math.isclose(uniform_codes(np.array([1.0]), 2**36)[0] / 2**36, 0.8413447460685429, abs_tol=1e-10)


def broken(directory, model=(), graphs=()):
    """A bundle of labels whose manifest says something else."""
    quantised = hand_made.QUANTISED
    hand_made.write(
        directory, {part: hand_made.CONDITIONAL[part] for part in ("encoder", "decoder")} if not graphs else quantised,
        {"latent_shape": [1, 2, 2] if graphs else [2]} | dict(model), dict(graphs),
    )  # fmt: skip
    return OnnxVAE(directory)


CODES = {"num_codes": 5, "depth": 1, "shape": [2, 2]}
_NO_PRIOR = {"prior": hand_made.UNIFORM}


@pytest.mark.parametrize(
    ("model", "graphs", "match"),
    [
        ({}, {}, "the encoder has `condition`, of which the model says nothing"),
        ({"condition": hand_made.VECTOR}, {}, r"`condition` of the encoder must be float32 \('B', 3\) .* got int64"),
        ({"condition": []}, {}, r"its `condition` is \[\]"),
        ({"condition": {"kind": "text"}}, {}, "its `condition` is {'kind': 'text'}"),
        ({"condition": {"kind": "vector", "size": 0}}, {}, "its `condition` is"),
        ({"condition": hand_made.LABELS | {"num_classes": True}}, {}, "its `condition` is"),
        ({"condition": hand_made.LABELS | {"names": ["a"]}}, {}, "its `condition` is"),
        ({"condition": hand_made.LABELS | {"names": [1, 2, 3]}}, {}, "its `condition` is"),
        ({}, _NO_PRIOR, "the encoder has `codes`, of which the model says nothing"),
        ({"codes": CODES | {"num_codes": 4}}, _NO_PRIOR, r"`logits` of the next must be float32 \('B', 4\)"),
        ({"codes": CODES | {"depth": 2}}, _NO_PRIOR, r"`codes` of the encoder must be int64 \('B', 8\)"),
        ({"codes": CODES | {"shape": [4]}}, _NO_PRIOR, r"codes of shape \[4\] in a latent of \[1, 2, 2\]"),
        ({"codes": CODES | {"shape": None}}, _NO_PRIOR, "its `codes` is"),
        ({"codes": CODES | {"num_codes": 0}}, _NO_PRIOR, "its `codes` is"),
        ({"codes": 5}, _NO_PRIOR, "its `codes` is 5"),
        ({"codes": CODES}, {"prior": hand_made.UNIFORM | {"inputs": hand_made.UNIFORM["outputs"]}}, "or as many codes"),
    ],
)
def test_what_a_manifest_may_not_say(tmp_path, model, graphs, match):
    with pytest.raises(ModelFileError, match=match):
        broken(tmp_path / "bundle", model, graphs)


def test_graphs_that_break_their_promise(tmp_path):
    """Of a codebook that is too small, or with logits that are not finite: errors, as those of any other graph."""
    inputs, outputs, body, constants = hand_made.QUANTISED["codes"]
    graphs = hand_made.QUANTISED | {"codes": (inputs, outputs, body, constants | {"codebook": hand_made.CODEBOOK[:3]})}
    inputs, outputs, body, constants = graphs["next"]
    graphs["next"] = inputs, outputs, body, constants | {"table": np.full((4, 5), np.nan, np.float32)}
    model = OnnxVAE(hand_made.write(tmp_path / "bundle", graphs, {"latent_shape": [1, 2, 2], "codes": CODES}))
    with pytest.raises(ModelFileError, match=r"onnxruntime cannot run codes\.onnx"):
        model.decode_codes(np.full((1, 4), 4))
    with pytest.raises(ValueError, match=r"next\.onnx gives values that are not finite"):
        model.sample(1)
