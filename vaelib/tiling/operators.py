"""What each operator of a traced network does to the reach of its input; an operator that is not here has no bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from vaelib.tiling.reach import Reach, UnboundedError, joined
from vaelib.tiling.sampling import SAMPLING, Call, Dims, Rule, Same

__all__ = ["expanded", "rule_of"]


def _pointwise(call: Call) -> Dims:
    rank = len(call.shapes[0])
    columns: list[list[Reach | Same | None]] = [[] for _ in range(rank)]
    for value in call.values:
        for dim, size, column in zip(value.dims[::-1], value.shape[::-1], columns[::-1], strict=False):
            if size > 1 or dim is not None:
                column.append(dim)
    return tuple(_met(column) for column in columns)


def _met(dims: Sequence[Reach | Same | None]) -> Reach | Same | None:
    """One dimension of what is computed from tensors with these dimensions there."""
    reaches = [dim for dim in dims if isinstance(dim, Reach)]
    if reaches and None in dims:
        raise UnboundedError("has values of its own for each place")
    if reaches:
        return joined(reaches)
    return None if None in dims or not dims else Same()


def _within(call: Call) -> Dims:
    """Of the dimensions that are reduced, normalised or gathered over, none may lie over the input."""
    value, rank = call.first, len(call.first.dims)
    given = next((call[name] for name in ("dim", "dims") if name in call.arguments), None)
    dims = [given] if isinstance(given, int) else list(given or range(rank))
    if value.over(*dims):
        raise UnboundedError("takes in the whole map")
    if len(call.shapes[0]) == rank:
        return value.dims
    reduced = {dim % rank for dim in dims}
    return tuple(reach for i, reach in enumerate(value.dims) if i not in reduced)


def _of_last_dims(call: Call) -> Dims:
    """A normalisation over the last dimensions, or a linear layer."""
    count = len(call["normalized_shape"]) if "normalized_shape" in call.arguments else 1
    if call.first.over(*range(-count, 0)):
        raise UnboundedError("takes in the whole map")
    return call.first.dims


def _product(call: Call) -> Dims:
    first, second = list(call.arguments.values())[:2]
    if second.over() or first.over(-1) or len(first.shape) != len(call.shapes[0]):
        raise UnboundedError("multiplies matrices over the map, as attention does")
    return call.first.dims


def _joined_at(call: Call) -> Dims:
    rank = len(call.shapes[0])
    at = call["dim"] % rank
    if any(value.over(at) for value in call.values):
        raise UnboundedError("puts maps beside each other")
    columns = [[v.dims[i] for v in call.values if v.shape[i] > 1 or v.dims[i] is not None] for i in range(rank)]
    return tuple(None if i == at else _met(column) for i, column in enumerate(columns))


def _split(call: Call) -> Dims:
    if call.first.over(call["dim"]):
        raise UnboundedError("takes a map apart")
    return call.first.dims


def _permuted(call: Call) -> Dims:
    rank = len(call.first.dims)
    order = [dim % rank for dim in call.arguments.get("dims", range(rank))]
    if "dim0" in call.arguments:
        first, second = call["dim0"], call["dim1"]
        order[first], order[second] = order[second], order[first]
    return tuple(call.first.dims[dim] for dim in order)


def expanded(call: Call) -> Dims:
    """One value for many places, as the planes of a condition are."""
    new = len(call.shapes[0]) - len(call.first.shape)
    before = (*[(None, 1)] * new, *zip(call.first.dims, call.first.shape, strict=True))
    return tuple(Same() if size > old else dim for (dim, old), size in zip(before, call.shapes[0], strict=True))


def _viewed(call: Call) -> Dims:
    """Dimensions over the input must stay by themselves; the others may be split and merged."""
    before, after = call.first.shape, call.shapes[0]
    dims: list[Reach | Same | None] = [None] * len(after)
    for i, dim in enumerate(call.first.dims):
        if dim is not None:
            starts = math.prod(before[:i])
            places = [j for j, size in enumerate(after) if size == before[i] and math.prod(after[:j]) == starts]
            if not places:
                raise UnboundedError("merges or splits the rows and columns of a map")
            dims[places[-1]] = dim
    return tuple(dims)


def _as_first(call: Call) -> Dims:
    """Cell by cell, by weights that are those of channels."""
    return call.first.dims


def _constant(call: Call) -> Dims:
    """Of the shape of a tensor."""
    return tuple(None if dim is None else Same() for dim in call.first.dims)


def _batch_norm(call: Call) -> list[Dims]:
    return [call.first.dims, *[(None,) * len(shape) for shape in call.shapes[1:]]]


def _refused(reason: str) -> Rule:
    def refuse(_: Call) -> Dims:
        raise UnboundedError(reason)

    return refuse


def _unless(name: str, reason: str) -> Rule:
    """Pointwise, unless this argument is true."""

    def changed(call: Call) -> Dims:
        if call[name]:
            raise UnboundedError(reason)
        return call.first.dims

    return changed


_STATISTICS = "takes mean and variance over the whole map"
_OF_BATCH = "takes the statistics of the batch, as in training mode"
_RANDOM = "draws random numbers, as in training mode"
_RULES: dict[Rule, str] = {
    _pointwise: "to _to_copy contiguous detach alias hardswish log_sigmoid lift_fresh_copy type_as rsub where"
    " true_divide floor_divide _prelu_kernel",
    _within: "mean sum amax amin max min var std prod cumsum argmax argmin linalg_vector_norm logsumexp softmax"
    " log_softmax _softmax _log_softmax glu flip select index_select",
    _of_last_dims: "layer_norm rms_norm linear",
    _product: "matmul bmm mm",
    _joined_at: "cat",
    _split: "split split_with_sizes chunk",
    _permuted: "permute transpose",
    expanded: "expand",
    _viewed: "view reshape _unsafe_view unsqueeze squeeze flatten unflatten",
    _as_first: "prelu",
    _constant: "zeros_like ones_like full_like",
    _batch_norm: "_native_batch_norm_legit_no_training",
    _refused(_STATISTICS): "group_norm native_group_norm",
    _refused("attends to the whole map"): "scaled_dot_product_attention",
    _refused("pools the whole map to a fixed size"): "adaptive_avg_pool2d adaptive_max_pool2d",
    _refused(_OF_BATCH): "_native_batch_norm_legit native_batch_norm _native_batch_norm_legit_functional",
    _refused(_RANDOM): "native_dropout bernoulli rand_like randn_like",
    _unless("training", _OF_BATCH): "batch_norm",
    _unless("use_input_stats", _STATISTICS): "instance_norm",
    _unless("train", _RANDOM): "dropout feature_dropout",
}
_BY_NAME = {name: rule for rule, names in _RULES.items() for name in names.split()} | SAMPLING


def rule_of(target: Any) -> Rule | None:
    """The rule of an operator of torch; None of one that is not known."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    if torch.Tag.nondeterministic_seeded in target.tags:
        return _BY_NAME.get(target._schema.name.removeprefix("aten::"))
    is_pointwise = torch.Tag.pointwise in target.tags
    return _pointwise if is_pointwise else _BY_NAME.get(target._schema.name.removeprefix("aten::"))
