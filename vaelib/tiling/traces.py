"""What torch traces of a network, remembered: a trace takes seconds, and the same network gives the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ["Called", "calls_of", "layer_of", "remembered", "traced"]

_T = TypeVar("_T")
_MEMORY: dict[Any, Any] = {}
_MOST = 64
"""Results that are kept, the latest ones."""
_OF_MAPS = {"_reshape_alias", "_unsafe_view", "reshape", "view", "upsample_bilinear2d", "upsample_nearest2d"}
"""Operators whose whole numbers are sizes of the map that they give, where they are given a map.

Where they are given something else, or nothing as ``ones`` is, what is made of the result may be a number made of the
size, such as a sum.
"""
_OF_ALL = {"_assert_tensor_metadata", "expand"}
"""The same whatever they are given: the receptive field follows what is expanded."""
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


class Called(NamedTuple):
    """One call of an operator in a traced network."""

    layer: str
    """The module around it, as :func:`layer_of` names it."""
    name: str
    numbers: list[Any]
    """Those of its arguments that are no tensors, and no sizes."""


def traced(network: nn.Module, examples: Sequence[Tensor]) -> Any:
    """The graph that torch makes of the network for inputs of the shapes of the examples."""
    with torch.no_grad():
        return torch.export.export(network, tuple(examples), strict=False)


def remembered(read: Callable[[nn.Module, Sequence[Tensor]], _T]) -> Callable[[nn.Module, Sequence[Tensor]], _T]:
    """The function, whose result for a network and the shapes of its inputs is kept until the network changes.

    The result must not hold the network or its tensors.
    """

    def recalled(network: nn.Module, examples: Sequence[Tensor]) -> _T:
        state = _all_read(network, examples)
        if state is None:
            return read(network, examples)
        key = (read, state)
        found: _T | None = _MEMORY.get(key)
        if found is None:
            found = _MEMORY[key] = read(network, examples)
            while len(_MEMORY) > _MOST:
                _MEMORY.pop(next(iter(_MEMORY)), None)  # which another thread may have taken
        return found

    return recalled


def _all_read(network: nn.Module, examples: Sequence[Tensor]) -> Any:
    """All that a trace depends on; None if a module has a hook, or an attribute that cannot be compared by value."""
    digest = hashlib.sha256(repr([_form(each) for each in examples]).encode())
    digest.update(repr(torch.is_autocast_enabled(examples[0].device.type)).encode())
    code = []
    for name, module in network.named_modules(remove_duplicate=False):
        attributes = dict(vars(module))
        tensors = attributes.pop("_parameters") | attributes.pop("_buffers")
        del attributes["_modules"]  # named by themselves
        if not _is_plain(attributes):
            return None
        forms = [(key, None if tensor is None else _form(tensor)) for key, tensor in tensors.items()]
        digest.update(repr((name, attributes, forms)).encode())
        code.append((type(module), type(module).forward))
    return digest.digest(), tuple(code)


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return type(tensor).__name__, tuple(tensor.shape), tensor.dtype, tensor.device


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(each) for key, each in value.items())
    return (
        all(map(_is_plain, value)) if isinstance(value, list | tuple | set | frozenset) else isinstance(value, _PLAIN)
    )


def calls_of(program: Any) -> list[Called]:
    """The calls of a graph, in their order."""
    found = []
    constants = program.graph_signature.inputs_to_lifted_tensor_constants
    maps = set(program.graph_signature.user_inputs[:1])
    for node in program.graph.nodes:
        given = {each.name for each in node.all_input_nodes}
        if given & maps:
            maps.add(node.name)
        if isinstance(node.target, torch._ops.OpOverload):
            name = node.target._schema.name.removeprefix("aten::")
            numbers = [leaf for leaf in tree_leaves((node.args, node.kwargs)) if not isinstance(leaf, torch.fx.Node)]
            if name == "slice":
                numbers = _cut(*node.args)
            elif name in _OF_ALL or (name in _OF_MAPS and node.name in maps):
                numbers = [number for number in numbers if not isinstance(number, int)]
            numbers += [_content(program.constants[constants[each]]) for each in sorted(given & constants.keys())]
            found.append(Called(layer_of(node), name, numbers))
    return found


def _content(tensor: Tensor) -> str:
    """A digest of a number or a table that the code of a network has made, perhaps of the size of a map."""
    return hashlib.sha256(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def _cut(values: Any, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1) -> list[Any]:
    """What a slice leaves away at the end, in place of where that is."""
    size = values.meta["val"].shape[dim]
    return [dim, start, None if stop is None else min(stop - size if stop >= 0 else stop, 0) or None, step]


def layer_of(node: Any) -> str:
    """The innermost module around a node, by name and class."""
    for name, kind in reversed((node.meta.get("nn_module_stack") or {}).values()):
        if name:
            return f"`{name}` ({str(kind).rpartition('.')[2].strip(chr(39) + '>')})"
    return f"`{getattr(node.target, '__name__', node.target)}`"
