"""The receptive field of a network, read off the graph that torch traces of it; no operator is guessed."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vaelib._tiles import Axis
from vaelib.tiling.operators import expanded, rule_of
from vaelib.tiling.reach import Reach, UnboundedError, axis_of, joined
from vaelib.tiling.sampling import Call, Dims, Value
from vaelib.tiling.traces import Called, calls_of, layer_of, remembered, traced

__all__ = ["Field", "Refusal", "field_and_calls", "receptive_field"]


class Field(NamedTuple):
    """How far the outputs of a network look into its input, along each axis."""

    rows: Axis
    columns: Axis


class Refusal(NamedTuple):
    """Why a network cannot be computed tile by tile."""

    layer: str
    """Its name in the network and its class; the operator, of code outside of all layers."""
    reason: str
    is_branch: bool = False
    """Whether the network computes in another way at another size, so that no one graph is right for all sizes."""

    def __str__(self) -> str:
        return f"{self.layer} {self.reason}"


def receptive_field(network: nn.Module, examples: Sequence[Tensor]) -> Field | Refusal:
    """The receptive radius of a network of feature maps, exactly, or the first layer that has no bound.

    Args:
        network: Maps the first example, ``(B, C, H, W)``, to one or several maps of one size.
        examples: Inputs of such shapes; the height and width of the first must be multiples of the network's stride,
            and large against its padding. The shapes of the others must not depend on H and W.

    Returns:
        A :class:`Refusal` for whatever looks at the whole map, such as a normalisation over space or attention, for
        operators that this module does not know, and for a network that torch cannot trace.

    Examples:
        >>> from torch import nn
        >>> convs = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1))
        >>> receptive_field(convs, [torch.zeros(1, 1, 32, 32)]).rows
        Axis(step=2, cells=1, low=2, high=1, least=1)
        >>> str(receptive_field(nn.Sequential(*convs, nn.GroupNorm(2, 4)), [torch.zeros(1, 1, 32, 32)]))
        '`2` (GroupNorm) takes mean and variance over the whole map'
    """
    return field_and_calls(network, examples)[0]


@remembered
def field_and_calls(network: nn.Module, examples: Sequence[Tensor]) -> tuple[Field | Refusal, list[Called]]:
    """The receptive field, and the calls of the same trace."""
    calls: list[Called] = []
    try:
        program = traced(network, examples)
        calls = calls_of(program)
        found = None if any(map(_changes_its_input, program.graph.nodes)) else _walked(program)
        # Without in-place and composite operators, at twice the time.
        return found if isinstance(found, Field) else _walked(program.run_decompositions({})), calls
    except Exception as error:  # torch wraps whatever went wrong in errors of many kinds
        reason = str(error).partition("\n")[0]
        return Refusal(f"`{type(network).__name__}`", f"cannot be traced by torch: {reason:.200}"), calls


def _changes_its_input(node: Any) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and bool(node.target._schema.is_mutable)


def _walked(program: Any) -> Field | Refusal:
    walk = _Walk(program)
    node = None
    try:
        for node in program.graph.nodes:
            walk.visit(node)
        node = None
        rows, columns = (axis_of(_of_outputs(walk.outputs, dim)) for dim in (2, 3))
    except UnboundedError as error:
        return Refusal("the output" if node is None else layer_of(node), str(error))
    return Field(rows, columns)


class _Walk:
    """Values of the graph's nodes, in their order."""

    def __init__(self, program: Any) -> None:
        self._known: dict[Any, Any] = {}
        self._first = program.graph_signature.user_inputs[0]
        self.outputs: list[Value] = []

    def visit(self, node: Any) -> None:
        if node.op == "placeholder":
            shape = _shapes(node)[0] if isinstance(node.meta.get("val"), Tensor) else ()
            dims: Dims = (None,) * len(shape)
            if node.name == self._first:
                dims = (None, None, Reach(0, shape[2]), Reach(1, shape[3]))
            self._known[node] = Value(dims, shape)
        elif node.op == "output":
            self.outputs = [self._known[each] for each in tree_leaves(node.args) if each is not None]
        elif node.target is operator.getitem:
            self._known[node] = self._known[node.args[0]][node.args[1]]
        else:
            self._known[node] = self._called(node)

    def _called(self, node: Any) -> Any:
        shapes = _shapes(node)
        found: Any = [(None,) * len(shape) for shape in shapes]  # of weights alone, whatever is made of them
        rule = rule_of(node.target)
        if shapes and (rule is expanded or any(self._known[each].over() for each in node.all_input_nodes)):
            if rule is None:
                raise UnboundedError(f"calls {node.target}, of which vaelib does not know how far it looks")
            schema = node.target._schema.arguments
            given = dict(zip((argument.name for argument in schema), node.args, strict=False)) | node.kwargs
            arguments = {each.name: given.get(each.name, each.default_value) for each in schema}
            found = rule(Call(torch.fx.node.map_arg(arguments, self._known.__getitem__), shapes))
            found = found if isinstance(found, list) else [found] * len(shapes)
        values = [Value(*each) for each in zip(found, shapes, strict=True)]
        return values if isinstance(node.meta.get("val"), list | tuple) else next(iter(values), None)


def _shapes(node: Any) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in tree_leaves(node.meta.get("val")) if isinstance(value, Tensor)]


def _of_outputs(outputs: Sequence[Value], dim: int) -> Reach:
    found = []
    for value in outputs:
        reach = value.dims[dim] if len(value.dims) == 4 else None
        if not isinstance(reach, Reach) or reach.axis != dim - 2:
            raise UnboundedError(f"of shape {value.shape} is no feature map (B, C, H, W)")
        found.append(reach)
    return joined(found)
