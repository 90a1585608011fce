"""An image's bits do not depend on its batch: the claim, the operators that it rests on, and many threads at once."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import hand_made
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings, strategies as st
from onnx import helper

import vaelib as vl
from vaelib.runtime import OnnxVAE
from vaelib.runtime.engine import SIZE_CLASSES, Plan, candidates, size_class_of
from vaelib.runtime.operators import BATCH_INVARIANT
from vaelib.runtime.rules import is_batch_invariant

SIZE, SLOW = 70, pytest.mark.slow
NETWORKS = {
    "article": vl.presets.article_vae,
    "odd": None,  # those of the fixture
    "batch-dependent": None,
    "map": lambda: vl.conv_vae((3, 10, 10), latent_shape=(2, 5, 5), hidden_channels=(8,), upsample="nearest"),
    "elu": lambda: vl.conv_vae((1, 9, 7), 3, hidden_channels=(8,), activation="elu"),
    "softplus": lambda: vl.conv_vae((3, 5, 5), 3, hidden_channels=(8,), likelihood=vl.DiscretizedLogistic()),
}


@pytest.fixture(scope="module", params=[n if f is None else pytest.param(n, marks=SLOW) for n, f in NETWORKS.items()])
def model(request, tmp_path_factory):
    """Two threads, and what it answers about one image at a time."""
    if request.param == "odd":
        return OnnxVAE(request.getfixturevalue("odd_bundle")[1], threads=2)
    directory = tmp_path_factory.mktemp("bits") / "bundle"
    if request.param == "batch-dependent":
        return OnnxVAE(hand_made.batch_dependent(directory), threads=2)
    vl.export_onnx(NETWORKS[request.param](), directory)
    return OnnxVAE(directory, threads=2)


@pytest.fixture(scope="module")
def one_by_one(model):
    generator = np.random.default_rng(0)
    x = generator.random((SIZE, *model.image_shape), dtype=np.float32)
    z = generator.standard_normal((SIZE, *model.latent_shape), dtype=np.float32)
    mu, logvar = (
        np.concatenate(values) for values in zip(*(model.encode(x[i : i + 1]) for i in range(SIZE)), strict=True)
    )
    return x, z, mu, logvar, np.concatenate([model.decode(z[i : i + 1]) for i in range(SIZE)])


plans = st.builds(Plan, st.sampled_from([1, 3, 8, 16, 32, 64, 128]), st.sampled_from([1, 2]))
cuts = st.lists(st.integers(0, SIZE), max_size=6).map(lambda at: list(itertools.pairwise([0, *sorted(at), SIZE])))


@given(plan=plans, cut=cuts)
@settings(max_examples=25)
def test_no_bit_depends_on_the_cut(model, one_by_one, plan, cut):
    x, z, mu, logvar, images = one_by_one
    for part in ("encoder", "decoder"):
        model._graphs.engine(part).fix(plan)
    found = [(*model.encode(x[start:stop]), model.decode(z[start:stop])) for start, stop in cut]
    for expected, values in zip((mu, logvar, images), zip(*found, strict=True), strict=True):
        assert np.array_equal(np.concatenate(values), expected)


def test_no_score_depends_on_threads_or_plans(model, one_by_one):
    x = one_by_one[0]
    expected = OnnxVAE(model._graphs.directory, threads=1).score(x)
    for plan in (Plan(3, 2), Plan(16, 1), Plan(SIZE, 1)):
        model._graphs.engine("vae").fix(plan)
        assert np.array_equal(model.score(x), expected)


def test_nats_of_bernoulli_are_batch_invariant(model):
    is_bernoulli = model.metadata["likelihood"] == "Bernoulli"
    assert model._graphs.engine("vae")._batch_invariant == (
        is_bernoulli and model._graphs.engine("encoder")._batch_invariant
    )


def test_eight_threads_get_what_one_gets(model, one_by_one):
    x, z, mu, _, images = one_by_one
    calls = [(size, start) for size in (1, 2, 5, 16, 17, 40, 70) for start in (0, 7, 30) if start + size <= SIZE]
    scores = {(size, start): model.score(x[start : start + size]) for size, start in calls}

    def ask(call):
        size, start = call
        items = slice(start, start + size)
        return (
            np.array_equal(model.encode(x[items])[0], mu[items])
            and np.array_equal(model.decode(z[items]), images[items])
            and np.array_equal(model.score(x[items]), scores[call])
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, calls * 5))


def test_errors_in_workers_come_back_and_leave_no_harm(model, one_by_one):
    x, _, mu, *_ = one_by_one
    model._graphs.engine("encoder").fix(Plan(8, 2))
    spoilt = x.copy()
    spoilt[40] = 7.0
    for _ in range(10):
        with pytest.raises(ValueError, match=r"`images` must have values in \[0, 1\], got \[.*, 7\]"):
            model.encode(spoilt)
    assert np.array_equal(model.encode(x)[0], mu)


def test_tuning_measures_every_size_class_that_matters(model, monkeypatch):
    monkeypatch.setattr("vaelib.runtime.engine._SECONDS", 0.0)
    batch_invariant = model._graphs.engine("decoder")._batch_invariant
    assert batch_invariant == (
        "Elu" not in operators(model, "decoder") and "Softplus" not in operators(model, "decoder")
    )
    measured = OnnxVAE(model._graphs.directory, threads=2).tune()["decoder"]
    assert set(measured) == (set(SIZE_CLASSES) if batch_invariant else set())
    assert all(plan in candidates(size_class, 2) for size_class, plan in measured.items())


def operators(model, part):
    return {node.op_type for node in onnx.load(model._graphs.directory / f"{part}.onnx").graph.node}


def test_size_classes():
    assert [size_class_of(size) for size in (17, 64, 65, 256, 257, 10_000)] == [32, 32, 128, 128, 512, 512]
    assert all(plan.workers == 1 for size_class in SIZE_CLASSES for plan in candidates(size_class, 1))
    assert {plan.workers for plan in candidates(128, 4)} == {1, 4}


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


C, H, W, K = 5, 9, 7, 129
_OF_EACH_VALUE = (
    "Ceil Floor Round Sign Trilu Sigmoid Tanh Erf Exp Gelu HardSigmoid HardSwish Sqrt LeakyRelu Reciprocal Relu Abs Neg"
    " Identity Flatten"
)
_TRUTHS_AND_MOVES = (
    "And Equal Greater GreaterOrEqual Less LessOrEqual Not Or Shape Where Concat DequantizeLinear GatherElements"
    " ConstantOfShape"
)
"""They do not fit the one float input of the test; nothing is summed."""
OPERATORS = {
    "Conv": ({"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2]}, (C, H, W), [draw(13, C, 3, 3), draw(13)]),
    "ConvTranspose": (
        {"kernel_shape": [4, 4], "pads": [1] * 4, "strides": [2, 2]},
        (C, H, W),
        [draw(C, 3, 4, 4), draw(3)],
    ),
    "BatchNormalization": ({}, (C, H, W), [draw(C), draw(C), draw(C), np.abs(draw(C)) + 1]),
    "InstanceNormalization": ({}, (C, H, W), [draw(C), draw(C)]),
    "LayerNormalization": ({}, (C, H, W), [draw(W), draw(W)]),
    "Gemm": ({"transB": 1}, (K,), [draw(33, K), draw(33)]),
    "MatMul": ({}, (3, K), [draw(K, 33)]),
    "Resize": ({"mode": "linear"}, (C, H, W), [np.zeros(0, np.float32), np.float32([1, 1, 2, 2])]),
    "GlobalAveragePool": ({}, (C, H, W), []),
    "AveragePool": ({"kernel_shape": [3, 3]}, (C, H, W), []),
    "PRelu": ({}, (H, W), [draw(1)]),
    **dict.fromkeys(_OF_EACH_VALUE.split(), ({}, (H, W), [])),
    **{name: ({}, (H, W), [draw(W)]) for name in ("Add", "Sub", "Mul", "Div", "Min", "Max")},
    **{name: ({"axis": 2}, (H, W), []) for name in ("ArgMax", "ArgMin", "LogSoftmax", "Softmax")},
    "Cast": ({"to": onnx.TensorProto.FLOAT16}, (H, W), []),
    "Clip": ({}, (H, W), [np.float32(0.2), np.float32(0.7)]),
    "DepthToSpace": ({"blocksize": 2}, (8, H, W), []),
    "SpaceToDepth": ({"blocksize": 3}, (C, H, 6), []),
    "Expand": ({}, (1, W), [np.int64([1, H, W])]),
    "Gather": ({"axis": 2}, (H, W), [np.int64([3, 0, 3])]),
    "Mod": ({"fmod": 1}, (H, W), [np.float32(0.3)]),
    "Pad": ({}, (H, W), [np.int64([0, 1, 0, 0, 0, 2])]),
    "QuantizeLinear": ({}, (H, W), [np.float32(0.03), np.uint8(7)]),
    "Reshape": ({}, (H, W), [np.int64([-1, H * W])]),
    "Slice": ({}, (H, W), [np.int64([1]), np.int64([6]), np.int64([1])]),
    "Split": ({"axis": 1, "num_outputs": 1}, (H, W), []),
    "Squeeze": ({}, (1, W), [np.int64([1])]),
    "Tile": ({}, (H, W), [np.int64([1, 2, 1])]),
    "Transpose": ({"perm": [0, 2, 1]}, (H, W), []),
    "Unsqueeze": ({}, (H, W), [np.int64([2])]),
}
_KINDS = dict.fromkeys(("ArgMax", "ArgMin"), onnx.TensorProto.INT64) | {
    "Cast": onnx.TensorProto.FLOAT16,
    "QuantizeLinear": onnx.TensorProto.UINT8,
}


def model_of(operator, attributes, shape, constants):
    """One node whose first input is free."""
    names = [f"c{i}" for i in range(len(constants))]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *names], ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", _KINDS.get(operator, onnx.TensorProto.FLOAT), None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in zip(names, constants, strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("operator", OPERATORS)
def test_batch_invariant_operators_are(operator, threads):
    attributes, shape, constants = OPERATORS[operator]
    assert is_batch_invariant({"graph": {"node": [{"op_type": operator}]}})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model_of(operator, attributes, shape, constants), options, providers=["CPUExecutionProvider"]
    )
    x = np.abs(draw(SIZE, *shape))
    (whole,) = session.run(None, {"x": x})
    for chunk in (1, 2, 3, 5, 16, 33):
        parts = [session.run(None, {"x": x[i : i + chunk]})[0] for i in range(0, SIZE, chunk)]
        assert np.array_equal(np.concatenate(parts), whole), chunk


def test_every_batch_invariant_operator_is_tested():
    assert {*OPERATORS, *_TRUTHS_AND_MOVES.split()} == BATCH_INVARIANT


def test_others_are_not_called_batch_invariant():
    for operator in ("Elu", "Selu", "Softplus", "Mish", "Log", "ReduceSum"):
        assert not is_batch_invariant({"graph": {"node": [{"op_type": operator}]}})
