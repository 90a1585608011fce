import numpy as np
import pytest
import torch

from vaelib import _checks
from vaelib._checks import (
    check_batch,
    check_bool,
    check_broadcasts,
    check_callable,
    check_choice,
    check_device,
    check_draws,
    check_finite,
    check_float,
    check_generator,
    check_has_code,
    check_has_prior,
    check_has_values,
    check_image_path,
    check_images,
    check_int,
    check_int_tuple,
    check_latent,
    check_like,
    check_module,
    check_one_device,
    check_path,
    check_shape,
    check_tensor,
    check_type,
    check_unit_range,
)

BYTES = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("check", "error", "message"),
    [
        (lambda: check_choice("norm", [], {"batch": 1}), ValueError, r"`norm` must be one of 'batch', got \[\]"),
        (lambda: check_choice("norm", {}, ("batch",)), ValueError, r"`norm` must be one of 'batch', got \{\}"),
        (lambda: check_choice("k", True, (None, 1, 3)), ValueError, "`k` must be one of None, 1, 3, got True"),
        (lambda: check_choice("k", torch.ones(()), (1, 3)), ValueError, r"got tensor\(1.\)"),
        (lambda: check_choice("k", np.ones(2), (1, 3)), ValueError, r"got ndarray of shape \(2,\) and dtype"),
        (lambda: check_int("n", np.bool_(True)), TypeError, "`n` must be an int, got (np.True_|True)"),
        (lambda: check_int("n", 10**20), ValueError, r"`n` must be <= 9223372036854775807, got 10{20}\."),
        (lambda: check_int("n", 10**5000), ValueError, r"`n` must be <= 9223372036854775807, got int of \d+ bits"),
        (lambda: check_int("n", -(10**5000)), ValueError, r"`n` must be >= 1, got int of \d+ bits"),
        (lambda: check_int("n", 5, maximum=4), ValueError, r"`n` must be <= 4, got 5\."),
        (lambda: check_float("p", True), TypeError, "`p` must be a number, got True"),
        (lambda: check_float("p", float("inf")), ValueError, r"`p` must be finite, got inf\."),
        (lambda: check_float("p", float("nan")), ValueError, r"`p` must be finite, got nan\."),
        (lambda: check_float("p", np.inf, 0.0), ValueError, r"`p` must be >= 0 and finite, got inf\."),
        (lambda: check_float("p", 10**400, 0.0), ValueError, r"`p` must be >= 0 and finite, got 10+\.\.\.0+\."),
        (lambda: check_float("p", float("inf"), maximum=1.0), ValueError, r"`p` must be <= 1, got inf\."),
        (lambda: check_int_tuple("c", b"abc"), TypeError, "`c` must be a sequence of ints, got b'abc'"),
        (lambda: check_int_tuple("c", bytearray(b"a")), TypeError, "`c` must be a sequence of ints, got bytearr"),
        (lambda: check_int_tuple("c", memoryview(b"a")), TypeError, "`c` must be a sequence of ints, got <memory"),
        (lambda: check_int_tuple("c", ...), TypeError, "`c` must be a sequence of ints, got Ellipsis"),
        (lambda: check_int_tuple("c", [1] * 10**6, 2), ValueError, r"got \(1, 1, 1, 1, 1, 1, \.\.\.\)\."),
        (lambda: check_bool("flip", 1), TypeError, "`flip` must be True or False, got 1"),
        (lambda: check_type("path", 3, str), TypeError, "`path` must be a str, got 3"),
        (lambda: check_tensor("x", [0.5]), TypeError, r"`x` must be a torch.Tensor, got \[0.5\]"),
        (lambda: check_tensor("x", torch.Tensor), TypeError, "`x` must be a torch.Tensor, got <class"),
        (lambda: check_tensor("x", torch.ones(2, dtype=torch.int64)), TypeError, "floating point, got dtype torch.int"),
        (lambda: check_tensor("x", torch.ones(2).to_sparse()), TypeError, "dense tensor, got layout torch.sparse_coo"),
        (lambda: check_generator(0), TypeError, "`generator` must be a torch.Generator or None, got 0"),
        (lambda: check_module("prior", 3), TypeError, "`prior` must be an nn.Module object, got 3"),
        (lambda: check_module("prior", torch.nn.ReLU(), "kl"), TypeError, "have the methods `kl`, ReLU has not"),
        (lambda: check_tensor("x", torch.ones(1) * 1j), TypeError, "`x` must be real, got dtype torch.complex64"),
        (lambda: check_batch("x", torch.ones(2)), ValueError, r"`x` must have shape \(B, \.\.\.\), got \(2,\)"),
        (lambda: check_broadcasts("m", (3, 2), (4, 2)), ValueError, r"`m` must have a shape that broadcasts with"),
        (
            lambda: check_like("x", torch.ones(4, 2), mean=torch.ones(3, 2)),
            ValueError,
            r"`mean` must have a shape that broadcasts with \(4, 2\), got \(3, 2\)",
        ),
        (
            lambda: check_one_device(x=torch.ones(1), y=torch.ones(1, device="meta")),
            ValueError,
            "`y` must be on the device of `x`, cpu, got meta",
        ),
        (lambda: check_has_values("x", torch.ones(1, device="meta")), ValueError, "`x` must hold values"),
        (lambda: check_finite("x", torch.ones(1, device="meta")), ValueError, "`x` must hold values"),
        (lambda: check_device("gpu"), ValueError, "`device` must be one of torch's, such as 'cpu'.*, got 'gpu'"),
        (lambda: check_device(7), TypeError, "`device` must be a torch.device, its name, or None, got 7"),
        (lambda: check_draws(10**9, (32,), None), ValueError, "`num_samples` must be <= 134217728, got"),
        (lambda: check_callable("f", 3), TypeError, "`f` must be callable, got 3"),
        (lambda: check_callable("f", dict), TypeError, r"got <class 'dict'>\. Give an object: dict\(\.\.\.\)\."),
        (lambda: check_path(3), TypeError, "`path` must be a str or a Path, got 3"),
        (lambda: check_path(""), ValueError, "`path` must be the path of a file or directory, got ''"),
        (
            lambda: check_image_path("nowhere/a.png"),
            FileNotFoundError,
            "`path` must be in a directory that exists, got 'nowhere/a.png'",
        ),
        (lambda: check_image_path("a.xyz"), ValueError, r"`path` must end in \.png, .*\.tiff, got 'a\.xyz'"),
        (lambda: check_has_prior("Elbo", 3), TypeError, "`model` must have a prior, as a VAE has, for Elbo; got 3"),
        (lambda: check_has_code("WaeLoss", 3), TypeError, "`model` must be an AutoEncoder or a VAE for WaeLoss, got 3"),
        (lambda: check_choice("norm", "bath", ["none"]), ValueError, r"`norm` must be one of 'none', got 'bath'\."),
        *((lambda n=n: check_int("n", n), TypeError, "`n` must be an int, got") for n in (1.0, "1", True, None)),
        (lambda: check_int("n", 0), ValueError, "`n` must be >= 1, got 0"),
        (lambda: check_float("p", 1.5, 0, 1), ValueError, "`p` must be >= 0 and <= 1, got 1.5"),
        (lambda: check_float("p", 0, 0, above=True), ValueError, "`p` must be > 0, got 0"),
        (lambda: check_float("p", float("nan"), 0), ValueError, "`p` must be >= 0, got nan"),
        (lambda: check_float("p", "a"), TypeError, "`p` must be a number, got 'a'"),
        (lambda: check_int_tuple("c", [1, 2, 3], 2), ValueError, r"`c` must have 2 entries, got \(1, 2, 3\)"),
        (lambda: check_int_tuple("c", [1, 0]), ValueError, r"`c\[1\]` must be >= 1, got 0"),
        (lambda: check_int_tuple("c", np.array([1, 2.5])), TypeError, r"`c\[0\]` must be an int, got 1.0"),
        (lambda: check_int_tuple("c", 5), TypeError, "`c` must be a sequence of ints, got 5"),
        (lambda: check_shape("x", (16, 3), ("B", 1)), ValueError, r"`x` must have shape \(B, 1\), got \(16, 3\)\."),
        (
            lambda: check_images("x", BYTES, (1, 4, 4), floating=False),
            TypeError,
            r"floating point with values in \[0, 1\], got dtype torch.uint8",
        ),
        (lambda: check_latent(None, None), ValueError, "got neither"),
        (
            lambda: check_latent(8, (4, 2, 3)),
            ValueError,
            r"`latent_dim` must be 24 to agree with `latent_shape` \(4, 2, 3\), got 8",
        ),
        (lambda: check_latent(None, (4, 2)), ValueError, r"`latent_shape` must be \(D,\) or \(C, h, w\), got \(4, 2\)"),
        (lambda: check_latent(np.int64(3), (4, 1, 1)), ValueError, "`latent_dim` must be 4 to agree"),
        (lambda: check_latent("8", (8,)), TypeError, "`latent_dim` must be an int, got '8'"),
    ],
)
def test_what_is_refused(check, error, message):
    with pytest.raises(error, match=message):
        check()


