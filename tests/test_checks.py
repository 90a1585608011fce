import numpy as np
import pytest
import torch

from vaelib import _checks


def test_choice_names_the_choices():
    with pytest.raises(ValueError, match=r"`norm` must be one of 'batch', 'none', got 'bath'\."):
        _checks.check_choice("norm", "bath", ["batch", "none"])


@pytest.mark.parametrize("value", [1.0, "1", True, None])
def test_int_refuses_other_types(value):
    with pytest.raises(TypeError, match="`n` must be an int, got"):
        _checks.check_int("n", value)


def test_int_minimum():
    assert _checks.check_int("n", 0, minimum=0) == 0
    assert type(_checks.check_int("n", np.int64(3))) is int
    with pytest.raises(ValueError, match="`n` must be >= 1, got 0"):
        _checks.check_int("n", 0)


def test_float_bounds():
    assert _checks.check_float("p", 1, 0, 1) == 1.0
    assert type(_checks.check_float("p", np.float32(0.5))) is float
    with pytest.raises(ValueError, match="`p` must be >= 0 and <= 1, got 1.5"):
        _checks.check_float("p", 1.5, 0, 1)
    with pytest.raises(ValueError, match="`p` must be > 0, got 0"):
        _checks.check_float("p", 0, 0, above=True)
    with pytest.raises(ValueError, match="`p` must be >= 0, got nan"):
        _checks.check_float("p", float("nan"), 0)
    with pytest.raises(TypeError, match="`p` must be a number, got 'a'"):
        _checks.check_float("p", "a")


def test_int_tuple_copies_and_checks():
    given = [1, 2, 3]
    assert _checks.check_int_tuple("c", given) == (1, 2, 3)
    with pytest.raises(ValueError, match=r"`c` must have 2 entries, got \(1, 2, 3\)"):
        _checks.check_int_tuple("c", given, length=2)
    with pytest.raises(ValueError, match=r"`c\[1\]` must be >= 1, got 0"):
        _checks.check_int_tuple("c", [1, 0])
    with pytest.raises(TypeError, match="`c` must be a sequence of ints, got 5"):
        _checks.check_int_tuple("c", 5)


def test_shape_says_expected_and_got():
    _checks.check_shape("x", (7, 1, 28, 28), ("B", 1, 28, 28))
    with pytest.raises(ValueError, match=r"`x` must have shape \(B, 1, 28, 28\), got \(16, 3, 32, 32\)\."):
        _checks.check_shape("x", (16, 3, 32, 32), ("B", 1, 28, 28))


@pytest.mark.parametrize("make", [torch.tensor, np.array])
def test_values_of_tensors_and_arrays(make):
    _checks.check_unit_range("x", make([0.0, 1.0]))
    _checks.check_unit_range("x", make([]))
    with pytest.raises(ValueError, match=r"`x` must have values in \[0, 1\], got \[-0.5, 1\]\.$"):
        _checks.check_unit_range("x", make([-0.5, 1.0]))
    with pytest.raises(ValueError, match=r"got \[0, 255\]\. Divide 8-bit images by 255\."):
        _checks.check_unit_range("x", make([0.0, 255.0]))
    with pytest.raises(ValueError, match=r"got \[nan, nan\]"):
        _checks.check_unit_range("x", make([0.5, float("nan")]))
    with pytest.raises(ValueError, match="`z` must be finite, got values in"):
        _checks.check_finite("z", make([0.5, float("inf")]))
    _checks.check_finite("z", make([]))
    _checks.check_finite("z", make([-3.0]))


def test_images_want_a_floating_batch():
    with pytest.raises(TypeError, match=r"`x` must be floating point with values in \[0, 1\], got dtype torch.uint8"):
        _checks.check_images("x", torch.zeros(1, 1, 4, 4, dtype=torch.uint8), (1, 4, 4), floating=False)


def test_latent_from_either_description():
    assert _checks.check_latent(8, None) == (8, (8,))
    assert _checks.check_latent(None, [4, 2, 3]) == (24, (4, 2, 3))
    assert _checks.check_latent(24, (4, 2, 3)) == (24, (4, 2, 3))
    with pytest.raises(ValueError, match="got neither"):
        _checks.check_latent(None, None)
    with pytest.raises(ValueError, match=r"`latent_dim` must be 24 to agree with `latent_shape` \(4, 2, 3\), got 8"):
        _checks.check_latent(8, (4, 2, 3))
    with pytest.raises(ValueError, match=r"`latent_shape` must be \(D,\) or \(C, h, w\), got \(4, 2\)"):
        _checks.check_latent(None, (4, 2))


def test_own_errors_are_also_built_in_ones():
    for error, builtin in (
        (_checks.ModelFileError, ValueError),
        (_checks.ExportError, ValueError),
        (_checks.DataError, ValueError),
        (_checks.TrainingError, ValueError),
        (_checks.MissingExtraError, ImportError),
    ):
        assert issubclass(error, _checks.VaelibError)
        assert issubclass(error, builtin)
    assert str(_checks.MissingExtraError("ONNX export", "onnx")).endswith("pip install 'vaelib[onnx]'.")
