"""Batch invariance: whether a model gives an image the same result in any batch, and which module does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaelib._checks import ExportError
from vaelib.export.differences import Judge, answers_of_torch, at_levels, difference, drawn_inputs, near_ties
from vaelib.export.graphs import Graph, culprit

__all__ = ["check_independence"]

_BATCH = 5

Inputs = Mapping[str, Tensor]


def check_independence(graph: Graph) -> None:
    """Run the torch module on a batch and on each of its items: both must give the same.

    The items of the batch differ in scale too, so that a normalisation by the batch's maximum is seen.

    Raises:
        ExportError: A ``ValueError`` that names the part, and the submodule if it can be found: if an item's result
            depends on the batch around it or on a draw, is not finite, or torch cannot compute it.
    """
    batch = min(_BATCH, graph.most)
    inputs = drawn_inputs(graph, batch, torch.Generator().manual_seed(0))
    scales = torch.linspace(0.1, 1.0, batch)
    for name, values in inputs.items():
        if values.is_floating_point():
            scaled = values * scales.view(-1, *[1] * (values.ndim - 1))
            inputs[name] = at_levels(scaled) if name == "image" else scaled
    whole = _answers(graph, inputs)
    single = [_answers(graph, item) for item in _items(inputs)]
    alone = {name: torch.cat([answers[name] for answers in single]) for name in graph.outputs}
    judge = Judge(graph)
    found = judge.apart(whole, alone, near_ties(graph, inputs))
    if all(parity.max_rel <= judge.limits[graph.outputs[name]].tolerance for name, parity in found.items()):
        return
    _check_finite_and_deterministic(graph, inputs, whole)
    for name, parity in found.items():
        if not judge.accepts(name, parity):
            module = _first_dependent(graph, inputs)
            off = f"{parity.max_rel:.1e}"
            cause = f" The first module whose output depends on it is {_described(module, graph)}." if module else ""
            raise ExportError(
                f"`model` must give an image the same result in any batch, but {culprit(graph)} does not: its `{name}`"
                f" differs by {off} of its scale between a batch of {batch} and one image at a time.{cause}"
            )


def _items(inputs: Inputs) -> list[dict[str, Tensor]]:
    return [
        {name: values[i : i + 1] for name, values in inputs.items()} for i in range(len(next(iter(inputs.values()))))
    ]


def _answers(graph: Graph, inputs: Inputs) -> dict[str, Tensor]:
    """What torch gives, of as many outputs as the graph has and of the batch's length."""
    batch = len(next(iter(inputs.values())))
    with _recorded(graph.module, keep=False) as (entered, _):
        try:
            answers = answers_of_torch(graph, inputs)
        except ExportError:
            raise
        except Exception as error:  # a model may raise anything
            place = f", in {_described(entered[-1], graph)}" if entered else ""
            reason = str(error).strip().partition("\n")[0]
            raise ExportError(
                f"`model` must take images of its `image_shape` in batches of any length, but {culprit(graph)} fails at"
                f" a batch of {batch}{place}: {reason:.200}"
            ) from error
    for name, values in answers.items():
        if not values.ndim or len(values) != batch:
            raise ExportError(
                f"`model` must give one `{name}` for each image, but {culprit(graph)} gives the shape"
                f" {tuple(values.shape)} for a batch of {batch}."
            )
    return answers


def _check_finite_and_deterministic(graph: Graph, inputs: Inputs, whole: dict[str, Tensor]) -> None:
    again = _answers(graph, inputs)
    for name, values in whole.items():
        if not values.isfinite().all():
            raise ExportError(
                f"`model` must give finite values, but {culprit(graph)} gives NaN or infinity in `{name}`."
            )
        if not torch.equal(values, again[name]):
            raise ExportError(
                f"`model` must be deterministic in eval mode, but {culprit(graph)} gives another `{name}` each time."
            )


class _Call(NamedTuple):
    module: nn.Module
    inputs: list[Tensor]
    outputs: list[Tensor]


@contextmanager
def _recorded(root: nn.Module, *, keep: bool = True) -> Iterator[tuple[list[nn.Module], list[_Call]]]:
    """Submodules whose calls have not ended, and the calls of all others in the order in which they ended.

    Unless ``keep``, the latter are forgotten: they hold all that the model computed.
    """
    entered: list[nn.Module] = []
    ended: list[_Call] = []

    def end(module: nn.Module, inputs: Any, outputs: Any) -> None:
        entered.pop()
        if keep:
            ended.append(_Call(module, _tensors(inputs), _tensors(outputs)))

    handles: list[Any] = []
    for module in root.modules():
        if module is not root and not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
            enter = module.register_forward_pre_hook(lambda module, _: entered.append(module))
            handles += [enter, module.register_forward_hook(end)]
    try:
        yield entered, ended
    finally:
        for handle in handles:
            handle.remove()


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, tuple | list) else []


def _first_dependent(graph: Graph, inputs: Inputs) -> nn.Module | None:
    """The first module to end that gives an item another output than alone, though its input is the same."""
    runs = []
    for given in (inputs, *_items(inputs)):
        with _recorded(graph.module) as (_, ended):
            answers_of_torch(graph, given)
        runs.append(ended)
    whole, *single = runs
    if any(len(calls) != len(whole) for calls in single):
        return None
    for position, call in enumerate(whole):
        alone = [calls[position] for calls in single]
        if _agree(call.inputs, [each.inputs for each in alone]) and not _agree(
            call.outputs, [each.outputs for each in alone]
        ):
            return call.module
    return None


def _agree(whole: list[Tensor], single: list[list[Tensor]]) -> bool:
    """Whether each tensor of the batch's is those of the items, one after the other, up to rounding."""
    for position, values in enumerate(whole):
        parts = [tensors[position] for tensors in single if len(tensors) == len(whole) and tensors[position].ndim]
        if len(parts) != len(single) or len({part.shape[1:] for part in parts} | {values.shape[1:]}) != 1:
            return False
        if not difference(values.float(), torch.cat(parts).float(), least_scale=1e-12).max_rel <= 1e-4:
            return False
    return True


def _described(module: nn.Module, graph: Graph) -> str:
    names = {id(part): name for name, part in graph.module.named_modules()}
    name = names[id(module)].removeprefix("model.")
    is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm | nn.InstanceNorm2d)
    is_fresh = is_norm and getattr(module, "running_mean", None) is None
    note = ", which has no running statistics and takes those of the batch" if is_fresh else ""
    return f"`{name}` ({type(module).__name__}{note})"
