"""The graphs of one bundle, opened when they are needed, and whatever is handed to them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from vaelib._checks import ModelFileError, check_shape
from vaelib.runtime.bundle import Bundle
from vaelib.runtime.codes import code_check, uniform_codes, whole_numbers
from vaelib.runtime.contract import Spec, axes_of, bound_axes, item_shape
from vaelib.runtime.engine import Array, Check, Engine
from vaelib.runtime.inputs import checked_condition, finite, finite_check, floats, range_check, rows_for, shown
from vaelib.runtime.machine import Machine
from vaelib.runtime.protobuf import ProtobufError
from vaelib.runtime.sections import cut_out

__all__ = ["Graphs", "section"]


class Graphs:
    """The decoder, opened at once, and the others, on first use."""

    condition: Array | None = None
    """Rows of a condition that every graph is given which takes one."""

    def __init__(self, directory: str | Path, machine: Machine) -> None:
        self._bundle, self._machine = Bundle(directory), machine
        self._engines: dict[str, Engine] = {}
        self._lock = Lock()
        self.directory = self._bundle.directory
        self.metadata, self.contract = self._bundle.metadata, self._bundle.graphs
        self.multiple: int | None = self.metadata["spatial_multiple"]
        axes = axes_of(self.metadata)
        self._shapes = {
            (part, name): item_shape(spec, axes)
            for part, contract in self.contract.items()
            for name, spec in contract.inputs.items()
        }
        self.engine("decoder")

    def engine(self, part: str) -> Engine:
        """The runner of ``part``.

        Raises:
            FileNotFoundError: If its file is missing.
            ModelFileError: If its file is not what it should be, or belongs to another model.
        """
        if part not in self._engines:
            with self._lock:
                if part not in self._engines:
                    self._engines[part] = Engine(self._bundle, part, self._machine)
        return self._engines[part]

    def given(self, condition: Any, called: str) -> Graphs:
        """The same graphs with a condition."""
        view = copy.copy(self)
        view.condition = checked_condition(self.metadata["condition"], condition, called)
        return view

    def checked(self, part: str, name: str, values: Any, called: str) -> Array:
        """The input ``name`` of ``part`` as the graph takes it; the values are not read.

        ``called`` is the caller's name of it, for the errors.

        Raises:
            ValueError: If the shape is wrong.
            TypeError: If it is no array of floating point, or of whole numbers where the graph takes these.
        """
        shape = self.shape_of(part, name)
        spec = self.contract[part].inputs[name]
        values = whole_numbers(called, values) if spec.dtype == "int64" else floats(called, values)
        if values.ndim and values.shape[1:] == shape:
            return values
        check_shape(called, values.shape, spec.shape)
        _check_extents(spec, values.shape, self.multiple or 1, called)
        return values

    def shape_of(self, part: str, name: str) -> tuple[int, ...]:
        """Of one item of an input, at the size of the training.

        Raises:
            ValueError: If the bundle has no such graph, as that of a model without a prior.
        """
        if (part, name) not in self._shapes:
            words = f"The bundle has no {part} that takes `{name}`"
            raise ValueError(f"{words}; the model's prior is {self.metadata['prior']}.")
        return self._shapes[part, name] or ()

    def outputs_of(self, part: str) -> Collection[str]:
        """Names of the outputs of ``part``; none where there is no such graph."""
        return self.contract[part].outputs if part in self.contract else ()

    @property
    def num_codes(self) -> int:
        """K of a quantised latent; of others an error."""
        if self.metadata["codes"] is None:
            raise ValueError("The model has no codes: its latent is not quantised.")
        return int(self.metadata["codes"]["num_codes"])

    def shape_beside(self, part: str, name: str, first: Array) -> tuple[int, ...]:
        """The shape that the input ``name`` must have beside the batch ``first`` of the part's first input."""
        if self.multiple is None:
            return (len(first), *self.shape_of(part, name))
        specs = self.contract[part].inputs
        axes = bound_axes(next(iter(specs.values())), first.shape, self.multiple)
        return (len(first), *(item_shape(specs[name], axes) or ()))

    def ask(self, part: str, name: str, values: Any, called: str, outputs: tuple[str, ...]) -> list[Array]:
        """:meth:`run` of a graph of one input, once it is checked: images in [0, 1], codes in range, floats finite."""
        values = self.checked(part, name, values, called)
        codes = self.metadata["codes"]
        return self.run(part, {name: values}, outputs, _check_of(name, called, values, codes and codes["num_codes"]))

    def run(self, part: str, inputs: Mapping[str, Array], outputs: tuple[str, ...], check: Check) -> list[Array]:
        """Outputs of ``part`` by name, for any number of items; the mean is clamped to [0, 1].

        Raises:
            ValueError: If a value is not finite, or the graph takes a condition and none was given, or none that fits.
        """
        contract = self.contract[part]
        first = next(iter(inputs.values()))
        if contract.file is None:
            check(first)
            if "codes" in contract.outputs:
                return [uniform_codes(first, self.num_codes)]
            return [first.reshape(len(first), *self.metadata["latent_shape"])]
        if "condition" in contract.inputs and "condition" not in inputs:
            inputs = {**inputs, "condition": rows_for(self.condition, len(first), draws=part not in ("encoder", "vae"))}
        spec = contract.inputs[next(iter(inputs))]
        axes = None if self.multiple is None else bound_axes(spec, first.shape, self.multiple)
        results = self.engine(part).run(inputs, outputs, check, axes)
        return [_checked_output(part, name, values) for name, values in zip(outputs, results, strict=True)]


def section(
    graphs: Graphs, part: str, given: str, called: str, outputs: tuple[str, ...]
) -> Callable[[Array, Mapping[str, tuple[int, ...]]], list[Array]]:
    """Computes ``outputs``, whose shapes it is given too, from ``given``: values of ``part`` or within it.

    Its session is not kept: the weights are also those of the whole graph, and the memory is for the next section.

    Raises:
        ModelFileError: If the graph has no such values.
    """
    engine = graphs.engine(part)
    try:
        content = cut_out(engine.content, given, outputs)
    except ProtobufError as error:
        raise ModelFileError(f"{part}.onnx has no such section: {error}.") from error
    session = graphs._machine.session(part, content, engine.threads, free_size=True)

    def run(values: Array, shapes: Mapping[str, tuple[int, ...]]) -> list[Array]:
        if given in graphs.contract[part].inputs:
            _check_of(given, called, values, 0)(values)
        results = session.call({given: values}, {name: (shapes[name], values.dtype) for name in outputs})
        return [_checked_output(part, name, found) for name, found in zip(outputs, results, strict=True)]

    return run


def _check_extents(spec: Spec, shape: tuple[int, ...], multiple: int, called: str) -> None:
    """Raise unless a free height and width are of a size that the model has."""
    extents = shape[2:]
    if 0 in extents and "h" in spec.shape:
        raise ValueError(f"`{called}` must have a height and a width of at least 1, got {shape}.")
    if "H" in spec.shape and any(not extent or extent % multiple for extent in extents):
        raise ValueError(
            f"`{called}` must have a height and a width that are multiples of {multiple},"
            f" got {extents[0]} x {extents[1]}."
        )


def _check_of(name: str, called: str, values: Array, num_codes: int) -> Check:
    """The check of the values of the input ``name``."""
    if name == "codes":
        return code_check(called, num_codes)
    return range_check(called, values) if name == "image" else finite_check(called, values)


def _checked_output(part: str, name: str, values: Array) -> Array:
    if values.dtype.kind != "f":
        return values
    return shown(part, values) if name == "mean" else finite(part, values)
