"""The pages that are written from the code: the reference, by what vaelib says is public, and what was measured.

A name is public if it is in ``vaelib.__all__`` or in the ``__all__`` of a room that is. Nothing is listed by hand, so
a new name is in the reference as soon as it is public.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import vaelib

DOCS = Path(__file__).parent


def rooms() -> dict[str, ModuleType]:
    """Public modules by name."""
    found = {name: getattr(vaelib, name) for name in vaelib.__all__}
    return {name: value for name, value in sorted(found.items()) if inspect.ismodule(value)}


def public_names() -> Iterator[tuple[str, Any]]:
    """Every public name as it is documented, such as ``vaelib.priors.VampPrior``, and its object."""
    for name, room in rooms().items():
        for member in room.__all__:
            yield f"vaelib.{name}.{member}", getattr(room, member)
    for name in _at_the_top():
        yield f"vaelib.{name}", getattr(vaelib, name)


def write() -> None:
    """Write ``docs/reference`` and ``docs/measured`` again."""
    reference, measured = (_emptied(DOCS / name) for name in ("reference", "measured"))
    (reference / "vaelib.md").write_text(_top_page())
    for name in rooms():
        (reference / f"{name}.md").write_text(f"# vaelib.{name}\n\n{_automodule(f'vaelib.{name}')}")
    (reference / "command_line.md").write_text(_command_line_page())
    for path in (DOCS.parent / "benchmarks/results").iterdir():
        if path.suffix == ".md":
            (measured / path.name).write_text(path.read_text().replace("](../../docs/", "](../"))
        elif path.suffix == ".png":
            shutil.copy(path, measured)


def _emptied(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return directory


def _at_the_top() -> list[str]:
    """Public names that no public room has: the models and the errors."""
    in_rooms = {member for room in rooms().values() for member in room.__all__}
    return sorted(set(vaelib.__all__) - in_rooms - set(rooms()) - {"__version__"})


def _automodule(module: str) -> str:
    return f"```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n{_inherited(module)}```\n"


def _autoclass(name: str) -> str:
    return f"```{{eval-rst}}\n.. autoclass:: vaelib.{name}\n   :members:\n{_inherited('vaelib')}```\n"


def _inherited(module: str) -> str:
    """Methods of ``VAE`` and ``OnnxVAE`` come from classes that are not public."""
    return "   :inherited-members: Module, tuple\n" if module in ("vaelib", "vaelib.runtime") else ""


def _top_page() -> str:
    home = {member: f"vaelib.{name}" for name, room in rooms().items() for member in room.__all__}
    rows = [
        f"| {{py:obj}}`vl.{name} <{home.get(name, 'vaelib')}.{name}>` | {_first_sentence(getattr(vaelib, name))} |"
        for name in sorted(set(vaelib.__all__) - set(rooms()) - {"__version__"}, key=str.lower)
    ]
    table = "\n".join(["| name | what it is |", "| --- | --- |", *rows])
    return (
        "# vaelib\n\nWhat `import vaelib as vl` offers. Names load on first use.\n\n"
        f"{table}\n\n{''.join(_autoclass(name) for name in _at_the_top())}"
    )


def _first_sentence(value: Any) -> str:
    paragraph = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    return re.sub(r":\w+:`", "`", paragraph.replace("|", "\\|")).replace("``", "`")


def _command_line_page() -> str:
    """As typer itself writes it."""
    command = [sys.executable, "-m", "typer", "vaelib.cli", "utils", "docs", "--name", "vaelib"]
    page = subprocess.run([*command, "--title", "The command line"], capture_output=True, text=True, check=True).stdout
    return page.replace("```console\n$ ", "```text\n")
