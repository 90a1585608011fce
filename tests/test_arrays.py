"""Arrays and labels: ranges, axes, splits and classes of ``.npy``, ``.npz`` and ``.pt`` files."""

import numpy as np
import pytest
import torch

from vaelib.data import ImageDataset

IMAGES = torch.zeros(3, 1, 2, 2)


# --- labels


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        (torch.tensor([2, 0, 1]), [2, 0, 1], ()),
        (torch.tensor([2.0, 0.0, 1.0], dtype=torch.bfloat16), [2, 0, 1], ()),
        (torch.tensor([True, False, True]), [1, 0, 1], ()),
        (torch.tensor([[2], [0], [1]], dtype=torch.uint8), [2, 0, 1], ()),
        (torch.tensor([[0, 0, 1], [1, 0, 0], [0, 1, 0]]), [2, 0, 1], ()),
        (np.array([2, 0, 1], np.uint64), [2, 0, 1], ()),
        (["dog", "cat", "dog"], [1, 0, 1], ("cat", "dog")),
        (np.array([["dog"], ["cat"], ["dog"]]), [1, 0, 1], ("cat", "dog")),
        (np.array([b"dog", b"cat", b"dog"]), [1, 0, 1], ("cat", "dog")),
        (np.array(["dog", "cat", "dog"], object), [1, 0, 1], ("cat", "dog")),
    ],
)
def test_labels_become_class_numbers(labels, numbers, names):
    dataset = ImageDataset(IMAGES, labels=labels)
    assert dataset.labels.dtype == torch.int64
    assert dataset.labels.tolist() == numbers
    assert dataset.class_names == names
    assert dataset.subset(slice(1)).class_names == dataset.replace(IMAGES).class_names == names


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"labels": torch.tensor([0.0, float("nan"), 1.0])}, ValueError, "must be whole numbers, got nan at 1"),
        ({"labels": torch.tensor([0.0, 1.0, 1.7])}, ValueError, "`labels` must be whole numbers, got 1.7 at 2"),
        ({"labels": torch.tensor([0.0, float("inf"), 1.0])}, ValueError, "must be whole numbers, got inf at 1"),
        ({"labels": torch.zeros(3, dtype=torch.complex64)}, TypeError, "class numbers or names, got dtype complex"),
        ({"labels": [None, 1, 2]}, TypeError, "must be class numbers or names, got dtype object"),
        ({"labels": torch.tensor([0, -1, 2])}, ValueError, "`labels` must be class numbers from 0, got -1"),
        ({"labels": np.array([0, 1, 2**64 - 1], np.uint64)}, ValueError, "numbers from 0, got 18446744073709551615"),
        ({"labels": torch.zeros(4)}, ValueError, r"`labels` must have shape \(3\), got \(4,\)"),
        ({"labels": torch.tensor(1)}, ValueError, r"`labels` must have shape \(3\), got \(\)"),
        ({"labels": ["cat"]}, ValueError, r"`labels` must have shape \(3\), got \(1,\)"),
        ({"labels": torch.eye(4)}, ValueError, r"`labels` must have shape \(3, K\), got \(4, 4\)"),
        ({"labels": torch.tensor([[1, 0], [1, 1], [0, 1]])}, ValueError, r"must be one-hot, .*got row 1: \[1 1\]"),
        ({"labels": torch.tensor([[1, 0], [0.5, 0.5], [0, 1]])}, ValueError, r"must be one-hot, .*row 1: \[0.5 0.5\]"),
        ({"labels": torch.tensor([0, 1, 2]), "class_names": ["a", "b"]}, ValueError, "must be below 2.*got 2"),
        ({"labels": ["a", "b", "c"], "class_names": ["a", "b"]}, ValueError, "among the class names a, b, got 'c'"),
        ({"factors": torch.zeros(3, 1), "factor_names": ["a"]}, TypeError, "`factors` must be a tensor of integers"),
        ({"factors": np.zeros((3, 1)), "factor_names": ["a"]}, TypeError, "tensor of integers, got ndarray"),
    ],
)  # fmt: skip
def test_wrong_labels(arguments, error, match):
    with pytest.raises(error, match=match):
        ImageDataset(IMAGES, **arguments)


def test_class_names_are_shown():
    assert "classes cat, dog" in repr(ImageDataset(IMAGES, labels=["dog", "cat", "dog"]))
    many = ImageDataset(torch.zeros(12, 1, 2, 2), labels=[f"{i:02d}" for i in range(12)])
    assert "08, 09, ..." in repr(many)