def test_what_numpy_counts_with_is_taken():
    check_choice("k", np.int64(3), (None, 1, 3))
    check_bool("flip", False)
    check_generator(None)
    check_module("prior", None, "kl", optional=True)
    for given in ((np.int64(2), np.uint8(3)), np.array([2, 3]), range(2, 4), torch.Size([2, 3])):
        found = check_int_tuple("c", given)
        assert found == (2, 3) and [type(entry) for entry in found] == [int, int]
    check_shape("x", (7, 1, 28, 28), ("B", 1, 28, 28))
    assert check_int("n", 0, minimum=0) == 0 and type(check_int("n", np.int64(3))) is int
    assert check_float("p", 1, 0, 1) == 1.0
    assert type(check_float("p", np.float16(0.5))) is float
    size, shape = check_latent(np.int64(8), None)
    assert (type(size), type(shape[0])) == (int, int)


def test_a_message_is_short():
    class Loud:
        def __repr__(self):
            return "loud\n" * 10**6

    for value in ("a" * 10**6, list(range(10**6)), [[[[[[[[1]]]]]]]] * 100, Loud(), {i: i for i in range(10**5)}):
        text = _checks.shown(value)
        assert len(text) < 300
        assert "\n" not in text
    assert _checks.shown(torch.zeros(1000, 1000)) == "Tensor of shape (1000, 1000) and dtype torch.float32"
    assert _checks.shown(np.float64(0.5)) in ("np.float64(0.5)", "0.5")


