"""Runs one graph on batches of any size.

Where a batch is cut changes no bit: the operators of a steady graph compute an image alike in any company, and the
images of any other graph go one by one, on one thread each.
"""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaelib.runtime.bundle import Bundle
from vaelib.runtime.contract import axes_of, named_items, wanted_items
from vaelib.runtime.machine import Item, Machine, Session
from vaelib.runtime.plans import SIZE_CLASSES, Plan, candidates, fastest, size_class_of

__all__ = ["Array", "Check", "Engine"]

Array = NDArray[Any]
"""Of float32, or of int64: codes, labels, positions."""
Check = Callable[[Array], None]

_DIRECT = 16
"""Batches up to this size go to onnxruntime in one call, unmeasured."""
_SECONDS_OF_A_BATCH = 0.05
"""The most that one batch may take on which plans are measured; slower graphs are measured on fewer images."""


class Engine:
    """One part of a bundle, ready to run.

    Args:
        bundle: The bundle.
        part: Name of the graph.
        machine: Where to run it.
    """

    def __init__(self, bundle: Bundle, part: str, machine: Machine) -> None:
        self._part, self._machine = part, machine
        self._contract, axes = bundle.graphs[part], axes_of(bundle.metadata)
        content, steady = bundle.read(part)
        self._steady = steady or not machine.is_cpu  # where no bits are promised
        threads = machine.threads if self._steady else 1
        # Holds the bytes: the file may be another by the time that it is needed again.
        self._opened = functools.partial(machine.session, part, content, free_size=bool(axes))
        self._session = self._opened(threads)
        self._single_threaded = self._session if threads == 1 else None
        self._given = named_items(self._contract.inputs, axes, self._contract.names)
        self._item_size = math.prod(next(iter(self._given.values()))[0])
        self._wanted = functools.cache(functools.partial(wanted_items, self._contract, axes=axes))
        self._plans: dict[int, Plan] = {}
        self._lock, self._opening = Lock(), Lock()

    def run(
        self, inputs: Mapping[str, Array], outputs: tuple[str, ...], check: Check, axes: Mapping[str, int] | None = None
    ) -> list[Array]:
        """Outputs for a whole batch.

        Args:
            inputs: C-contiguous, of the same length each.
            outputs: Their names.
            check: Is shown the first input, whole or in parts, before it is computed with, and may raise.
            axes: The free axes of this batch; those of the training if there are none.

        Raises:
            ModelFileError: If the graph has no such output, or onnxruntime cannot run it, or not with such shapes.
        """
        wanted = self._wanted(outputs) if not axes else wanted_items(self._contract, outputs, axes)
        if self._contract.names:
            inputs = {self._contract.names.get(name, name): values for name, values in inputs.items()}
        items = next(iter(inputs.values()))
        if 0 < len(items) <= _DIRECT and (self._steady or len(items) == 1) and self._machine.is_cpu:
            check(items)
            return self._session.call(inputs, wanted)
        if len(items) == 0:
            return [np.empty((0, *shape), dtype) for shape, dtype in wanted.values()]
        return self._run_planned(inputs, wanted, check, self._plan_for(items, outputs))

    def fix(self, plan: Plan) -> None:
        """Cut batches of every size by ``plan``, and measure nothing."""
        self._plans = dict.fromkeys(SIZE_CLASSES, plan)

    def tune(self, outputs: tuple[str, ...]) -> dict[int, Plan]:
        """Measure the plans of all sizes again, for these outputs: by size class."""
        if self._steady:
            for size_class in SIZE_CLASSES:
                with self._lock:
                    self._plans[size_class] = self._measured(size_class, outputs)
        return dict(self._plans)

    def _plan_for(self, items: Array, outputs: tuple[str, ...]) -> Plan:
        """Of the size class; an item larger than those of the training counts as several."""
        if not self._steady:
            return Plan(1, self._machine.workers)
        size_class = size_class_of(items.size / self._item_size)
        if size_class not in self._plans:  # else nobody waits while others measure
            with self._lock:
                if size_class not in self._plans:
                    self._plans[size_class] = self._measured(size_class, outputs)
        chunk, workers = self._plans[size_class]
        return Plan(max(1, chunk * self._item_size * len(items) // items.size), workers)

    def _measured(self, size_class: int, outputs: tuple[str, ...]) -> Plan:
        wanted = self._wanted(outputs)
        inputs = _drawn(self._given, size_class)
        few = {name: values[:_DIRECT] for name, values in inputs.items()}
        for _ in range(2):
            started = time.perf_counter()
            self._session.call(few, wanted)
        seconds = (time.perf_counter() - started) / _DIRECT
        size = min(size_class, max(2 * self._machine.threads, int(_SECONDS_OF_A_BATCH / seconds)))

        inputs = {name: values[:size] for name, values in inputs.items()}
        plans = candidates(size, self._machine.workers)
        return fastest(plans, functools.partial(self._run_planned, inputs, wanted, _accept))

    def _run_planned(
        self, inputs: Mapping[str, Array], wanted: Mapping[str, Item], check: Check, plan: Plan
    ) -> list[Array]:
        items = next(iter(inputs.values()))
        if plan.workers == 1 and len(items) <= plan.chunk and self._machine.is_cpu:
            check(items)
            return self._session.call(inputs, wanted)
        results = {name: np.empty((len(items), *shape), dtype) for name, (shape, dtype) in wanted.items()}
        self._run_cut(inputs, results, check, plan)
        return list(results.values())

    def _run_cut(self, inputs: Mapping[str, Array], results: Mapping[str, Array], check: Check, plan: Plan) -> None:
        session = self._session if plan.workers == 1 else self._single()
        calls = plan.cut(len(next(iter(inputs.values()))))

        def work() -> None:
            try:
                for start, stop in _taken(calls):
                    given = {name: values[start:stop] for name, values in inputs.items()}
                    check(next(iter(given.values())))
                    wanted = {name: values[start:stop] for name, values in results.items()}
                    if self._steady:
                        session.fill(given, wanted)
                    else:  # what onnxruntime allocates is aligned alike for every image, a slice of ours is not
                        found = session.call(given, {name: (v.shape[1:], v.dtype) for name, v in wanted.items()})
                        for result, values in zip(wanted.values(), found, strict=True):
                            result[:] = values
            except BaseException:
                calls.clear()
                raise

        self._machine.beside(work, plan.workers)

    def _single(self) -> Session:
        with self._opening:
            if self._single_threaded is None:
                self._single_threaded = self._opened(1)
        return self._single_threaded


def _drawn(items: Mapping[str, Item], size: int) -> dict[str, Array]:
    """Inputs to measure with, uniform in [0, 1)."""
    generator = np.random.default_rng(0)
    return {
        name: generator.random((size, *shape), dtype=np.float32).astype(dtype, copy=False)
        for name, (shape, dtype) in items.items()
    }


def _taken(calls: deque[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Call after call, from a queue that several workers share."""
    while True:
        try:
            yield calls.popleft()
        except IndexError:
            return


def _accept(values: Array) -> None:
    """The check of values that were drawn here."""
