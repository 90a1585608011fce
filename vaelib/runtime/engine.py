"""Runs one graph on batches of any size, cut into the calls that are fastest, by measurement.

A large batch falls out of the cache between one layer and the next, and a small call does not occupy all threads; which
of the two costs more depends on the graph and on the machine. Where a batch is cut changes no bit: the operators of a
batch-invariant graph give an image the same bits in any batch, and the images of any other graph go one by one, on one
thread each.
"""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaelib.runtime.bundle import Bundle
from vaelib.runtime.contract import axes_of, named_items, wanted_items
from vaelib.runtime.machine import Item, Machine, Session

__all__ = ["SIZE_CLASSES", "Array", "Check", "Engine", "Plan", "candidates", "size_class_of"]

Array = NDArray[Any]
"""Of float32, or of int64: codes, labels, positions."""
Check = Callable[[Array], None]

_DIRECT = 16
"""Batches up to this size go to onnxruntime in one call, unmeasured."""
_SECONDS_OF_A_BATCH = 0.05
"""The most that one batch may take on which plans are measured; slower graphs are measured on fewer images."""
SIZE_CLASSES = (32, 128, 512)
"""Batch sizes at which plans are measured; each stands for up to twice its size, the last for all that is larger."""
_CHUNKS = (8, 16, 32, 64, 128, 256)
_SECONDS = 0.3
"""Spent on one measurement, if that is enough for two rounds."""
_CHANCE = 0.03


class Plan(NamedTuple):
    """How a batch is cut into calls."""

    chunk: int
    """Most images of one call."""
    workers: int
    """Calls at a time: 1 with all threads, or as many as there are threads with one thread each."""

    def cut(self, size: int) -> deque[tuple[int, int]]:
        """Start and stop of each call: even, and as many for each worker.

        Examples:
            >>> list(Plan(chunk=16, workers=2).cut(36))
            [(0, 9), (9, 18), (18, 27), (27, 36)]
        """
        rounds = -(-size // (self.chunk * self.workers))
        calls = min(size, rounds * self.workers)
        return deque(pairwise(size * i // calls for i in range(calls + 1)))


class Engine:
    """The graph ``part`` of a bundle, ready to run."""

    def __init__(self, bundle: Bundle, part: str, machine: Machine) -> None:
        self._part, self._machine = part, machine
        self._contract, axes = bundle.graphs[part], axes_of(bundle.metadata)
        self.content, batch_invariant = bundle.read(part)
        self._batch_invariant = batch_invariant or not machine.is_cpu  # where no bits are promised
        self.threads = threads = machine.threads if self._batch_invariant else 1
        # Holds the bytes: the file may be another by the time that it is needed again.
        self._opened = functools.partial(machine.session, part, self.content, free_size=bool(axes))
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
        if 0 < len(items) <= _DIRECT and (self._batch_invariant or len(items) == 1) and self._machine.is_cpu:
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
        if self._batch_invariant:
            for size_class in SIZE_CLASSES:
                with self._lock:
                    self._plans[size_class] = self._measured(size_class, outputs)
        return dict(self._plans)

    def _plan_for(self, items: Array, outputs: tuple[str, ...]) -> Plan:
        """Of the size class; an item larger than those of the training counts as several."""
        if not self._batch_invariant:
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
        return _fastest(plans, functools.partial(self._run_planned, inputs, wanted, _accept))

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
                    if self._batch_invariant:
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


def size_class_of(size: float) -> int:
    """The size class that a batch of this size belongs to."""
    return next((held for held in SIZE_CLASSES if size <= 2 * held), SIZE_CLASSES[-1])


def candidates(size_class: int, threads: int) -> list[Plan]:
    """The plans worth measuring for a size class."""
    whole = size_class if size_class == SIZE_CLASSES[-1] else 2 * size_class
    plans = [Plan(whole, 1), *(Plan(chunk, 1) for chunk in _CHUNKS if 32 <= chunk < size_class)]
    if threads > 1:
        share = max(size_class // threads, _CHUNKS[0])
        plans += [Plan(chunk, threads) for chunk in _CHUNKS if chunk <= share]
    return plans


def _fastest(plans: Sequence[Plan], run: Callable[[Plan], object]) -> Plan:
    """The plan with the shortest run of all, measured in turn: what others do on the machine only ever adds time.

    Each runs twice in a row, and only the second run is timed, so that caches and threads are warm.
    The first plan stands unless another is faster by more than chance.
    """
    times: dict[Plan, list[float]] = {plan: [] for plan in plans}
    started = time.perf_counter()
    while len(times[plans[-1]]) < 2 or time.perf_counter() - started < _SECONDS:
        for plan in plans:
            run(plan)
            before = time.perf_counter()
            run(plan)
            times[plan].append(time.perf_counter() - before)
    return min(plans, key=lambda plan: min(times[plan]) * (1 if plan == plans[0] else 1 + _CHANCE))