@pytest.mark.parametrize("make", [torch.tensor, np.array])
def test_values_of_tensors_and_arrays(make):
    check_unit_range("x", make([0.0, 1.0]))
    check_unit_range("x", make([]))
    check_unit_range("x", make([-1e-7, 1.0000001]))  # the rounding of a resize
    with pytest.raises(ValueError, match=r"`x` must have values in \[0, 1\], got \[0, 1\.001\]"):
        check_unit_range("x", make([0.0, 1.001]))
    with pytest.raises(ValueError, match=r"`x` must have values in \[0, 1\], got \[-0.5, 1\]\.$"):
        check_unit_range("x", make([-0.5, 1.0]))
    with pytest.raises(ValueError, match=r"got \[0, 255\]\. Divide 8-bit images by 255\."):
        check_unit_range("x", make([0.0, 255.0]))
    with pytest.raises(ValueError, match=r"got \[nan, nan\]"):
        check_unit_range("x", make([0.5, float("nan")]))
    with pytest.raises(ValueError, match="`z` must be finite, got values in"):
        check_finite("z", make([0.5, float("inf")]))
    check_finite("z", make([]))
    check_finite("z", make([-3.0]))


def test_latent_from_either_description():
    for given in ((8, None), (None, [4, 2, 3]), (24, (4, 2, 3))):
        found = check_latent(*given)
        assert found == ((8, (8,)) if given[0] == 8 else (24, (4, 2, 3)))


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
