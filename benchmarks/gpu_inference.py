"""Inference measured: every backend of `vaelib.benchmark` on three networks, with the accuracy in the same row.

    python benchmarks/gpu_inference.py --out inference.json --device cuda --seconds 170

The backends of a cell (a network, an operation, a batch size) have their turns one after the other, each in a process
of its own. Rows are written after each cell, the most interesting ones first. A second call with the same --out
measures what is missing.
"""

import argparse
import statistics
from pathlib import Path
from typing import NamedTuple

import torch
from gpu_records import Deadline, Records
from networks import NETWORKS, used

from vaelib.benchmark.backends import BACKENDS, CUDA_BACKENDS
from vaelib.benchmark.matrix import Matrix, why_missing
from vaelib.benchmark.roofline import rates

MEASURED = ("article", "default", "residual 64")
OPERATIONS = ("reconstruct", "encode", "decode")
ON_CPU = ("torch", "onnxruntime", "OnnxVAE")
ON_CUDA = tuple(name for name in CUDA_BACKENDS if "TensorRT" not in name)  # whose engines take minutes to build


class Group(NamedTuple):
    """Backends that are measured beside each other, and how long."""

    backends: tuple[str, ...]
    references: tuple[str, ...]
    """Eager torch, which is measured in every group, to be compared with."""
    options: dict[str, float]


class Cell(NamedTuple):
    """A group at one operation and one batch size."""

    group: str
    operation: str
    batch: int


def groups_of(device, quick):
    """Compiled backends apart, since a new shape takes them many seconds."""
    brief = {"seconds": 0.0, "rounds": 2, "least_calls": 4}
    options = brief if quick else {"seconds": 0.02, "rounds": 5, "least_calls": 25}
    few = brief if quick else {"seconds": 0.02, "rounds": 3, "least_calls": 9}
    if device == "cpu":
        return {
            "plain": Group((*ON_CPU, "torch channels last"), ("torch",), options),
            "compiled": Group(("torch compiled",), ("torch",), options),
        }
    references = ("torch CUDA", "torch CUDA on device")
    compiled = tuple(name for name in ON_CUDA if "compiled" in name)
    plain = tuple(name for name in ON_CUDA if name not in compiled)
    return {
        "plain": Group(plain, references, options),
        "compiled": Group(compiled, references, options),
        "cpu": Group(ON_CPU, ("torch CUDA",), few),
    }


def cells_of(device, quick):
    """All cells of a network, in order of worth."""
    if quick:
        order = [("plain", 8), ("compiled", 1)]
    else:
        order = [("plain", 64), ("plain", 1024), ("compiled", 64), ("plain", 1), ("compiled", 1024), ("plain", 256)]
        order += [("compiled", 1)]
    if device == "cuda":
        order += [("cpu", 64), ("cpu", 1)]
    if device == "cuda" and not quick:
        order += [("plain", 4096), ("compiled", 256), ("cpu", 1024), ("compiled", 4096), ("cpu", 256)]
    return [Cell(group, operation, batch) for group, batch in order for operation in OPERATIONS]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=170.0, help="ends by itself before")
    parser.add_argument("--quick", action="store_true", help="a tiny network, two small batches: to see that it runs")
    parser.add_argument("--mnist", help="not read, so that both programs have the same options")
    arguments = parser.parse_args()
    deadline = Deadline(arguments.seconds)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device: --device cpu rehearses")
    with deadline:
        records = Records(
            arguments.out,
            arguments.device,
            ("network", "operation", "batch", "backend"),
            quick=arguments.quick,
            tf32="off",
            error="largest difference from torch in float64 on the CPU, over the largest value, at least 1",
            units={"p50": "ms", "p90": "ms", "p99": "ms", "first_call": "s"},
            products={} if arguments.quick else rates(torch.get_num_threads()),
        )
        program = Program(records, groups_of(arguments.device, arguments.quick))
        cells = cells_of(arguments.device, arguments.quick)
        networks = ("tiny",) if arguments.quick else MEASURED
        for index, network in enumerate(networks):
            program.measure(network, cells, deadline, deadline.left() / (len(networks) - index))
    program.note_missing(networks, cells)


class Program:
    """What is measured, and what of it is there."""

    def __init__(self, records, groups):
        self._records, self._groups = records, groups
        wanted = dict.fromkeys(name for group in groups.values() for name in group.backends)
        model = used(NETWORKS["article"]())
        reasons = {name: why_missing(BACKENDS[name], model) for name in wanted}
        self._present = [name for name in wanted if reasons[name] is None]
        for name, reason in reasons.items():
            if reason is not None:
                records.skip(name, reason)

    def measure(self, network, cells, deadline, seconds):
        """The cells of a network that are missing, as many as begin within so many seconds."""
        missing = [cell for cell in cells if self._missing(network, cell)]
        if not missing:
            return
        end = deadline.left() - seconds
        products = self._records.environment["products"]
        with Matrix(used(NETWORKS[network]()), self._present, products=products) as matrix:
            for cell in missing:
                if deadline.left() < end:
                    return
                print(f"{network}, {cell.operation}, batch {cell.batch}, {cell.group}", flush=True)
                self._measure_cell(matrix, network, cell)

    def _missing(self, network, cell):
        """Backends of the cell without a row."""
        facts = {"network": network, "operation": cell.operation, "batch": cell.batch}
        backends = [name for name in self._groups[cell.group].backends if name in self._present]
        return [name for name in backends if self._records.find(**facts, backend=name) is None]

    def _measure_cell(self, matrix, network, cell):
        group = self._groups[cell.group]
        facts = {"network": network, "operation": cell.operation, "batch": cell.batch}
        before = set(matrix.failed)
        found = matrix.cell(cell.operation, cell.batch, backends={*group.backends, *group.references}, **group.options)
        medians = {row.backend: statistics.median(row.times) for row in found}
        for row in found:
            if row.backend in group.backends:
                reference = medians.get(reference_of(row.backend, group.references))
                times = None if reference is None else reference / medians[row.backend]
                self._records.put(facts | row.summary() | {"times_torch": times})
        for name in matrix.failed.keys() - before:
            self._records.put(facts | {"backend": name, "failed": matrix.failed[name]})

    def note_missing(self, networks, cells):
        """Say which cells have no rows."""
        for network in networks:
            for cell in cells:
                missing = self._missing(network, cell)
                if missing:
                    present = [name for name in self._groups[cell.group].backends if name in self._present]
                    what = cell.group if missing == present else ", ".join(missing)
                    self._records.skip(f"{network}, {cell.operation}, batch {cell.batch}: {what}", "no time was left")


def reference_of(backend, references):
    """Eager torch where batch and answer are in the same place."""
    on_device = [name for name in references if name.endswith("on device")]
    return on_device[0] if backend.endswith("on device") else references[0]


if __name__ == "__main__":
    main()
