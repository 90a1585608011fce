"""Runs one graph on batches of any size.

Where a batch is cut changes no bit: the operators of a steady graph compute an image alike in any company, and the
images of any other graph go one by one, on one thread each.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from vaelib.runtime.bundle import Bundle, shapes_of
from vaelib.runtime.machine import Machine, Session
from vaelib.runtime.plans import SIZE_CLASSES, Plan, candidates, fastest, size_class_of

__all__ = ["Array", "Check", "Engine"]

Array = NDArray[np.float32]
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
        outputs: Those of its outputs that anybody asks for.
        machine: Where to run it.
    """

    def __init__(self, bundle: Bundle, part: str, outputs: Sequence[str], machine: Machine) -> None:
        self._part, self._outputs, self._machine = part, list(outputs), machine
        content, self.metadata, steady = bundle.read(part)
        self._steady = steady or not machine.is_cpu  # where no bits are promised
        threads = machine.threads if self._steady else 1
        self._session = self._opened(content, threads)
        self._single_threaded = self._session if threads == 1 else None
        self._content = content  # the file may be another by the time that it is needed again
        self._item_size = math.prod(shapes_of(self.metadata)[self._session.inputs[0]])
        self._plans: dict[int, Plan] = {}
        self._lock, self._opening = Lock(), Lock()

    def run(self, inputs: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], check: Check) -> list[Array]:
        """The outputs for a whole batch.

        Args:
            inputs: C-contiguous, of the same length each.
            shapes: Of one item of each output, and of whatever else.
            check: Is shown the first input, whole or in parts, before it is computed with, and may raise.

        Raises:
            ModelFileError: If onnxruntime cannot run the graph after all, or it gives other shapes.
        """
        items = next(iter(inputs.values()))
        if 0 < len(items) <= _DIRECT and (self._steady or len(items) == 1) and self._machine.is_cpu:
            check(items)
            return self._session.call(self._outputs, inputs, shapes)
        if len(items) == 0:
            return [np.empty((0, *shapes[name]), np.float32) for name in self._outputs]
        return self._run_planned(inputs, shapes, check, self._plan_for(items))

    def fix(self, plan: Plan) -> None:
        """Cut batches of every size by ``plan``, and measure nothing."""
        self._plans = dict.fromkeys(SIZE_CLASSES, plan)

    def tune(self) -> dict[int, Plan]:
        """Measure the plans of all sizes anew: by size class."""
        if self._steady:
            for size_class in SIZE_CLASSES:
                with self._lock:
                    self._plans[size_class] = self._measured(size_class)
        return dict(self._plans)

    def _plan_for(self, items: Array) -> Plan:
        """Of the size class; an item larger than those of the training counts as several."""
        if not self._steady:
            return Plan(1, self._machine.workers)
        size_class = size_class_of(items.size / self._item_size)
        if size_class not in self._plans:  # else nobody waits while others measure
            with self._lock:
                if size_class not in self._plans:
                    self._plans[size_class] = self._measured(size_class)
        chunk, workers = self._plans[size_class]
        return Plan(max(1, chunk * self._item_size * len(items) // items.size), workers)

    def _measured(self, size_class: int) -> Plan:
        shapes = shapes_of(self.metadata)
        generator = np.random.default_rng(0)
        inputs = {
            name: generator.random((size_class, *shapes[name]), dtype=np.float32) for name in self._session.inputs
        }
        few = {name: values[:_DIRECT] for name, values in inputs.items()}
        for _ in range(2):
            started = time.perf_counter()
            self._session.call(self._outputs, few, shapes)
        seconds = (time.perf_counter() - started) / _DIRECT
        size = min(size_class, max(2 * self._machine.threads, int(_SECONDS_OF_A_BATCH / seconds)))

        inputs = {name: values[:size] for name, values in inputs.items()}
        plans = candidates(size, self._machine.workers)
        return fastest(plans, partial(self._run_planned, inputs, shapes, _accept))

    def _run_planned(
        self, inputs: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], check: Check, plan: Plan
    ) -> list[Array]:
        items = next(iter(inputs.values()))
        if plan.workers == 1 and len(items) <= plan.chunk and self._machine.is_cpu:
            check(items)
            return self._session.call(self._outputs, inputs, shapes)
        results = {name: np.empty((len(items), *shapes[name]), np.float32) for name in self._outputs}
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
                        found = session.call(self._outputs, given, {name: v.shape[1:] for name, v in wanted.items()})
                        for result, values in zip(wanted.values(), found, strict=True):
                            result[:] = values
            except BaseException:
                calls.clear()
                raise

        self._machine.beside(work, plan.workers)

    def _single(self) -> Session:
        with self._opening:
            if self._single_threaded is None:
                self._single_threaded = self._opened(self._content, 1)
        return self._single_threaded

    def _opened(self, content: bytes, threads: int) -> Session:
        free_size = self.metadata["spatial_multiple"] is not None
        return self._machine.session(self._part, content, threads, free_size=free_size)


def _taken(calls: deque[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Call after call, from a queue that several workers share."""
    while True:
        try:
            yield calls.popleft()
        except IndexError:
            return


def _accept(values: Array) -> None:
    """The check of values that were drawn here."""
