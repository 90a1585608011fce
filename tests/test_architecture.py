"""The house rules of docs/architecture.md, read from the code itself."""

import ast
import functools
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vaelib

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vaelib"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
MANY_PARAMETERS = {
    "ConvEncoder": 11,
    "ConvDecoder": 12,
    "ImageDataset": 9,
    "ResidualDecoder": 11,
    "ResidualEncoder": 11,
    "Trainer": 15,
    "VAE": 10,
}
APART = {"runtime": {"_checks", "_tiles"}, "explorer": {"_checks", "_files", "_tiles", "runtime"}}
HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "accelerate", "matplotlib", "numpy", "rich", "typer")


def floors():
    table = re.findall(r"^\| (\d|apart) \| `(\w+)` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    return {room: floor for floor, room in table}


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def nodes_of(path):
    return [*ast.walk(ast.parse(path.read_text()))]


def imported_rooms(path):
    for node in nodes_of(path):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vaelib":
            assert node.level == 0, f"{path} has a relative import"
            parts = node.module.split(".")
            yield from ([parts[1]] if len(parts) > 1 else [a.name for a in node.names if a.name != "__version__"])
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("vaelib."))


def nodes(kind):
    return [(path, node) for path in MODULES for node in nodes_of(path) if isinstance(node, kind)]


def length(node):
    return node.end_lineno - node.lineno + 1


def body_length(node):
    docstring = ast.get_docstring(node, clean=False)
    return length(node) - (docstring.count("\n") + 1 if docstring else 0)


def test_every_room_is_in_the_table():
    assert {room_of(path) for path in MODULES} == set(floors())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_lower_floors(path):
    table = floors()
    room = room_of(path)
    for other in set(imported_rooms(path)) - {room}:
        if table[room] == "apart":
            assert other in APART[room]
        elif table[other] == "apart":
            assert room in ("benchmark", "cli") or (room, other) == ("export", "runtime")
        else:
            assert table[other] < table[room], f"{room} (floor {table[room]}) imports {other} (floor {table[other]})"


def module_of(path):
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path, known):
    """Those of the package, for whatever reason they are imported: at run time, in a function, for types alone."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from (inner & known) or ({node.module} & known)


def circle_in(below):
    """One circle of a graph, as the names along it; nothing if there is none."""
    done = set()

    def visit(name, above):
        if name in above:
            return [*above[above.index(name) :], name]
        if name in done:
            return []
        found = next(filter(None, (visit(other, [*above, name]) for other in sorted(below[name]))), [])
        done.add(name)
        return found

    return next(filter(None, (visit(name, []) for name in sorted(below))), [])


def test_a_circle_is_found():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert not circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_no_module_imports_one_that_imports_it():
    known = {module_of(path) for path in MODULES}
    assert not circle_in({module_of(path): set(imported_modules(path, known)) for path in MODULES})


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_are_short(path):
    assert len(path.read_text().splitlines()) <= 300


def test_classes_are_short():
    long = [f"{path.name}:{node.name}" for path, node in nodes(ast.ClassDef) if body_length(node) > 120]
    assert not long


def test_nine_functions_in_ten_are_short():
    lengths = [body_length(node) for _, node in nodes(ast.FunctionDef)]
    assert sum(lines <= 40 for lines in lengths) >= 0.9 * len(lengths)


def test_constructors_have_few_parameters():
    for path, node in nodes(ast.ClassDef):
        for function in node.body:
            if isinstance(function, ast.FunctionDef) and function.name == "__init__":
                arguments = function.args
                count = len(arguments.args) + len(arguments.kwonlyargs) - 1
                assert count <= MANY_PARAMETERS.get(node.name, 8), f"{path.name}:{node.name} has {count}"
                assert arguments.kwarg is None, f"{path.name}:{node.name} swallows arguments"


def test_no_assert_and_no_pickle():
    assert not nodes(ast.Assert)
    names = [a.name for _, node in nodes(ast.Import) for a in node.names]
    assert not {name for name in names if "pickle" in name or name == "joblib"}
    for path, call in nodes(ast.Call):
        text = ast.unparse(call)
        if text.startswith("torch.load("):
            assert "weights_only=True" in text, path
        if text.startswith("np.load("):
            assert "allow_pickle=False" in text, path


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)


def test_import_vaelib_pulls_in_nothing_and_says_nothing():
    code = (
        "import logging, sys; handlers = len(logging.root.handlers); import vaelib;"
        f"loaded = [name for name in {HEAVY} if name in sys.modules];"
        "assert not loaded, loaded; assert len(logging.root.handlers) == handlers"
    )
    result = run(code)
    assert result.stdout == result.stderr == ""


def test_the_model_side_leaves_optional_packages_and_the_stub_alone():
    run(
        "import pathlib, sys; was = pathlib.Path.read_text;"
        "pathlib.Path.read_text = lambda path, *a, **k: 1 / 0 if path.suffix == '.pyi' else was(path, *a, **k);"
        "import vaelib; vaelib.conv_vae((1, 8, 8)); vaelib.elbo_loss; vaelib.load; vaelib.Adversarial;"
        "packages = 'torchvision', 'onnx', 'onnxruntime', 'accelerate', 'matplotlib', 'torch._dynamo';"
        "loaded = [n for n in packages if n in sys.modules];"
        "assert not loaded, loaded"
    )


def test_import_costs_little():
    code = "import time; t = time.perf_counter(); import vaelib; print(time.perf_counter() - t)"
    assert min(float(run(code).stdout) for _ in range(3)) < 0.05


def test_every_public_name_exists():
    for name in vaelib.__all__:
        assert getattr(vaelib, name) is not None
    assert set(dir(vaelib)) == set(vaelib.__all__)
    with pytest.raises(AttributeError, match="no attribute 'VEA'"):
        _ = vaelib.VEA
    with pytest.raises(AttributeError, match=r"no attribute 'FlowVAEOutput': write vl\.LatentOutput"):
        _ = vaelib.FlowVAEOutput
    for old, new in (("ExportError", "errors"), ("cyclical", "schedules")):
        with pytest.raises(AttributeError, match=rf"no attribute '{old}': write vl\.{new}\.{old}$"):
            getattr(vaelib, old)
    for old, new in vaelib.objectives.RENAMED.items():
        for module, name in ((vaelib, f"vl.{new}"), (vaelib.objectives, new)):
            with pytest.raises(AttributeError, match=f"no attribute '{old}': write {name}$"):
                getattr(module, old)


def test_the_stub_has_the_same_names():
    imports = [n for n in ast.parse((PACKAGE / "__init__.pyi").read_text()).body if isinstance(n, ast.ImportFrom)]
    homes = {alias.name: node.module for node in imports for alias in node.names}
    assert all(alias.asname == alias.name for node in imports for alias in node.names)
    assert {*homes, "__version__"} == set(vaelib.__all__)
    for name, home in homes.items():
        assert home == "vaelib" or getattr(vaelib, name) is getattr(importlib.import_module(home), name)
