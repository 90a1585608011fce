"""What a graph may hold: the list against ONNX's own definitions, and divisions that would end the interpreter."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, defs, helper, numpy_helper
from onnxruntime import InferenceSession

from vaelib.runtime.contract import Contract, Spec
from vaelib.runtime.operators import BATCH_INVARIANT, OTHERS, REFUSED, SIZES
from vaelib.runtime.protobuf import MODEL, parse
from vaelib.runtime.rules import GraphError, check_graph

OPSETS = range(18, 24)
_DEPRECATED = {"Scatter", "Upsample"}


def definitions(name):
    """Those of one operator in the opsets that vaelib exports."""
    history = [s for s in defs.get_all_schemas_with_history() if s.domain == "" and s.name == name]
    first = max((s.since_version for s in history if s.since_version <= OPSETS[0]), default=0)
    return [s for s in history if first <= s.since_version <= OPSETS[-1]]


NAMES = {s.name for s in defs.get_all_schemas_with_history() if s.domain == ""} - _DEPRECATED
KNOWN = {name: definitions(name) for name in sorted(NAMES) if definitions(name)}


def test_every_operator_of_the_standard_domain_is_run_or_refused_with_a_reason():
    assert KNOWN.keys() == BATCH_INVARIANT | OTHERS | REFUSED.keys()
    assert not BATCH_INVARIANT & OTHERS
    assert not (BATCH_INVARIANT | OTHERS) & REFUSED.keys()
    assert SIZES.keys() <= BATCH_INVARIANT | OTHERS


def test_operators_with_graphs_and_those_that_draw_are_refused():
    graph_types = (defs.OpSchema.AttrType.GRAPH, defs.OpSchema.AttrType.GRAPHS)
    for name, versions in KNOWN.items():
        attributes = {attribute.name: attribute.type for schema in versions for attribute in schema.attributes.values()}
        if set(attributes.values()) & set(graph_types):
            assert "a graph of its own" in REFUSED[name]
        if "seed" in attributes:
            assert "random" in REFUSED[name]


def bytes_of(nodes, constants=(), declared=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(values, name) for name, values in constants],
        value_info=[helper.make_tensor_value_info(name, kind, None) for name, kind in declared],
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def check(nodes, *constants, declared=()):
    row = Spec("float32", ("B", 4))
    check_graph(parse(bytes_of(nodes, constants, declared), MODEL), Contract({"x": row}, {"y": row}, "model.onnx"))


CAST = helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32)
BACK = helper.make_node("Cast", ["j"], ["y"], to=TensorProto.FLOAT)


@pytest.mark.parametrize("operator", ["Div", "Mod"])
@pytest.mark.parametrize(
    ("divisor", "allowed"),
    [
        (np.int32(7), True),
        (np.int32(-3), True),
        (np.int32([2, 3, 4, 5]), True),
        (np.int32(0), False),
        (np.int32(-1), False),
        (np.int32([2, 3, 0, 5]), False),
        (np.int64(-1), False),
        (None, False),
    ],
    ids=str,
)
def test_whole_numbers_are_divided_by_safe_constants_only(operator, divisor, allowed):
    constants = [] if divisor is None else [("d", divisor)]
    nodes = [CAST, helper.make_node(operator, ["i", "i" if divisor is None else "d"], ["j"]), BACK]
    if allowed:
        check(nodes, *constants)
    else:
        with pytest.raises(GraphError, match=f"its operator '{operator}' divides whole numbers by something else"):
            check(nodes, *constants)


FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32


def test_floats_are_divided_by_anything():
    """Whose type is declared, or follows from `DequantizeLinear`, which quantisation adds without a declaration."""
    moved, divided = helper.make_node("Transpose", ["x"], ["b"]), helper.make_node("Div", ["b", "b"], ["y"])
    check([moved, divided], declared=[("b", FLOAT)])
    check([helper.make_node("DequantizeLinear", ["x", "x"], ["b"]), divided])
    check([helper.make_node("Div", ["x", "x"], ["y"])])
    with pytest.raises(GraphError, match="'Div' divides whole numbers"):
        check([moved, divided])
    with pytest.raises(GraphError, match="it holds no graph"):
        check_graph(parse(b"", MODEL), Contract({}, {}, "model.onnx"))
    with pytest.raises(GraphError, match="it declares a value twice"):
        check([moved, divided], declared=[("b", FLOAT), ("b", INT32)])


@pytest.mark.parametrize("name", ["i", "j"])
def test_onnxruntime_refuses_a_wrong_declaration(name):
    """On which the rule of divisions relies."""
    nodes = [CAST, helper.make_node("Div", ["i", "i"], ["j"]), BACK]
    InferenceSession(bytes_of(nodes, declared=[(name, INT32)]), providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match=r"Type \(tensor\(float\)\) of output arg .* does not match expected type"):
        InferenceSession(bytes_of(nodes, declared=[(name, FLOAT)]), providers=["CPUExecutionProvider"])


def test_a_divisor_in_a_node_or_in_a_list_is_seen_too():
    listed = helper.make_tensor("d", TensorProto.INT32, [], [0])
    assert not listed.raw_data
    nodes = [CAST, helper.make_node("Constant", [], ["d"], value=listed), helper.make_node("Div", ["i", "d"], ["j"])]
    with pytest.raises(GraphError, match="'Div' divides whole numbers"):
        check([*nodes, BACK])
    with pytest.raises(GraphError, match="`i` is defined twice"):
        check([*nodes, BACK, CAST])


@pytest.mark.parametrize(
    ("nodes", "constants", "match"),
    [
        ([helper.make_node("RandomNormalLike", ["x"], ["y"])], [], "'RandomNormalLike' is not run by vaelib: it draws"),
        ([helper.make_node("Bernoulli", ["x"], ["y"])], [], "'Bernoulli' is not run by vaelib: it draws random"),
        (
            [helper.make_node("SequenceAt", ["x", "i"], ["y"])],
            [],
            "'SequenceAt' is not run by vaelib: it works on text",
        ),
        ([helper.make_node("ImageDecoder", ["x"], ["y"])], [], "'ImageDecoder' is not run by vaelib: it decodes"),
        ([helper.make_node("Surprise", ["x"], ["y"])], [], "'Surprise' is none of ONNX's standard domain"),
        (
            [helper.make_node("Range", ["a", "b", "c"], ["y"])],
            [(n, np.float32(1e-30)) for n in "abc"],
            "'Range' counts",
        ),
        (
            [helper.make_node("Range", ["a", "b", "c"], ["y"])],
            [(n, np.int64(2**40)) for n in "abc"],
            "more than a shape",
        ),
        ([helper.make_node("Tile", ["x", "r"], ["y"])], [("r", np.int64([1, 2**30]))], "`r` holds .*more than a shape"),
        (
            [helper.make_node("Cast", ["r"], ["s"], to=7), helper.make_node("Expand", ["x", "s"], ["y"])],
            [("r", np.int32([2**16, 2**16]))],
            "`r` holds .*more than a shape",
        ),
        ([helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=0)], [], "`hidden_size` of LSTM must not be 0"),
        ([helper.make_node("Einsum", ["x"], ["y"], equation="a" * 999)], [], "`equation` of Einsum must not be"),
        ([helper.make_node("Einsum", ["x"], ["y"], equation=["a"])], [], "`equation` of Einsum must not be"),
        ([helper.make_node("LpPool", ["x"], ["y"], kernel_shape=[2**31 - 1, 2])], [], "`kernel_shape` of LpPool"),
        ([helper.make_node("GatherND", ["x", "i"], ["y"], batch_dims=-(2**31))], [], "`batch_dims` of GatherND"),
    ],
)
def test_what_is_refused_is_named_with_the_reason(nodes, constants, match):
    with pytest.raises(GraphError, match=match):
        check(nodes, *constants)


def test_many_indices_are_no_shape():
    indices = np.arange(1000, dtype=np.int64) % 4
    check([helper.make_node("Gather", ["x", "i"], ["y"], axis=1)], ("i", indices))
    with pytest.raises(GraphError, match="more than a shape of ours"):
        check([helper.make_node("Expand", ["x", "i"], ["y"])], ("i", indices))


def test_a_tensor_attribute_is_inside_the_file():
    constant = numpy_helper.from_array(np.float32([1]), "c")
    model = helper.make_node("Constant", [], ["y"], value=constant)
    check([model])
    model.attribute[0].t.data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(GraphError, match="external data, in another file"):
        check([model])
    model.attribute[0].ClearField("t")
    with pytest.raises(GraphError, match="`value` of Constant must not be"):
        check([model])
